"""Half precision and eight bits of an ONNX model: answers, sizes, and which layers are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from metamobile.data.pictures import find_pictures, read_picture
from metamobile.data.preprocess import preprocess
from metamobile.deploy import quantise as module
from metamobile.deploy.form import deploy
from metamobile.deploy.formats import Options, openvino
from metamobile.deploy.formats.onnx import build
from metamobile.deploy.quantise import half_weights, layers_of, layers_to_keep, quantise
from metamobile.weights.card import KEY, Card
from metamobile.weights.network import load_network
from small_model import make_card, make_network, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 24)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return deploy(make_network())


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card(make_network())


@pytest.fixture(scope="module")
def plain(network: nn.Module, card: Card) -> onnx.ModelProto:
    return build(network, card)


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.load_from_string(model.SerializeToString())


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"pixels": pixels})[0]


def batch(paths: list[Path], card: Card) -> np.ndarray:
    return np.stack([preprocess(read_picture(path), card.preprocess) for path in paths])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Root of the mean squared difference, as a share of how far the answers spread."""
    return float(np.sqrt(np.square(found - expected).mean()) / expected.std())


def test_half_precision_is_that_of_its_weights(
    plain: onnx.ModelProto, network: nn.Module, card: Card, pictures: list[Path]
) -> None:
    half = half_weights(copy(plain))
    assert 0.49 < half.ByteSize() / plain.ByteSize() < 0.55
    rounded = deploy(make_network())
    with torch.no_grad():
        for tensor in rounded.parameters():
            if tensor.numel() >= module.SMALL:
                tensor.copy_(tensor.half().float())
    pixels = batch(pictures[:8], card)
    with torch.no_grad():
        expected = rounded(torch.from_numpy(pixels)).numpy()
    assert np.abs(run(half, pixels) - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(run(half, pixels) - run(plain, pixels)).max() > 1e-6, "nothing was rounded"


def test_eight_bits(plain: onnx.ModelProto, card: Card, pictures: list[Path]) -> None:
    small = quantise(copy(plain), card, pictures, outputs=True)
    assert small.ByteSize() / plain.ByteSize() < 0.32
    kinds = [node.op_type for node in small.graph.node]
    assert kinds.count("LayerNormalization") == 12 and kinds.count("Softmax") == 9, "they stay as they are"
    assert {entry.key for entry in small.metadata_props} == {KEY}
    pixels = batch(pictures, card)
    assert 1e-4 < relative(run(small, pixels), run(plain, pixels)) < 0.5  # of random weights
    for count in (1, 3):
        np.testing.assert_allclose(run(small, pixels[:count]), run(small, pixels)[:count], atol=0.2)


def test_the_layer_that_loses_most_is_found(card: Card, pictures: list[Path]) -> None:
    """A layer whose input has one channel far above the others, which eight bits of one scale cannot hold."""
    torch.manual_seed(0)

    class Outlier(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :1] * 1e3, x[:, 1:]], 1)

    hurt = nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        hurt.weight[:, 0] = 0  # the outlier itself says nothing
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), Outlier(), hurt, nn.ReLU(), nn.Conv2d(8, 64, 3), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3)]
    model = onnx.shape_inference.infer_shapes(build(nn.Sequential(*layers), card))
    names = layers_of(model)
    assert list(names.values()) == [216, 64, 4608, 36864, 192]
    batches = [batch([path], card) for path in pictures[:8]]
    ranges = module._ranges(model, batches)
    assert layers_to_keep(model, names, ranges, batches, True) == {list(names)[1]}
    pixels = np.concatenate(batches)
    with_it = run(module._quantised(model, list(names), ranges, True), pixels)
    without = run(quantise(copy(model), card, pictures[:8], outputs=True), pixels)
    expected = run(model, pixels)
    assert relative(without, expected) < relative(with_it, expected) / 3


def test_calibration_pictures_are_needed(plain: onnx.ModelProto, card: Card) -> None:
    with pytest.raises(ValueError, match="int8 needs calibration pictures"):
        quantise(copy(plain), card, [], outputs=True)


def test_openvino_in_eight_bits(
    plain: onnx.ModelProto, network: nn.Module, card: Card, pictures: list[Path], tmp_path: Path
) -> None:
    """One at a time in the file: with a batch of any size OpenVINO answers something else."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install "metamobile[openvino]"')
    openvino.write(network, card, tmp_path / "model.openvino", Options("int8", pictures))
    runtime = openvino.open_file(tmp_path / "model.openvino")
    assert runtime.one
    pixels = batch(pictures, card)
    assert 1e-4 < relative(runtime.run(pixels), run(plain, pixels)) < 0.5


def test_trained_weights_lose_less_than_a_point(shared: Path) -> None:
    """On 300 of Imagenette's validation pictures, of which one point is three."""
    network, card = load_network("emo_1m.imagenette")
    plain = build(deploy(network), card)
    data = shared / "data/imagenette2-160"
    calibration = find_pictures([data / "train"])[::150]
    small = quantise(copy(plain), card, calibration, outputs=True)
    paths = [path for name in card.classes for path in sorted((data / "val" / name).iterdir())[:30]]
    truth = np.repeat(np.arange(len(card.classes)), 30)
    right = {}
    for name, model in (("fp32", plain), ("int8", small)):
        answers = [
            run(model, batch(paths[start : start + 60], card)).argmax(1) for start in range(0, 300, 60)
        ]
        right[name] = int((np.concatenate(answers) == truth).sum())
    assert right["fp32"] > 240
    assert right["int8"] >= right["fp32"] - 6, "two points: one, and the noise of so few pictures"
    assert small.ByteSize() / plain.ByteSize() < 0.3
