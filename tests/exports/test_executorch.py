"""ExecuTorch files."""

from __future__ import annotations

import logging
import subprocess
import sys
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
from metamobile.deploy import executorch_int8
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


class Uneven(nn.Module):
    """Between its first two layers, one channel is a thousand times the others and of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.rest = nn.Sequential(
            nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
        )
        self.last = nn.Linear(64, 4)
        with torch.no_grad():
            self.first.weight[0] *= 1000
            self.second.weight[:, 0] = 0
            self.rest[2].weight.copy_(torch.randn(64, 64) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x.flatten(2)[..., :4]))
        return self.last(self.rest(y).relu().mean(1))


@pytest.fixture
def half_a_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights may stay: in networks as small as these, a layer is a larger share than in real ones."""
    monkeypatch.setattr(executorch_int8, "KEPT_WEIGHTS", 0.005)


@pytest.mark.usefixtures("half_a_percent")
def test_the_layers_that_lose_most_stay_in_single_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Uneven().eval()
    pictures = write_pictures(tmp_path / "pictures", 6)
    pixels = [torch.from_numpy(preprocess(read_picture(path), CARD.preprocess)[None]) for path in pictures]
    prepared = executorch_int8.prepare(torch.export.export(network, (pixels[0],)))
    with torch.no_grad():
        for one in pixels:
            prepared(one)
    losses, sizes = executorch_int8.measure(prepared, pixels), executorch_int8.sizes_of(prepared)
    first, second, *rest = losses
    assert list(sizes.values()) == [16, 16, 256, 4096, 4096, 256]
    assert min(losses[first], losses[second]) > 20 * max(losses[name] for name in rest)
    assert executorch_int8.layers_to_keep(losses, sizes) == {first, second}

    executorch.write(network, CARD, tmp_path / "a.pte", Options("int8", calibration=pictures))
    found = executorch.open_file(tmp_path / "a.pte").run(torch.cat(pixels).numpy())
    with torch.no_grad():
        expected = network(torch.cat(pixels)).numpy()
    assert 1e-4 < np.abs(found - expected).max() / np.abs(expected).max() < 0.1


@pytest.mark.usefixtures("half_a_percent")
def test_no_more_stay_than_the_size_allows() -> None:
    losses = {"a": 9.0, "b": 5.0, "c": 1.0, "d": 0.1}
    assert executorch_int8.layers_to_keep(losses, {"a": 6, "b": 3, "c": 1, "d": 990}) == {"b", "c"}
    assert executorch_int8.layers_to_keep(losses, {"a": 6, "b": 6, "c": 6, "d": 6}) == set()


THREADS = """
import os, sys, logging
logging.basicConfig(format="%(message)s")
from metamobile.deploy.runtimes import open_runtime
from executorch.extension.pybindings import portable_lib
for count in ("1", "1", "2"):
    os.environ["METAMOBILE_THREADS"] = count
    runtime = open_runtime(sys.argv[1])
    runtime.run(__import__("numpy").zeros((1, 3, 8, 8), "float32"))
    print(portable_lib._threadpool_get_thread_count())
"""


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executorch.write(little(), CARD, tmp_path / "a.pte")
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(tmp_path / "a.pte")], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["1", "1", "1"], done.stderr
    assert done.stderr.count("METAMOBILE_THREADS=2 comes too late: ExecuTorch has 1 threads since its") == 1
    monkeypatch.setenv("METAMOBILE_THREADS", "two")
    with pytest.raises(ValueError, match="METAMOBILE_THREADS is 'two'; expected a number"):
        executorch.open_file(tmp_path / "a.pte")
