"""What detection and segmentation share in training: the network, the validation data, the worst pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from metamobile.data.loader import TruthDataset
from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.files import aside
from metamobile.models.create import create_model
from metamobile.models.variants import VARIANTS

if TYPE_CHECKING:
    from metamobile.training.recipe import Recipe

# settings of the classifiers' recipes
CLASSIFIERS = (
    *("augment.scale", "augment.ratio", "augment.auto_augment", "augment.color_jitter", "augment.erase"),
    *("augment.mixup", "augment.cutmix", "augment.interpolation", "data.resize", "loss.label_smoothing"),
    *("distill.teacher", "model.drop_rate"),
)
DRAWN = 480  # longer side in pixels of each of the two pictures in a drawing of the worst
GAP = 8


def build_dense(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's detector or segmenter. Errors: ValueError for preprocessing that would cut off a part."""
    settings = recipe.model
    if recipe.data.fit == "crop":
        raise ValueError(
            f"recipe: data.fit is crop, which cuts off what {recipe.task} has to answer for; expected "
            "stretch (to exactly data.size) or inside (as large as fits into data.size)"
        )
    args: dict[str, Any] = dict(settings.args)
    if settings.drop_path_rate is not None:
        args["drop_path_rate"] = settings.drop_path_rate
    if timm.models.get_arch_name(settings.name) in VARIANTS and settings.window_size is not None:
        args |= {"window_size": settings.window_size, "img_size": recipe.data.shape}
    if settings.norm_eval:
        args["norm_eval"] = True
    if settings.frozen_stages:
        args["frozen_stages"] = settings.frozen_stages
    return create_model(settings.name, task=recipe.task, head=settings.head, num_classes=num_classes, **args)


def validation_dataset(samples: Sequence[Any], recipe: Recipe, record: Preprocess) -> TruthDataset:
    """Item i: pixels (3, h, w), and i with the picture's width and height as a tensor."""
    return TruthDataset(samples, partial(_prepare, record), cache=recipe.data.cache)


def _prepare(record: Preprocess, picture: Image.Image, index: int) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(preprocess(picture, record)), torch.tensor([index, *picture.size])


def stack(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Any, Tensor]:
    """Pictures (B, 3, h, w), or a list of them where their sizes differ; targets stacked."""
    pictures, targets = zip(*items, strict=True)
    same = len({picture.shape for picture in pictures}) == 1
    return torch.stack(pictures) if same else list(pictures), torch.stack(targets)


def draw_worst(
    worst: Sequence[tuple[int, Any, float]],
    samples: Sequence[Any],
    names: Sequence[str],
    folder: Path,
    results: Any,
) -> list[dict[str, Any]]:
    """Draw the truth at left and the answer at right of each into folder/worst; what the report is told."""
    entries = []
    for rank, (index, answer, score) in enumerate(worst):
        sample = samples[index]
        picture = read_picture(sample.path)
        truth = results.truth_of(sample, names)
        drawing = Path("worst") / f"{rank:02}.jpg"
        with aside(folder / drawing) as path:
            beside(results.draw(picture, truth), results.draw(picture, answer)).save(path, "JPEG", quality=88)
        entries.append(
            {
                "path": str(sample.path),
                "drawing": str(drawing),
                "truth": results.in_words(truth),
                "predicted": results.in_words(answer),
                "score": score,
                "note": results.SCORE_NOTE,
            }
        )
    return entries


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Both on one sheet, the longer side of each at most `DRAWN` pixels."""
    for picture in (left, right):
        picture.thumbnail((DRAWN, DRAWN * 2))
    sheet = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet
