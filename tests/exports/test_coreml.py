"""Core ML files: they are read back here, and run on macOS only."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from format_tests import blobs

from metamobile.deploy.form import deploy
from metamobile.deploy.formats import Options, coreml
from metamobile.deploy.runtimes import TorchRuntime
from metamobile.models.create import create_model
from metamobile.weights.card import Card
from small_dense import make_dense, make_dense_card
from small_model import make_card
from small_training import TINY_ARGS


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return deploy(create_model("emo_1m", num_classes=3, window_size=2, **TINY_ARGS).eval())


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card(create_model("emo_1m", num_classes=3, window_size=2, **TINY_ARGS))


@pytest.fixture(scope="module")
def written(network: nn.Module, card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coreml") / "a.mlpackage"
    coreml.write(network, card, path)
    return path


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "b.mlpackage"))


def change(path: Path, how: Callable[[Any], Any]) -> None:
    """Rewrite the file's specification."""
    from coremltools.proto.Model_pb2 import Model

    place = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = Model.FromString(place.read_bytes())
    how(spec)
    place.write_bytes(spec.SerializeToString())


def test_it_reads_back(network: nn.Module, card: Card, written: Path) -> None:
    assert coreml.read_back(written, network, card) == []
    assert coreml.open_file(written).card == card
    assert {path.name for path in written.iterdir()} == {"Data", "Manifest.json"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("head", ["deeplabv3", "ssdlite"])
def test_dense_heads(head: str, precision: str, tmp_path: Path) -> None:
    network, path = make_dense(head), tmp_path / "a.mlpackage"
    coreml.write(deploy(network), make_dense_card(network), path, Options(precision))
    assert coreml.read_back(path, deploy(network), make_dense_card(network)) == []


def test_half_precision_is_half_as_large(network: nn.Module, card: Card, tmp_path: Path) -> None:
    sizes = []
    for precision in ("fp32", "fp16"):
        path = tmp_path / f"{precision}.mlpackage"
        coreml.write(network, card, path, Options(precision))
        assert coreml.read_back(path, network, card) == []
        sizes.append((path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_in_half_precision_norm_and_softmax_stay_single(
    network: nn.Module, card: Card, tmp_path: Path
) -> None:
    coreml.write(network, card, tmp_path / "a.mlpackage", Options("fp16"))
    kinds: dict[str, set[int]] = {}
    spec = coreml._load(tmp_path / "a.mlpackage").get_spec()
    for operator in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
        kinds.setdefault(operator.type, set()).add(operator.outputs[0].type.tensorType.dataType)
    half, single = 10, 11  # DataType in MIL.proto
    assert kinds["conv"] == kinds["linear"] == kinds["matmul"] == {half}
    assert kinds["layer_norm"] == kinds["softmax"] == {single}


def test_a_changed_weight_is_found(network: nn.Module, card: Card, copied: Path) -> None:
    place = copied / "Data/com.apple.CoreML/weights/weight.bin"
    values = network.get_parameter("head.fc.weight").numpy().tobytes()
    content = place.read_bytes()
    assert content.count(values) == 1
    start = content.index(values)
    place.write_bytes(content[:start] + b"\0\0\0\x40" + content[start + 4 :])  # 2.0
    assert coreml.read_back(copied, network, card) == [
        "the values of head.fc.weight (3, 16) are not in the file"
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_batch_norms_are_folded_by_the_converter(card: Card, precision: str, tmp_path: Path) -> None:
    """As in timm's networks; those whose statistics are others are found."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 16, 3, 2, groups=8), nn.BatchNorm2d(16, eps=1e-3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    ).eval()
    for norm in (network[1], network[4]):
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(value, 0.5, 2)
    path = tmp_path / "a.mlpackage"
    coreml.write(network, card, path, Options(precision))
    assert coreml.read_back(path, network, card) == []
    network[4].running_var[3] *= 1.2
    changed = ["the values of 3.weight (16, 1, 3, 3) are not in the file"]
    changed.append("the values of 4.bias (16,) are not in the file")
    assert coreml.read_back(path, network, card) == changed


def test_other_weights_are_found(network: nn.Module, card: Card, written: Path) -> None:
    torch.manual_seed(1)
    other = deploy(create_model("emo_1m", num_classes=3, window_size=2, **TINY_ARGS).eval())
    problems = coreml.read_back(written, other, card)
    assert any("head.fc.weight" in problem for problem in problems) and len(problems) > 20


def test_a_renamed_output_is_found(network: nn.Module, card: Card, copied: Path) -> None:
    def rename(spec: Any) -> None:
        spec.description.output[0].name = "scores"

    change(copied, rename)
    (problem,) = coreml.read_back(copied, network, card)
    assert problem == "output is {'scores': (1, 3)}, expected {'logits': (1, 3)}"


def test_another_input_shape_is_found(network: nn.Module, card: Card, copied: Path) -> None:
    def turn(spec: Any) -> None:
        spec.description.input[0].type.multiArrayType.shape[2] = 32

    change(copied, turn)
    (problem,) = coreml.read_back(copied, network, card)
    assert problem == "input is {'pixels': (1, 3, 32, 64)}, expected {'pixels': (1, 3, 64, 64)}"


def test_a_missing_operator_is_found(network: nn.Module, card: Card, copied: Path) -> None:
    def drop(spec: Any) -> None:
        (block,) = spec.mlProgram.functions["main"].block_specializations.values()
        next(one for one in block.operations if one.type == "softmax").type = "sigmoid"

    change(copied, drop)
    found = coreml._other_operators(coreml._load(copied), coreml._program(network, card)[0])
    (problem,) = found
    assert "operators softmax, expected" in problem


def test_another_card_is_found(network: nn.Module, card: Card, written: Path, copied: Path) -> None:
    other = replace(card, classes=["a", "b", "c"])
    assert coreml.read_back(written, network, other) == ["the file's card is not the model's"]
    change(copied, lambda spec: spec.description.metadata.userDefined.clear())
    assert coreml.read_back(copied, network, card) == ["the file has no card"]
    with pytest.raises(ValueError, match="without a metamobile card"):
        coreml.open_file(copied)


@pytest.mark.parametrize("head", ["", "deeplabv3", "ssdlite"])
def test_what_the_converter_receives(head: str, network: nn.Module, card: Card) -> None:
    one: Any = make_dense(head) if head else network
    record = make_dense_card(one) if head else card
    pixels = blobs(3, *record.preprocess.size)
    found = coreml.received(one, record).run(pixels)
    expected = TorchRuntime(one, record).run(pixels)
    if head != "ssdlite":
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        return
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs["boxes"]) > 1
        np.testing.assert_allclose(np.sort(ours["scores"]), np.sort(theirs["scores"]), atol=1e-4)


@pytest.mark.skipif(sys.platform == "darwin", reason="it runs here")
def test_it_does_not_run_elsewhere(written: Path) -> None:
    with pytest.raises(ValueError, match="Core ML runs on macOS and iOS only, this is ") as error:
        coreml.open_file(written).run(blobs(1, 64, 64))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_it_runs(network: nn.Module, card: Card, written: Path) -> None:
    pixels = blobs(3, 64, 64)
    expected = TorchRuntime(network, card).run(pixels)
    found = coreml.open_file(written).run(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_failed_file_is_marked(network: nn.Module, card: Card, copied: Path, caplog: Any) -> None:
    coreml.mark(copied, "batch 1: logits differ")
    assert coreml.read_back(copied, network, card) == []
    coreml.open_file(copied)
    assert "failed its gate: batch 1: logits differ" in caplog.text


@pytest.mark.parametrize("name", ["weights/weight.bin", "model.mlmodel"])
def test_a_truncated_file_is_one_line(name: str, network: nn.Module, card: Card, copied: Path) -> None:
    place = copied / "Data/com.apple.CoreML" / name
    place.write_bytes(place.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="truncated") as error:
        coreml.read_back(copied, network, card)
    assert str(copied) in str(error.value) and "\n" not in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        coreml.open_file(tmp_path / "a.mlpackage")
