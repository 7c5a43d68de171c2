"""What is checked of a recipe before a run begins, each fault in one line."""

from __future__ import annotations

from dataclasses import replace

from timm.optim import list_optimizers
from torch import nn

from metamobile.data.preprocess import Preprocess
from metamobile.errors import nearest
from metamobile.models.create import check_name
from metamobile.tasks import get_task
from metamobile.training.recipe import Recipe
from metamobile.training.runfolder import RunFolder
from metamobile.training.state import Progress
from metamobile.weights.find import SHIPPED


def check_settings(recipe: Recipe) -> None:
    """Before any picture is read. Errors: ValueError for a network or an optimiser that does not exist,
    for a head where the task has none, and for a frozen network without weights."""
    check_name(recipe.model.name)
    if recipe.model.head is not None and not get_task(recipe.task).heads:
        raise ValueError(
            f"recipe: model.head is {recipe.model.head!r}, but the task is {recipe.task}, which has no "
            "heads; expected --task detect or segment, or no head"
        )
    known = [str(name) for name in list_optimizers()]
    if recipe.optim.name not in known:
        raise ValueError(
            f"recipe: optim.name is {recipe.optim.name!r}; expected adamw, sgd, lion or another of timm's"
            + nearest(recipe.optim.name, known)
        )
    if recipe.model.qat and not recipe.model.pretrained:
        raise ValueError(
            "recipe: model.qat is true, but model.pretrained names no weights, and rounding comes last in a "
            "training; expected --qat MODEL, with a run or weights to go on from"
        )
    for key in ("norm_eval", "frozen_stages"):
        if getattr(recipe.model, key) and not recipe.model.pretrained:
            raise ValueError(
                f"recipe: model.{key} keeps a part of the backbone as it is, but model.pretrained names no "
                f"weights; expected weights (such as --set model.pretrained={next(iter(SHIPPED))}), or "
                f"--set model.{key}={str(getattr(Recipe().model, key)).lower()}"
            )
    if recipe.schedule.frozen_epochs and not recipe.model.pretrained:
        raise ValueError(
            f"recipe: schedule.frozen_epochs is {recipe.schedule.frozen_epochs}, but model.pretrained names "
            "no weights, and a frozen network of random weights is of no use; expected weights "
            f"(such as --set model.pretrained={next(iter(SHIPPED))}) or 0"
        )
    preprocess_record(recipe)


def check_batch(recipe: Recipe, model: nn.Module, processes: int) -> None:
    """Errors: ValueError for a batch whose share of a process is too small for the network's norms."""
    least = getattr(model, "least_batch", 1) * processes
    if recipe.run.batch_size < least:
        each = f" on {processes} processes" if processes > 1 else ""
        name = recipe.model.head or recipe.model.name
        raise ValueError(
            f"recipe: run.batch_size is {recipe.run.batch_size}; {name} needs {least} or more{each} in "
            f"training, for a norm over one position: --set run.batch_size={least}"
        )


def check_resumed(progress: Progress, steps_per_epoch: int, recipe: Recipe, folder: RunFolder) -> None:
    """Errors: ValueError for a run whose data are not what they were, or that would end unmeasured."""
    if progress.steps_per_epoch != steps_per_epoch:
        raise ValueError(
            f"{folder.path}: its data have changed: {progress.steps_per_epoch} steps an epoch then, "
            f"{steps_per_epoch} now; put the pictures back, or train anew, from these weights with "
            f"--set model.pretrained={folder.path}"
        )
    if progress.epoch >= recipe.schedule.epochs and not progress.best_epoch:
        raise ValueError(
            f"{folder.path}: {progress.epoch} epochs are done and none is measured yet; expected --epochs of "
            f"at least {progress.epoch + 1}, as a run measures its last one"
        )


def preprocess_record(recipe: Recipe) -> Preprocess:
    data = recipe.data
    size = replace(data, size=data.val_size or data.size).shape
    mean, std = tuple(data.mean), tuple(data.std)
    return Preprocess(size, data.resize, data.interpolation, mean, std, data.fit)  # type: ignore[arg-type]
