"""Folders of small pictures and masks, for the tests of segmentation's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FOUR = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)  # H 2, W 3


def picture(path: Path, size: tuple[int, int] = (3, 2), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, values: np.ndarray = FOUR) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def fill(
    root: Path,
    pictures: str = "images/{split}",
    masks: str = "masks/{split}",
    splits: tuple[str, ...] = ("train", "val"),
    values: np.ndarray = FOUR,
    count: int = 2,
    names: str = "ground\nhill\nlake\n",
) -> Path:
    for split in splits:
        for index in range(count):
            picture(root / pictures.format(split=split) / f"{split}{index}.jpg")
            mask(root / masks.format(split=split) / f"{split}{index}.png", values)
    if names:
        (root / "classes.txt").write_text(names, encoding="utf-8")
    return root
