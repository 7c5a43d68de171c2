"""Files that scale and normalise by themselves, in formats that cannot resize: export, gate, USE.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import metamobile
from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import preprocess
from metamobile.deploy.decoding import output_names
from metamobile.deploy.export import export
from metamobile.deploy.gate import compare
from metamobile.deploy.preprocessing import Scaled, is_scaled, scaled_card
from metamobile.deploy.runtimes import DETECTIONS, TorchRuntime, open_runtime
from small_dense import make_dense
from small_model import make_card, make_network, make_run, write_pictures
from usage_code import code, run_on


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 9)


def test_a_file_takes_levels(pictures: list[Path], tmp_path: Path, caplog: Any) -> None:
    run = make_run(tmp_path / "insects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metamobile.deploy.gate.PICTURES", 9)
        (gate,) = export(run, "torch-export", verify=pictures[0].parent, with_preprocessing=True)
    assert gate.passed, gate.problems
    assert gate.path == run / "model.scaled.pt2"
    (told,) = [record.message for record in caplog.records if "scaling" in record.message]
    assert told == (
        "torch-export: of preprocessing the file does scaling and normalisation alone; it takes pictures "
        "that are resized and cropped already, float RGB from 0 to 255"
    )

    runtime = open_runtime(gate.path)
    pixels = preprocess(read_picture(pictures[0]), runtime.card.preprocess)
    assert is_scaled(runtime.card) and 100 < pixels.max() <= 255.01
    expected = [result.labels[0] for result in metamobile.predict(run, pictures).results]
    assert [result.labels[0] for result in metamobile.predict(gate.path, pictures).results] == expected
    assert run_on(code((run / "USE.md").read_text(), "python"), pictures[:2], run) == expected[:2]


def scaled_runtime(**changes: Any) -> tuple[TorchRuntime, TorchRuntime]:
    """The network, and it behind its own scaling, with another record where `changes` say so."""
    network = make_network()
    card = make_card(network)
    theirs = scaled_card(card)
    theirs = replace(theirs, preprocess=replace(theirs.preprocess, **changes))
    return TorchRuntime(network, card), TorchRuntime(Scaled(network, card.preprocess), theirs)


def test_the_gate_takes_exactly_that_record(pictures: list[Path]) -> None:
    gate = compare(*scaled_runtime(), pictures)
    assert gate.passed and gate.relative < 1e-5
    for changes in ({"std": (1.0,) * 3}, {"interpolation": "bilinear"}, {"mean": (1e-4,) * 3}):
        assert "the file's preprocessing record is not the model's" in (
            compare(*scaled_runtime(**changes), pictures[:2]).problems
        )


def test_the_gate_finds_levels_that_are_not_scaled(pictures: list[Path]) -> None:
    reference, scaled = scaled_runtime()
    gate = compare(reference, TorchRuntime(reference.network, scaled.card), pictures)
    assert not gate.passed and gate.relative > 0.1


@pytest.mark.parametrize("head", ["deeplabv3", "ssdlite"])
def test_dense_heads_keep_their_outputs(head: str) -> None:
    network = make_dense(head)
    record = make_card(make_network()).preprocess
    module, names = output_names(Scaled(network, record), suppression=True)
    plain, expected_names = output_names(network, suppression=True)
    assert names == expected_names
    assert names == (list(DETECTIONS[:3]) if head == "ssdlite" else ["logits", "classes"])
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96))).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (record.mean, record.std))
    with torch.no_grad():
        found, expected = module(levels), plain((levels / 255 - mean) / std)
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=0)
    assert isinstance(module, nn.Module)
