"""Classification for the training loop: a folder of class folders, a classifier, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor, nn

from metamobile.data.folder import FolderData
from metamobile.data.loader import PictureDataset
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.errors import NotFinite
from metamobile.models.create import create_model
from metamobile.models.variants import VARIANTS
from metamobile.tasks.classify import data as data_module
from metamobile.tasks.classify import results as results_module
from metamobile.tasks.classify.distill import Teacher, load_teacher, soft_distillation
from metamobile.tasks.classify.metric import Metric

if TYPE_CHECKING:
    from metamobile.tasks import Data
    from metamobile.training.recipe import Recipe


def _to_tensor(record: Preprocess, picture: Image.Image) -> Tensor:
    return torch.from_numpy(preprocess(picture, record))


class ClassifyLoss:
    """Cross-entropy with smoothed labels, with Mixup or CutMix if the recipe has them, plus distillation.

    `loss(forward, pictures, targets)` -> a scalar; `about` says what it adds to plain cross-entropy.
    """

    def __init__(self, recipe: Recipe, num_classes: int, teacher: Teacher | None = None) -> None:
        augment = recipe.augment
        self.smoothing = recipe.loss.label_smoothing
        self.mixup: Mixup | None = None
        if augment.mixup > 0 or augment.cutmix > 0:
            self.mixup = Mixup(
                augment.mixup, augment.cutmix, label_smoothing=self.smoothing, num_classes=num_classes
            )
        self.teacher = teacher
        self.weight, self.tau = recipe.distill.weight, recipe.distill.tau
        self.about = ""
        if teacher is not None:
            height, width = teacher.size
            self.about = (
                f"learning from {recipe.distill.teacher} too, at {height}x{width} px: "
                f"{self.weight:g} times its divergence, temperature {self.tau:g}"
            )

    def __call__(self, forward: Callable[[Tensor], Tensor], pictures: Tensor, targets: Tensor) -> Tensor:
        if self.mixup is not None:
            pictures, targets = self.mixup(pictures, targets)
        logits = forward(pictures).float()
        # targets are class numbers, or after Mixup shares of each class, already smoothed
        smoothing = self.smoothing if self.mixup is None else 0.0
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self.teacher is not None:
            answers = self.teacher.to(pictures.device)(pictures)
            loss = loss + self.weight * soft_distillation(logits, answers, self.tau)
        return loss


class ClassifyTask:
    """See `metamobile.tasks.Task`."""

    name = "classify"
    recipe = "small-data"
    heads = ()
    drops_unchecked = False
    data = data_module
    results = results_module
    collate = None
    ignores = (
        *("model.norm_eval", "model.frozen_stages", "data.classes", "data.ignore"),
        *(f"augment.{key}" for key in ("photometric", "expand", "iou_crop", "mosaic", "resize", "crop_most")),
        *("loss.auxiliary", "loss.class_weights"),
    )

    def build_model(self, recipe: Recipe, num_classes: int) -> nn.Module:
        settings = recipe.model
        args: dict[str, Any] = {"drop_rate": settings.drop_rate, **settings.args}
        if settings.drop_path_rate is not None:
            args["drop_path_rate"] = settings.drop_path_rate
        if settings.window_size is not None and timm.models.get_arch_name(settings.name) in VARIANTS:
            args |= {"window_size": settings.window_size, "img_size": recipe.data.shape}
        elif _has_fixed_size(settings.name):
            args["img_size"] = recipe.data.shape
        if recipe.data.fit != "crop":
            raise ValueError(f"recipe: data.fit is {recipe.data.fit}; a classifier's is crop")
        return create_model(settings.name, head=settings.head, num_classes=num_classes, **args)

    def train_dataset(self, data: FolderData, recipe: Recipe, record: Preprocess) -> PictureDataset:
        augment = recipe.augment
        try:
            transform = create_transform(
                recipe.data.shape,
                is_training=True,
                scale=(augment.scale[0], augment.scale[1]),
                ratio=(augment.ratio[0], augment.ratio[1]),
                hflip=augment.hflip,
                color_jitter=augment.color_jitter,
                auto_augment=augment.auto_augment,
                interpolation=augment.interpolation,
                mean=tuple(recipe.data.mean),
                std=tuple(recipe.data.std),
                re_prob=augment.erase,
            )
        except AssertionError as error:  # timm's answer to a notation it does not know
            raise ValueError(
                f"recipe: augment.auto_augment is {augment.auto_augment!r}; expected timm's notation, "
                "such as rand-m9-mstd0.5-inc1, augmix-m3-w3 or 3a"
            ) from error
        side = round(1.25 * max(recipe.data.shape)) if recipe.data.cache else None
        return PictureDataset(data.train, transform, seed=recipe.run.seed, cache_side=side)

    def val_dataset(self, data: FolderData, recipe: Recipe, record: Preprocess) -> PictureDataset:
        # kept at the side that preprocessing resizes to, so that the cache changes nothing
        side = record.shorter_side if recipe.data.cache else None
        return PictureDataset(
            data.val, partial(_to_tensor, record), cache_side=side, interpolation=record.interpolation
        )

    def make_loss(self, recipe: Recipe, data: Data) -> ClassifyLoss:
        teacher, distill = None, recipe.distill
        if distill.teacher:
            settings = recipe.data
            student = Preprocess(settings.shape, mean=tuple(settings.mean), std=tuple(settings.std))  # type: ignore[arg-type]
            teacher = load_teacher(distill.teacher, data.classes, student, distill.size)
        return ClassifyLoss(recipe, len(data.classes), teacher)

    def answer(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, names: Sequence[str]
    ) -> list[tuple[Any, int]]:
        """Logits and the true class of each picture. Errors: NotFinite."""
        logits = model(inputs).float().cpu()
        if not torch.isfinite(logits).all():
            raise NotFinite("the network's output is not finite")
        return list(zip(logits.numpy(), targets.tolist(), strict=True))

    def worst(
        self, metric: Metric, data: FolderData, names: Sequence[str], most: int, folder: Path
    ) -> list[dict[str, Any]]:
        found = metric.worst(most)
        return [
            {
                "path": str(data.val[place].path),
                "truth": names[data.val[place].target],
                "predicted": names[named],
                "score": score,
            }
            for place, named, score in found
        ]


def _has_fixed_size(name: str) -> bool:
    """Whether timm builds this network for one picture size, as it does a plain ViT."""
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


TASK = ClassifyTask()
