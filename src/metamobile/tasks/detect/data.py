"""Data of detection: pictures with boxes, and masks where the data have them. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from metamobile.data.boxes import BoxData, BoxSample, eval_boxes, open_boxes
from metamobile.data.inspect import Inspection
from metamobile.data.inspect_boxes import inspect_boxes
from metamobile.tasks.trained import split_of_training
from metamobile.training.recipe import DataSettings
from metamobile.weights.card import Card


def inspect(
    settings: DataSettings, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    refuse_masks(settings.path)
    return inspect_boxes(settings.path, workers=workers, progress=progress)


def open_data(settings: DataSettings, exclude: Collection[Path] = ()) -> BoxData:
    refuse_masks(settings.path)
    return open_boxes(
        settings.path,
        val_fraction=settings.val_fraction,
        seed=settings.seed,
        exclude=exclude,
        drop_bad=settings.drop_bad,
    )


def eval_samples(data: str | Path, card: Card) -> tuple[Sequence[BoxSample], str]:
    opened = split_of_training(data, card, inspect, open_data)
    if opened is not None:
        return opened.val, opened.split
    refuse_masks(data)
    return eval_boxes(data, card.classes)


def class_names(classes: Sequence[str]) -> list[str]:
    return list(classes)


def refuse_masks(data: str | Path) -> None:
    """Errors: ValueError for masks without boxes, whose pictures would each be named for want of a label."""
    from metamobile.tasks.look import find_task  # here, as it asks this module's package for its tasks

    if find_task(data) == "segment":
        raise ValueError(
            f"{data}: masks and no boxes; a detector needs COCO's json or YOLO's text files, a segmenter "
            "(--task segment, --head deeplabv3) takes masks"
        )
