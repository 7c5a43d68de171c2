"""Data of segmentation: pictures and masks with a class number for each pixel. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from metamobile.data.inspect import Inspection
from metamobile.data.inspect_masks import inspect_masks
from metamobile.data.masks import MaskData, MaskSample, eval_masks, open_masks
from metamobile.tasks.trained import split_of_training
from metamobile.training.recipe import DataSettings
from metamobile.weights.card import Card


def inspect(
    settings: DataSettings, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    return inspect_masks(
        settings.path, workers=workers, progress=progress, classes=settings.classes, ignore=settings.ignore
    )


def open_data(settings: DataSettings, exclude: Collection[Path] = ()) -> MaskData:
    return open_masks(
        settings.path,
        val_fraction=settings.val_fraction,
        seed=settings.seed,
        exclude=exclude,
        classes=settings.classes,
        ignore=settings.ignore,
    )


def eval_samples(data: str | Path, card: Card) -> tuple[Sequence[MaskSample], str]:
    opened = split_of_training(data, card, inspect, open_data)
    if opened is not None:
        return opened.val, opened.split
    return eval_masks(data, card.classes, card.recipe.get("data", {}).get("ignore"))


def class_names(classes: Sequence[str]) -> list[str]:
    return list(classes)
