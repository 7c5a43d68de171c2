"""Detection for the training loop: boxes, a detector with its own losses, COCO's average precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metamobile.data.boxes import BoxData, BoxSample
from metamobile.data.loader import TruthDataset
from metamobile.data.preprocess import Preprocess
from metamobile.deploy.runtimes import to_arrays
from metamobile.errors import DataError
from metamobile.models.detectors import HEADS
from metamobile.tasks.dense import CLASSIFIERS, build_dense, draw_worst, stack, validation_dataset
from metamobile.tasks.detect import data as data_module
from metamobile.tasks.detect import results as results_module
from metamobile.tasks.detect.augment import Augment, collate, mosaic

if TYPE_CHECKING:
    from metamobile.training.recipe import Recipe


class DetectLoss:
    """The sum of the detector's losses. `loss(forward, pictures (B, 3, H, W), targets)`."""

    about = ""

    def __call__(self, forward: Callable[..., Any], pictures: Tensor, targets: Sequence[Any]) -> Tensor:
        losses: dict[str, Tensor] = forward(pictures, targets)
        return torch.stack(list(losses.values())).sum()


class DetectTask:
    """See `metamobile.tasks.Task`."""

    name = "detect"
    recipe = "small-detect"
    heads = tuple(HEADS)
    drops_unchecked = True  # bad boxes, at reading
    data = data_module
    results = results_module
    ignores = (
        *CLASSIFIERS,
        *("augment.resize", "augment.crop_most", "data.classes", "data.ignore"),
        *("loss.auxiliary", "loss.class_weights"),
    )

    @staticmethod
    def collate(items: list[tuple[Tensor, Any]]) -> Any:
        """Training items have a dictionary as their target, those of validation a tensor."""
        return collate(items) if isinstance(items[0][1], dict) else stack(items)

    def build_model(self, recipe: Recipe, num_classes: int) -> nn.Module:
        return build_dense(recipe, num_classes)

    def train_dataset(self, data: BoxData, recipe: Recipe, record: Preprocess) -> TruthDataset:
        return _TrainingSet(data, recipe)

    def val_dataset(self, data: BoxData, recipe: Recipe, record: Preprocess) -> TruthDataset:
        return validation_dataset(data.val, recipe, record)

    def make_loss(self, recipe: Recipe, data: BoxData) -> DetectLoss:
        return DetectLoss()

    def answer(
        self, model: nn.Module, inputs: Any, targets: Tensor, names: Sequence[str]
    ) -> list[tuple[Any, int]]:
        """The `Detections` of each picture in its own pixels, and its place."""
        batches = [inputs] if isinstance(inputs, Tensor) else [pixels[None] for pixels in inputs]
        found: list[Any] = []
        for batch in batches:
            found += to_arrays(model(batch))
        shapes = [(pixels.shape[-2], pixels.shape[-1]) for pixels in inputs]
        rows = targets.tolist()
        sizes = [(width, height) for _, width, height in rows]
        results = results_module.answers(found, names, [""] * len(rows), sizes, shapes)
        return [(result, row[0]) for result, row in zip(results, rows, strict=True)]

    def worst(
        self, metric: Any, data: BoxData, names: Sequence[str], most: int, folder: Path
    ) -> list[dict[str, Any]]:
        return draw_worst(metric.worst(most), data.val, names, folder, results_module)


def _has_masks(sample: BoxSample) -> bool:
    return sample.segmentations is not None and all(sample.segmentations)


class _TrainingSet(TruthDataset):
    """Pictures with their boxes, augmented. Crowds are left out: they are no object to learn."""

    def __init__(self, data: BoxData, recipe: Recipe) -> None:
        self.masks = HEADS[recipe.model.head or next(iter(HEADS))].needs_masks
        if self.masks and any(not _has_masks(sample) for sample in (*data.train, *data.val)):
            raise DataError(
                f"{data.root}: boxes without masks; {recipe.model.head} learns from both: give masks, or "
                "take --head ssdlite or retinanet"
            )
        self.augment = Augment(recipe, self.masks)
        self.mosaic, self.mean = recipe.augment.mosaic, recipe.data.mean
        height, width = recipe.data.shape
        self.canvas = (2 * height, 2 * width)  # so that objects keep their sizes
        super().__init__(data.train, self._augmented, seed=recipe.run.seed, cache=recipe.data.cache)

    def _item(self, picture: Image.Image, index: int) -> tuple[Image.Image, Any, Any, Any]:
        sample: Any = self.samples[index]
        single = ~sample.crowd
        masks = sample.masks()[single] if self.masks else None
        return picture, sample.boxes[single], sample.labels[single], masks

    def _augmented(self, picture: Image.Image, index: int) -> tuple[Tensor, Any]:
        item = self._item(picture, index)
        if self.mosaic and np.random.random() < self.mosaic:
            others = np.random.randint(0, len(self.samples), 3).tolist()
            items = [item, *(self._item(self.picture(other), other) for other in others)]
            item = mosaic(items, self.canvas, self.mean)
        return self.augment(*item)


TASK = DetectTask()
