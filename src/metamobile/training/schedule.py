"""The learning rate of each optimiser step, by timm's schedulers."""

from __future__ import annotations

from typing import Any, Protocol

from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler

from metamobile.training.progress import Reporter
from metamobile.training.recipe import Recipe


class Schedule(Protocol):
    """Sets the rate of every group of the optimiser for a step, times the group's "lr_scale" if it has one.

    Without state: the rates are a function of `step` alone, counted from 0 over the whole run.
    """

    def step_update(self, step: int) -> None: ...


def warmup_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Optimiser steps of the warm-up."""
    schedule = recipe.schedule
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round(schedule.warmup_epochs * steps_per_epoch)


def fit_warmup(recipe: Recipe, steps_per_epoch: int, reporter: Reporter) -> Recipe:
    """A warm-up as long as the run would never reach the learning rate: a tenth of the run then."""
    schedule = recipe.schedule
    if warmup_steps(recipe, steps_per_epoch) < schedule.epochs * steps_per_epoch:
        return recipe
    if schedule.warmup_steps is not None:
        shorter = schedule.epochs * steps_per_epoch // 10
        reporter.say(f"schedule.warmup_steps {schedule.warmup_steps} would take the whole run; now {shorter}")
        return recipe.replace({"schedule.warmup_steps": shorter})
    tenth = schedule.epochs / 10
    reporter.say(
        f"schedule.warmup_epochs {schedule.warmup_epochs:g} would take all {schedule.epochs} epochs; "
        f"shortened to {tenth:g}"
    )
    return recipe.replace({"schedule.warmup_epochs": tenth})


def make_schedule(optimizer: Any, recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """The recipe's schedule over all its epochs; the groups' rates are those of step 0 then."""
    schedule = recipe.schedule
    steps = max(1, schedule.epochs * steps_per_epoch)
    warm = warmup_steps(recipe, steps_per_epoch)
    warmup: dict[str, Any] = {"warmup_t": warm, "warmup_lr_init": schedule.warmup_lr, "t_in_epochs": False}
    lowest = schedule.min_lr
    if schedule.name == "flat_cosine":
        flat = max(steps // 2, warm)
        # the one made last sets the rates of step 0
        cosine = CosineLRScheduler(optimizer, max(1, steps - flat), lr_min=lowest, t_in_epochs=False)
        constant = StepLRScheduler(optimizer, decay_t=steps, decay_rate=1.0, **warmup)
        return FlatCosine(flat, constant, cosine)
    if schedule.name == "poly":
        return PolyLRScheduler(optimizer, steps, power=schedule.power, lr_min=lowest, **warmup)
    return CosineLRScheduler(optimizer, steps, lr_min=lowest, **warmup)


class FlatCosine:
    """A constant rate, with its warm-up, for `flat` steps, then a cosine that begins at its step 0.

    timm has this in one, `WSDLRScheduler`, but only in its newest versions.
    Source: the dense tasks' configurations of EMOv2 (arXiv 2412.06674).
    """

    def __init__(self, flat: int, constant: Schedule, cosine: Schedule) -> None:
        self.flat, self.constant, self.cosine = flat, constant, cosine

    def step_update(self, step: int) -> None:
        if step < self.flat:
            self.constant.step_update(step)
        else:
            self.cosine.step_update(step - self.flat)
