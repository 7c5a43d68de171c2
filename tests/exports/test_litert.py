"""LiteRT files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("litert_torch")

from format_tests import FormatTests, blobs

from metamobile.deploy.formats import litert
from metamobile.deploy.gate import GateResult
from metamobile.deploy.runtimes import open_runtime


class TestLiteRT(FormatTests):
    format = "litert"

    @pytest.mark.parametrize(("bits", "size", "difference"), [(16, 0.55, 2e-2), (8, 0.32, 0.2)])
    def test_small_weights(
        self, gate: GateResult, tmp_path: Path, bits: int, size: float, difference: float
    ) -> None:
        """From the file that is there, as converting takes long."""
        whole = gate.path.read_bytes()
        path = tmp_path / "small.tflite"
        path.write_bytes(litert._small_weights(whole, bits))
        assert path.stat().st_size < size * len(whole)
        with zipfile.ZipFile(path, "a") as archive, zipfile.ZipFile(gate.path) as old:
            archive.writestr(litert.CARD_FILE, old.read(litert.CARD_FILE))
        pixels = blobs(4, 64, 64)
        expected, found = open_runtime(gate.path).run(pixels), open_runtime(path).run(pixels)
        assert 0 < np.abs(found - expected).max() < difference * np.abs(expected).max()

    def test_threads(self, gate: GateResult, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("METAMOBILE_THREADS", "two")
        with pytest.raises(ValueError, match="METAMOBILE_THREADS is 'two'; expected a number"):
            open_runtime(gate.path)

    def test_a_file_without_a_card(self, gate: GateResult, tmp_path: Path) -> None:
        plain = tmp_path / "plain.tflite"
        whole = gate.path.read_bytes()
        plain.write_bytes(whole[: whole.rindex(b"PK\x03\x04")])
        with pytest.raises(ValueError, match="LiteRT without a metamobile card"):
            open_runtime(plain)
        plain.write_bytes(b"something else")
        with pytest.raises(ValueError, match="not a LiteRT file"):
            open_runtime(plain)
