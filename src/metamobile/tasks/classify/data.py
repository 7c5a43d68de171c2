"""Data of classification: a folder of class folders. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from metamobile.data.folder import FolderData, Sample, class_names, open_folder
from metamobile.data.folder import eval_samples as folder_samples
from metamobile.data.inspect import Inspection, inspect_folder
from metamobile.tasks.trained import split_of_training
from metamobile.training.recipe import DataSettings
from metamobile.weights.card import Card

__all__ = ["class_names", "eval_samples", "inspect", "open_data"]


def inspect(
    settings: DataSettings, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    return inspect_folder(settings.path, workers=workers, progress=progress)


def open_data(settings: DataSettings, exclude: Collection[Path] = ()) -> FolderData:
    return open_folder(settings.path, val_fraction=settings.val_fraction, seed=settings.seed, exclude=exclude)


def eval_samples(data: str | Path, card: Card) -> tuple[list[Sample], str]:
    opened = split_of_training(data, card, inspect, open_data)
    if opened is None:
        return folder_samples(data, card.classes)
    return opened.val, opened.split
