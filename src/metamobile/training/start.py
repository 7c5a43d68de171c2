"""What a run says and records before its first step: what will be done, where, and what has no effect."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from metamobile.models.create import plain_network
from metamobile.models.emo import EMO, padded_share
from metamobile.tasks import Data, get_task
from metamobile.training.finetune import learning_prefixes
from metamobile.training.progress import Reporter
from metamobile.training.recipe import Recipe
from metamobile.weights.card import current_versions

MOST_PADDED = 0.10  # share of padded tokens above which a run says so


def say_what_will_happen(
    recipe: Recipe, data: Data, model: nn.Module, optimizer: Optimizer, steps: int, reporter: Reporter
) -> None:
    """`steps` are the whole run's."""
    height, width = recipe.data.shape
    measured = replace(recipe.data, size=recipe.data.val_size or recipe.data.size).shape
    larger = "" if measured == (height, width) else f" ({measured[0]}x{measured[1]} to validate)"
    reporter.say(
        f"{recipe.model.name}, {count_parameters(model):,} parameters, {height}x{width} px{larger}; "
        f"{len(data.classes)} classes, {len(data.train):,} pictures to train on, "
        f"{len(data.val):,} to validate ({data.split})"
    )
    run = recipe.run
    reporter.say(
        f"{recipe.schedule.epochs} epochs, {steps:,} steps of {run.batch_size} pictures; "
        f"{recipe.optim.name}, lr {recipe.lr:g}{_scaling(recipe)}; "
        f"{run.precision} on {next(model.parameters()).device}"
    )
    for line in _about_fine_tuning(recipe, model, optimizer):
        reporter.say(line)
    if recipe.ema.enabled:
        reporter.say(f"averaged weights are measured and saved: {_average(recipe, steps)}")
    share = padded_share(plain_network(model), recipe.data.shape)
    if share > MOST_PADDED:
        reporter.say(
            f"{share:.0%} of attention's tokens are padding at this size; "
            "--set model.window_size=auto avoids them"
        )
    for setting in without_effect(recipe, data, model, optimizer, steps):
        reporter.say(f"without effect: {setting}")


def say_where_it_stands(recipe: Recipe, done: int, folder: Path, reporter: Reporter) -> None:
    """For a run that goes on after `done` epochs."""
    epochs = recipe.schedule.epochs
    what = f"going on with epoch {done + 1}" if done < epochs else "a larger --epochs would go on"
    reporter.say(f"{folder}: {done} of {epochs} epochs are done, {what}")


def _scaling(recipe: Recipe) -> str:
    return f" ({recipe.optim.lr:g} per {recipe.optim.lr_per} pictures)" if recipe.optim.lr_per else ""


def _about_fine_tuning(recipe: Recipe, model: nn.Module, optimizer: Optimizer) -> Iterator[str]:
    scales = sorted({group.get("lr_scale", 1.0) for group in optimizer.param_groups})
    if recipe.optim.head_lr != 1:
        yield f"lr {recipe.lr:.3g} for the backbone, {recipe.lr * recipe.optim.head_lr:.3g} for all else"
    elif len(scales) > 1 and recipe.optim.layer_decay is not None:
        yield (
            f"layer decay {recipe.optim.layer_decay:g}: lr {recipe.lr * scales[-1]:.3g} for the head, "
            f"less for each of {len(scales) - 1} layers below, {recipe.lr * scales[0]:.3g} for the first"
        )
    frozen, epochs = recipe.schedule.frozen_epochs, recipe.schedule.epochs
    if frozen:
        names = " and ".join(prefix.rstrip(".") for prefix in learning_prefixes(model))
        when = "in the first epoch" if frozen == 1 else f"in the first {frozen} epochs"
        if frozen >= epochs:
            when = f"in all {epochs} epochs" if epochs > 1 else "in the only epoch"
        yield f"{when} {names} alone learns; all else stays as it was loaded"


def _average(recipe: Recipe, steps: int) -> str:
    """What the average is of when the run ends."""
    decay, grown = recipe.ema.decay, 1 - steps ** (-2 / 3)
    if not recipe.ema.warmup or decay <= grown:
        return f"over some {1 / max(1 - decay, 1e-9):,.0f} steps (decay {decay:g})"
    return (
        f"over the last {1 / (1 - grown):,.0f} steps or so (decay {grown:.4f}; too short a run for {decay:g})"
    )


def without_effect(
    recipe: Recipe, data: Data, model: nn.Module, optimizer: Optimizer, steps: int
) -> Iterator[str]:
    """Settings of the recipe that do nothing here, each with its reason."""
    default = Recipe()
    ema, augment, schedule = recipe.ema, recipe.augment, recipe.schedule
    if not ema.enabled and ema.decay != default.ema.decay:
        yield "ema.decay, as ema.enabled is false"
    if schedule.warmup_steps is not None and schedule.warmup_epochs != default.schedule.warmup_epochs:
        yield "schedule.warmup_epochs, as schedule.warmup_steps is set"
    if getattr(model, "auxiliary", True) is None and recipe.loss.auxiliary != default.loss.auxiliary:
        yield f"loss.auxiliary, as {recipe.model.head} has no auxiliary head"
    warmup = "warmup_epochs" if schedule.warmup_steps is None else "warmup_steps"
    if not getattr(schedule, warmup) and schedule.warmup_lr != default.schedule.warmup_lr:
        yield f"schedule.warmup_lr, as schedule.{warmup} is 0"
    if schedule.name != "poly" and schedule.power != default.schedule.power:
        yield f"schedule.power, as schedule.name is {schedule.name}"
    for place in get_task(recipe.task).ignores:
        section, key = place.split(".")
        if getattr(getattr(recipe, section), key) != getattr(getattr(default, section), key):
            yield f"{place}, as {recipe.task} has no use for it"
    if augment.auto_augment and augment.color_jitter:
        yield "augment.color_jitter, as augment.auto_augment takes its place in timm's transform"
    if "betas" not in optimizer.defaults and recipe.optim.betas != default.optim.betas:
        yield f"optim.betas, as {recipe.optim.name} has none"
    for key in ("weight", "tau", "size"):
        if not recipe.distill.teacher and getattr(recipe.distill, key) != getattr(default.distill, key):
            yield f"distill.{key}, as distill.teacher names none"
    if recipe.model.window_size is not None and not isinstance(plain_network(model), EMO):
        yield f"model.window_size, as {recipe.model.name} has no windows to set"
    if recipe.data.drop_bad and not recipe.data.check and not get_task(recipe.task).drops_unchecked:
        yield "data.drop_bad, as data.check is false"
    for key in ("val_fraction", "seed"):
        if data.own_split and getattr(recipe.data, key) != getattr(default.data, key):
            yield f"data.{key}, as the data have their own validation split"


def start_record(recipe: Recipe, data: Data, model: nn.Module) -> dict[str, Any]:
    """The first line of metrics.jsonl."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(),
        "device": str(next(model.parameters()).device),
        "parameters": count_parameters(model),
        "data": {
            "classes": len(data.classes),
            "train": len(data.train),
            "val": len(data.val),
            "split": data.split,
        },
        "versions": current_versions(),
    }


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def machine() -> str:
    """Processor, cores, graphics card if there is one, and system."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")  # Linux, where Python knows only "x86_64"
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        processor = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), processor)
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(
        [processor, f"{os.cpu_count()} cores", *cards, f"{platform.system()} {platform.release()}"]
    )
