"""Trainings of seconds, interrupted and compared, for the tests of what a run does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from metamobile.training.loop import Loop
from metamobile.training.train import Run, train
from metamobile.weights.file import load_weights

EPOCHS = 4
# Mixup draws from NumPy, drop path from torch, the augmentation from Python: all three must go on alike.
SETTINGS = ("run.log_every=1", "augment.mixup=0.2", "model.drop_path_rate=0.2", "schedule.warmup_epochs=1")
# A network of six blocks, for what does not hang on its size.
TINY_ARGS: dict[str, Any] = {"depths": [1, 1, 2, 2], "dims": [8, 8, 16, 16], "head_dims": [8, 8, 8, 8]}


def run_training(pictures: Path, out: Path, *settings: str, **changed: Any) -> Run:
    arguments: dict[str, Any] = {
        "epochs": EPOCHS,
        "size": 32,
        "batch_size": 16,
        "workers": 0,
        "device": "cpu",
    }
    arguments |= changed
    return train("emo_1m", pictures, out=out, set=[*SETTINGS, *settings], quiet=True, **arguments)


def metrics(folder: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def assert_same_run(folder: Path, other: Path) -> None:
    """The weights, averaged and raw, and the optimiser's memory and rates, bit for bit."""
    for name in ("model.safetensors", "last.safetensors"):
        ours, theirs = load_weights(folder / name)[0], load_weights(other / name)[0]
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    optimizers = [torch.load(f / "last" / "optimizer.bin") for f in (folder, other)]
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    states = [optimizer["state"] for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    for i, state in states[0].items():
        assert all(torch.equal(value, states[1][i][key]) for key, value in state.items())
    raw = [(f / "last" / "model.safetensors").read_bytes() for f in (folder, other)]
    assert raw[0] == raw[1]


def interrupt_after(
    epoch: int, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals = signal.SIGINT
) -> None:
    """The signal arrives when that epoch is done, so the next one has begun when it is heeded."""
    finish = Loop._finish_epoch

    def finish_and_interrupt(self: Loop, line: dict, figures: dict) -> None:
        finish(self, line, figures)
        if line["epoch"] == epoch:
            os.kill(os.getpid(), sign)

    monkeypatch.setattr(Loop, "_finish_epoch", finish_and_interrupt)
