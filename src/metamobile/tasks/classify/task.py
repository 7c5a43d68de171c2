"""Classification for the training loop: a folder of class folders, a classifier, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor, nn

from metamobile.data.folder import FolderData, class_names, open_folder
from metamobile.data.inspect import Inspection, inspect_folder
from metamobile.data.loader import PictureDataset
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.models.create import create_model
from metamobile.models.variants import VARIANTS
from metamobile.tasks.classify.distill import Teacher, load_teacher, soft_distillation
from metamobile.tasks.classify.results import Metric

if TYPE_CHECKING:
    from metamobile.training.recipe import Recipe


def _to_tensor(record: Preprocess, picture: Image.Image) -> Tensor:
    return torch.from_numpy(preprocess(picture, record))


class ClassifyLoss:
    """Cross-entropy with smoothed labels, with Mixup or CutMix if the recipe has them, plus distillation.

    `loss(forward, pictures, targets)` -> (scalar, logits); `about` says what it adds to plain cross-entropy.
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

    def __call__(
        self, forward: Callable[[Tensor], Tensor], pictures: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.mixup is not None:
            pictures, targets = self.mixup(pictures, targets)
        logits = forward(pictures).float()
        # targets are class numbers, or after Mixup shares of each class, already smoothed
        smoothing = self.smoothing if self.mixup is None else 0.0
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self.teacher is not None:
            answers = self.teacher.to(pictures.device)(pictures)
            loss = loss + self.weight * soft_distillation(logits, answers, self.tau)
        return loss, logits


class ClassifyTask:
    """See `metamobile.tasks.Task`."""

    name = "classify"
    main_figure = "top1"

    def check_data(self, recipe: Recipe, progress: Callable[[int, int], None]) -> Inspection:
        return inspect_folder(recipe.data.path, workers=recipe.run.workers, progress=progress)

    def open_data(self, recipe: Recipe, exclude: Collection[Path] = ()) -> FolderData:
        data = recipe.data
        return open_folder(data.path, val_fraction=data.val_fraction, seed=data.seed, exclude=exclude)

    def class_names(self, classes: Sequence[str]) -> list[str]:
        return class_names(classes)

    def build_model(self, recipe: Recipe, num_classes: int) -> nn.Module:
        settings = recipe.model
        args: dict[str, Any] = {"drop_rate": settings.drop_rate, **settings.args}
        if settings.drop_path_rate is not None:
            args["drop_path_rate"] = settings.drop_path_rate
        if settings.window_size is not None and timm.models.get_arch_name(settings.name) in VARIANTS:
            args |= {"window_size": settings.window_size, "img_size": recipe.data.shape}
        elif _has_fixed_size(settings.name):
            args["img_size"] = recipe.data.shape
        return create_model(settings.name, num_classes=num_classes, **args)

    def train_dataset(self, data: FolderData, recipe: Recipe) -> PictureDataset:
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

    def make_loss(self, recipe: Recipe, classes: Sequence[str]) -> ClassifyLoss:
        teacher, distill = None, recipe.distill
        if distill.teacher:
            data = recipe.data
            student = Preprocess(data.shape, mean=tuple(data.mean), std=tuple(data.std))  # type: ignore[arg-type]
            teacher = load_teacher(distill.teacher, classes, student, distill.size)
        return ClassifyLoss(recipe, len(classes), teacher)

    def make_metric(self, names: Sequence[str]) -> Metric:
        return Metric(names)

    def worst(
        self, outputs: Tensor, data: FolderData, names: Sequence[str], most: int = 24
    ) -> list[dict[str, Any]]:
        scores = outputs.softmax(dim=1)
        targets = torch.tensor([s.target for s in data.val])
        losses = F.cross_entropy(outputs, targets, reduction="none")
        wrong = [i for i in losses.argsort(descending=True).tolist() if scores[i].argmax() != targets[i]]
        return [
            {
                "path": str(data.val[i].path),
                "truth": names[data.val[i].target],
                "predicted": names[int(scores[i].argmax())],
                "score": float(scores[i].max()),
            }
            for i in wrong[:most]
        ]


def _has_fixed_size(name: str) -> bool:
    """Whether timm builds this network for one picture size, as it does a plain ViT."""
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)
