"""What holds of every format: one tester that the tests of each format inherit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import metamobile
from metamobile.deploy.export import export
from metamobile.deploy.formats import FORMATS, get_format
from metamobile.deploy.gate import GateResult
from metamobile.deploy.preprocessing import is_scaled
from metamobile.deploy.runtimes import TorchRuntime, open_runtime
from metamobile.models.create import create_model, resolved_args
from metamobile.weights.file import save_weights
from metamobile.weights.network import load_network
from small_dense import make_dense_run
from small_model import make_card, make_network, make_run, write_pictures
from usage_code import code, run_on

RUN_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import metamobile_cli  # as the command: it needs no torch for an exported file
import numpy as np
from metamobile.deploy.runtimes import open_runtime
runtime = open_runtime(sys.argv[1])
height, width = runtime.card.preprocess.size
print(runtime.run(np.zeros((1, 3, height, width), np.float32)).shape)
"""

USED = 3  # pictures that the code of USE.md is run on; it opens the file for each


def blobs(count: int, height: int, width: int) -> np.ndarray:
    """Smooth noise (count, 3, height, width), as far from pictures as normalised ones are."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    return nn.functional.interpolate(noise, size=(height, width), mode="bilinear").numpy()


def use(path: Path, folder: Path) -> list[str]:
    """What the Python of USE.md beside a file prints for the pictures of a folder."""
    page = (path.parent / "USE.md").read_text("utf-8")
    start, end = (f"<!-- {mark}{path.name} -->" for mark in ("", "end of "))
    section = page.split(start)[1].split(end)[0]
    return run_on(code(section, "python"), sorted(folder.iterdir())[:USED], path.parent)


class FormatTests:
    """Subclasses set `format`; `heads` are the dense ones that it can export, `without_torch` whether its
    runtime needs no torch."""

    format: str
    heads: tuple[str, ...] = ("deeplabv3", "ssdlite", "retinanet")
    without_torch = True

    @pytest.fixture(scope="class")
    @staticmethod
    def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_pictures(tmp_path_factory.mktemp("pictures"), 9)[0].parent

    @pytest.fixture(scope="class")
    @staticmethod
    def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_run(tmp_path_factory.mktemp("runs") / "insects")

    @pytest.fixture(scope="class")
    @classmethod
    def gate(cls, run: Path, pictures: Path) -> GateResult:
        return cls.export(run, pictures)

    @classmethod
    def export(cls, run: Path, pictures: Path, **settings: Any) -> GateResult:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("metamobile.deploy.gate.PICTURES", 9)
            (gate,) = export(run, cls.format, verify=pictures, **settings)
        return gate

    def test_a_classifier_passes_its_gate(self, run: Path, gate: GateResult) -> None:
        assert gate.passed, gate.problems
        suffix = FORMATS[self.format].suffix
        assert gate.path == run / f"model{suffix}"
        assert [row.batch_size for row in gate.rows] == [1, 3, 8]
        assert not [path for path in run.iterdir() if ".part" in path.name]

    def test_the_card_is_in_the_file(self, gate: GateResult) -> None:
        assert open_runtime(gate.path).card == make_card(make_network())

    def test_use_md_names_what_predict_names(self, gate: GateResult, pictures: Path) -> None:
        expected = [result.labels[0] for result in metamobile.predict(gate.path, pictures).results]
        assert use(gate.path, pictures) == expected[:USED]
        assert len(set(expected[:USED])) > 1

    def test_scaling_and_normalisation_in_the_file(
        self, run: Path, pictures: Path, tmp_path: Path, caplog: Any
    ) -> None:
        if "preprocessing" in FORMATS[self.format].can:
            pytest.skip(f"{self.format} has all preprocessing in the file")
        gate = self.export(run, pictures, out=tmp_path, with_preprocessing=True)
        assert gate.passed, gate.problems
        assert gate.path == tmp_path / f"insects.scaled{FORMATS[self.format].suffix}"
        assert caplog.text.count("scaling and normalisation alone") == 1
        assert is_scaled(open_runtime(gate.path).card)
        expected = [result.labels[0] for result in metamobile.predict(run, pictures).results]
        assert [one.labels[0] for one in metamobile.predict(gate.path, pictures).results] == expected
        assert use(gate.path, pictures) == expected[:USED]

    def test_any_batch_size(self, run: Path, gate: GateResult) -> None:
        runtime, reference = open_runtime(gate.path), TorchRuntime(*load_network(run))
        pixels = blobs(5, 64, 64)
        expected = reference.run(pixels)
        for size in (1, 2, 5):
            found = runtime.run(pixels[:size])
            assert found.shape == (size, 3)
            np.testing.assert_allclose(found, expected[:size], atol=1e-4 * np.abs(expected).max())

    def test_another_picture_size_is_one_line(self, gate: GateResult) -> None:
        with pytest.raises(ValueError, match=r"cannot run on \(1, 3, 32, 32\)") as error:
            open_runtime(gate.path).run(np.zeros((1, 3, 32, 32), np.float32))
        assert "\n" not in str(error.value)

    def test_emov2_at_an_odd_size(self, pictures: Path, tmp_path: Path) -> None:
        """Padded windows, both cuts, not square."""
        torch.manual_seed(0)
        network = create_model("emov2_1m", num_classes=3, window_size=3).train()
        with torch.no_grad():
            network(torch.from_numpy(blobs(8, 64, 96)))
        card = replace(make_card(network), variant="emov2_1m", model_args=resolved_args(network))
        path = tmp_path / "v2.safetensors"
        save_weights(path, network.eval().state_dict(), card)
        gate = self.export(path, pictures, size=(72, 104))
        assert gate.passed, gate.problems

    @pytest.mark.parametrize("head", ["deeplabv3", "ssdlite", "retinanet"])
    def test_dense_heads(self, head: str, pictures: Path, tmp_path: Path) -> None:
        if head not in self.heads:
            pytest.skip(f"{self.format} does not take {head}")
        gate = self.export(make_dense_run(tmp_path / head, head), pictures)
        assert gate.passed, gate.problems
        assert head == "deeplabv3" or gate.boxes > 9
        if gate.executed:
            use(gate.path, pictures)

    def test_a_file_that_fails_is_marked(
        self, run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        module = get_format(self.format)
        write = module.write

        class Flipped(nn.Module):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.network(x.flip(1))

        monkeypatch.setattr(module, "write", lambda network, *rest: write(Flipped(network), *rest))
        gate = self.export(run, pictures, out=tmp_path / "gone")
        assert not gate.passed and list((tmp_path / "gone").iterdir()) == []
        gate = self.export(run, pictures, out=tmp_path / "kept", keep=True)
        assert gate.path.name == f"insects.unverified{FORMATS[self.format].suffix}"
        caplog.clear()
        open_runtime(gate.path)
        assert "failed its gate: batch 1: logits differ by" in caplog.text

    def test_a_truncated_file_is_one_line(self, gate: GateResult, tmp_path: Path) -> None:
        whole = gate.path
        cut = tmp_path / whole.name
        if whole.is_dir():
            shutil.copytree(whole, cut)
            largest = max((p for p in cut.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:-5000])
        else:
            cut.write_bytes(whole.read_bytes()[:-5000])
        with pytest.raises(ValueError) as error:
            open_runtime(cut).run(blobs(1, 64, 64))
        assert str(cut) in str(error.value) and "\n" not in str(error.value)

    def test_it_runs_without_torch(self, gate: GateResult) -> None:
        if not self.without_torch:
            pytest.skip(f"{FORMATS[self.format].runtime} brings torch itself")
        done = subprocess.run(
            [sys.executable, "-c", RUN_WITHOUT_TORCH, str(gate.path)], capture_output=True, text=True
        )
        assert done.stdout.strip().endswith("(1, 3)"), done.stderr
