"""The training transform of segmentation: random scale, random crop, flip, colours.

A mask is changed along with its picture, by nearest pixels; what lies outside of the picture is ignored.
Source: the papers' ADE20K recipes (MMSegmentation's pipeline).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from metamobile.data.masks import IGNORED
from metamobile.data.preprocess import Preprocess, shape_inside

if TYPE_CHECKING:
    from metamobile.training.recipe import Recipe

TRIES = 10  # for a crop that is not nearly all of one class


class Augment:
    """(picture, mask (H, W) uint8) -> pixels (3, h, w) float32, normalised, and mask (h, w) int64.

    The picture is resized to the size of evaluation times a factor from `augment.resize`, and a part of
    `data.size` is cut out: of some tries the first in which no class has more than `augment.crop_most`.
    """

    def __init__(self, recipe: Recipe, record: Preprocess) -> None:
        self.settings, self.record = recipe.augment, record
        self.height, self.width = recipe.data.shape
        self.colours = v2.RandomPhotometricDistort() if recipe.augment.photometric else None
        self.interpolation = Image.Resampling[record.interpolation.upper()]
        self.mean = torch.tensor(recipe.data.mean).view(3, 1, 1)
        self.std = torch.tensor(recipe.data.std).view(3, 1, 1)

    def __call__(self, picture: Image.Image, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        low, high = self.settings.resize
        factor = np.random.uniform(low, high)
        whole = self.record.size
        if self.record.fit == "inside":
            whole = shape_inside(picture.width, picture.height, whole)
        height, width = (max(1, round(side * factor)) for side in whole)
        truth = Image.fromarray(mask)
        for _ in range(TRIES):
            left = np.random.randint(0, max(width - self.width, 0) + 1)
            top = np.random.randint(0, max(height - self.height, 0) + 1)
            part = (left, top, min(left + self.width, width), min(top + self.height, height))
            labels = _resized_part(truth, (width, height), part, Image.Resampling.NEAREST)
            if self._is_varied(labels):
                break
        resized = _resized_part(picture, (width, height), part, self.interpolation)
        pixels = torch.from_numpy(resized.transpose(2, 0, 1).copy())
        target = torch.from_numpy(labels.astype(np.int64))
        if self.colours is not None:
            pixels = self.colours(pixels)
        if np.random.random() < self.settings.hflip:
            pixels, target = pixels.flip(-1), target.flip(-1)
        normalised = (pixels.float() / 255 - self.mean) / self.std
        missing = (0, self.width - normalised.shape[2], 0, self.height - normalised.shape[1])
        return (
            torch.nn.functional.pad(normalised, missing),
            torch.nn.functional.pad(target, missing, value=IGNORED),
        )

    def _is_varied(self, labels: np.ndarray) -> bool:
        if self.settings.crop_most >= 1:
            return True
        counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
        counts[IGNORED] = 0
        return bool((counts > 0).sum() > 1 and counts.max() < self.settings.crop_most * counts.sum())


def _resized_part(
    picture: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int], how: Image.Resampling
) -> np.ndarray:
    """A part (left, top, right, bottom) of the picture as it would be at `size`, without making all of it."""
    x, y = picture.width / size[0], picture.height / size[1]
    box = (part[0] * x, part[1] * y, min(part[2] * x, picture.width), min(part[3] * y, picture.height))
    return np.asarray(picture.resize((part[2] - part[0], part[3] - part[1]), how, box=box))
