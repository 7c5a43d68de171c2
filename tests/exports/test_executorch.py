"""ExecuTorch files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("executorch")

from format_tests import FormatTests

from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.deploy.formats import Options, executorch
from metamobile.deploy.gate import GateResult
from metamobile.weights.card import Card
from small_model import write_pictures


class TestExecuTorch(FormatTests):
    format = "executorch"
    without_torch = False  # its runtime for Python is given and gives tensors

    def test_a_short_file_does_not_end_the_process(self, gate: GateResult, tmp_path: Path) -> None:
        """Weights are mapped to memory: one that is missing would be found by the system, not by Python."""
        content = gate.path.read_bytes()
        cut = tmp_path / "cut.pte"
        for length in (0, 20, 5000, len(content) // 2, len(content) - 1):
            cut.write_bytes(content[:length])
            with pytest.raises(ValueError, match="truncated|not an ExecuTorch file"):
                executorch.open_file(cut)


class Little(nn.Module):
    """A convolution, a normed linear layer and attention between places: (B, 3, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).relu().flatten(2).transpose(1, 2)
        y = self.linear(self.norm(y))
        y = (y @ y.transpose(-2, -1) / 32).softmax(-1) @ y
        return self.head(y.mean(1))


CARD = Card("emo_1m", {}, classes=list("abcd"), preprocess=Preprocess(size=(8, 8)))


def little() -> nn.Module:
    torch.manual_seed(0)
    return Little().eval()


def test_no_heavy_operator_is_left_over(tmp_path: Path, caplog: Any) -> None:
    executorch.write(little(), CARD, tmp_path / "a.pte")
    assert "XNNPACK" not in caplog.text


def test_a_left_over_operator_is_told(tmp_path: Path, caplog: Any) -> None:
    class Double(nn.Module):  # XNNPACK has no float64
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.double().flatten(2)
            return (y @ y.transpose(1, 2)).float().flatten(1)

    with caplog.at_level(logging.WARNING):
        executorch.write(Double(), CARD, tmp_path / "a.pte")
    assert "XNNPACK did not take 1 bmm; they run many times slower" in caplog.text


def test_int8(tmp_path: Path) -> None:
    network = little()
    pictures = write_pictures(tmp_path / "pictures", 6)
    executorch.write(network, CARD, tmp_path / "a.pte", Options("int8", calibration=pictures))
    pixels = np.stack([preprocess(read_picture(path), CARD.preprocess) for path in pictures])
    found = executorch.open_file(tmp_path / "a.pte").run(pixels)
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels)).numpy()
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-4 < difference < 0.1  # it is in eight bits, and near


def test_int8_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration pictures"):
        executorch.write(little(), CARD, tmp_path / "a.pte", Options("int8"))
