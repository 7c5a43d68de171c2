"""Segmentation for the training loop: masks, a segmenter, cross-entropy over pixels, mean IoU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metamobile.data.loader import TruthDataset
from metamobile.data.masks import IGNORED, MaskData, MaskSample
from metamobile.data.preprocess import Preprocess
from metamobile.models.segmenters import HEADS
from metamobile.tasks.dense import CLASSIFIERS, build_dense, draw_worst, stack, validation_dataset
from metamobile.tasks.segment import data as data_module
from metamobile.tasks.segment import results as results_module
from metamobile.tasks.segment.augment import Augment

if TYPE_CHECKING:
    from metamobile.training.recipe import Recipe


class SegmentLoss:
    """Cross-entropy of every labelled pixel, plus that of the auxiliary head times `loss.auxiliary`.

    `loss(forward, pictures, targets)`: (B, 3, H, W), classes (B, H, W) with 255 for what is not labelled.
    """

    def __init__(self, recipe: Recipe, weights: Tensor | None = None) -> None:
        self.auxiliary = recipe.loss.auxiliary
        self.weights = weights
        self.about = ""
        if weights is not None:
            self.about = f"classes count by their rarity: weights {weights.min():.2f} to {weights.max():.2f}"

    def __call__(self, forward: Callable[[Tensor], Any], pictures: Tensor, targets: Tensor) -> Tensor:
        main, auxiliary = forward(pictures)
        loss = self._of(main, targets)
        return loss if auxiliary is None else loss + self.auxiliary * self._of(auxiliary, targets)

    def _of(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(logits.device)
        losses = F.cross_entropy(logits.float(), targets, weights, ignore_index=IGNORED, reduction="none")
        labelled = (targets != IGNORED).sum().clamp(min=1)  # a crop of nothing labelled teaches nothing
        return losses.sum() / labelled


class SegmentTask:
    """See `metamobile.tasks.Task`."""

    name = "segment"
    recipe = "small-segment"
    heads = tuple(HEADS)
    drops_unchecked = False
    data = data_module
    results = results_module
    collate = staticmethod(stack)
    ignores = (*CLASSIFIERS, "augment.expand", "augment.iou_crop", "augment.mosaic")

    def build_model(self, recipe: Recipe, num_classes: int) -> nn.Module:
        return build_dense(recipe, num_classes)

    def train_dataset(self, data: MaskData, recipe: Recipe, record: Preprocess) -> TruthDataset:
        augment, samples = Augment(recipe, record), data.train

        def transform(picture: Image.Image, index: int) -> tuple[Tensor, Tensor]:
            return augment(picture, samples[index].read_mask())

        return TruthDataset(samples, transform, seed=recipe.run.seed, cache=recipe.data.cache)

    def val_dataset(self, data: MaskData, recipe: Recipe, record: Preprocess) -> TruthDataset:
        return validation_dataset(data.val, recipe, record)

    def make_loss(self, recipe: Recipe, data: MaskData) -> SegmentLoss:
        weights = None
        if recipe.loss.class_weights == "sqrt":
            weights = rarity(data.train, len(data.classes))
        return SegmentLoss(recipe, weights)

    def answer(
        self, model: nn.Module, inputs: Any, targets: Tensor, names: Sequence[str]
    ) -> list[tuple[Any, int]]:
        """A `Segmentation` of each picture at its own size, and its place. Errors: NotFinite."""
        found = []
        for pixels, (index, width, height) in zip(inputs, targets.tolist(), strict=True):
            logits = model(pixels[None]).float().cpu().numpy()
            shape = (pixels.shape[-2], pixels.shape[-1])
            result = results_module.decode(logits, names, [""], [(width, height)], [shape])[0]
            found.append((result, index))
        return found

    def worst(
        self, metric: Any, data: MaskData, names: Sequence[str], most: int, folder: Path
    ) -> list[dict[str, Any]]:
        return draw_worst(metric.worst(most), data.val, names, folder, results_module)


def rarity(samples: Sequence[MaskSample], num_classes: int) -> Tensor:
    """One over the square root of each class's share of the labelled pixels, with a mean of 1."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for sample in samples:
        counts += np.bincount(sample.read_mask().ravel(), minlength=IGNORED + 1)[:num_classes]
    seen, weights = counts > 0, np.ones(num_classes)
    weights[seen] = 1 / np.sqrt(counts[seen] / counts.sum())
    weights[seen] /= weights[seen].mean()  # a class without a pixel has no loss to weigh
    return torch.tensor(weights, dtype=torch.float32)


TASK = SegmentTask()
