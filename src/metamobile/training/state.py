"""Exact state of a run at an epoch's end, written aside and then renamed, so that a kill loses nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.utils import ModelEmaV3


@dataclass
class Progress:
    """Where a run stands; saved with its state. `epoch` counts finished epochs, `step` optimiser steps;
    `best` is the main figure of `best_epoch`."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    best_epoch: int = 0
    steps_per_epoch: int = 0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class AverageState:
    """The averaged weights in the form that Accelerate saves."""

    def __init__(self, average: ModelEmaV3) -> None:
        self.average = average

    def state_dict(self) -> dict[str, Any]:
        return self.average.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.module.load_state_dict(state)


def save_state(accelerator: Accelerator, folder: Path) -> None:
    """Model, average, optimiser and progress, whole or not at all; nothing else decides how a run goes on."""
    aside, old = folder.with_name(".last.part"), folder.with_name(".last.old")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path) -> None:
    """Errors: ValueError when there is nothing to go on from."""
    old = folder.with_name(".last.old")
    if not folder.is_dir() and old.is_dir():  # killed between two renames
        old.rename(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder.parent}: no state to go on from (no {folder.name}/); train again with --overwrite"
        )
    accelerator.load_state(str(folder))
