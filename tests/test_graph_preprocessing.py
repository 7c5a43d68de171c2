"""Preprocessing within a file: what its network sees against Pillow, answers in the picture's pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from metamobile.data.pictures import find_pictures, read_picture
from metamobile.data.preprocess import INTERPOLATIONS, Preprocess, preprocess
from metamobile.deploy.formats.onnx import build
from metamobile.deploy.preprocessing import Scaled, add_preprocessing, check_record, scaled_card
from metamobile.deploy.raw import planes, reader, run_pictures, seen
from metamobile.tasks.detect import results as detect
from metamobile.tasks.segment import results as segment
from metamobile.weights.card import Card

# (width, height): larger and smaller than what is wanted, portrait and landscape, odd rests to crop, lines
SIZES = [(90, 81), (81, 90), (47, 200), (333, 61), (64, 64), (73, 73), (30, 20), (7, 9), (1, 5), (500, 375)]
NAMES = ["ants", "bees", "dogs"]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise over gradients, so that every level, filter and place shows."""
    width, height = size
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.linspace(0, 90, height), np.linspace(0, 90, width))[..., None]
    return Image.fromarray((ramp + rng.integers(0, 76, (height, width, 3))).astype(np.uint8))


def make_card(task: str = "classify", **record: Any) -> Card:
    return Card("emo_1m", {}, task=task, classes=NAMES, preprocess=Preprocess(**{"size": (64, 64), **record}))


def network(card: Card, nodes: list[Any], outputs: list[Any], **constants: np.ndarray) -> onnx.ModelProto:
    """A graph from "pixels" (batch, 3, h, w) on, as an exporter writes them."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, *card.preprocess.size])],
        [helper.make_tensor_value_info(*output) for output in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def classifier(card: Card) -> onnx.ModelProto:
    node = helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0)
    return network(card, [node], [("logits", TensorProto.FLOAT, ["batch", 3])], axes=np.array([2, 3]))


class Session:
    """A file with preprocessing in ONNX Runtime, as `deploy.raw` asks for it."""

    takes_pictures, path, name = True, Path("it.onnx"), "ONNX Runtime"

    def __init__(self, model: onnx.ModelProto, card: Card) -> None:
        self.card = card
        self.session = onnxruntime.InferenceSession(add_preprocessing(model, card).SerializeToString())

    def ask(self, one: np.ndarray, names: Any) -> list[Any]:
        return self.session.run(list(names), {"picture": one})

    def run(self, batch: np.ndarray) -> Any:
        return run_pictures(self, batch)


def levels(card: Card, found: np.ndarray, one: Image.Image) -> np.ndarray:
    """How many of 255 levels a file's pixels are away from ours."""
    expected = preprocess(one, card.preprocess)
    assert found.shape == (1, *expected.shape) and found.dtype == np.float32
    return np.abs(found[0] - expected) * np.float32(card.preprocess.std)[:, None, None] * 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("record", [{}, {"size": (48, 64), "resize": 65}, {"resize": 97}], ids=str)
def test_a_crop_is_pillows_to_the_last_bit(interpolation: str, record: dict[str, Any]) -> None:
    card = make_card(interpolation=interpolation, **record)
    runtime = Session(classifier(card), card)
    for size in SIZES:
        found = seen(runtime, picture(size))
        np.testing.assert_array_equal(found[0], preprocess(picture(size), card.preprocess), err_msg=str(size))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_a_stretched_picture_is_pillows_rows_first(interpolation: str) -> None:
    """Pillow from 13 on resizes columns first where they shrink much more, and rounds between the two."""
    card = make_card(size=(64, 96), fit="stretch", interpolation=interpolation)
    runtime = Session(classifier(card), card)
    for size in SIZES:
        one = picture(size)
        found = seen(runtime, one)
        rows = one.resize((96, one.height), INTERPOLATIONS[interpolation])
        assert levels(card, found, rows).max() == 0, size
        if interpolation != "lanczos":
            assert levels(card, found, one).max() < 1.01, size


def test_real_pictures(shared: Path) -> None:
    card = make_card(size=(128, 128))
    runtime = Session(classifier(card), card)
    paths = (
        find_pictures([shared / "data/imagenette2-160/val"])[::500]
        + find_pictures([shared / "data/coco128"])[::25]
    )
    for path in paths:
        assert levels(card, seen(runtime, read_picture(path)), read_picture(path)).max() == 0, path


def test_a_classifier_answers_as_pytorch_does() -> None:
    """Through the exporter, whose graph has a batch size of its own."""
    card = make_card()
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    runtime = Session(build(net, card), card)
    onnx_names = [output.name for output in runtime.session.get_outputs()]
    assert onnx_names == ["probabilities", "logits", "pixels"]
    for size in SIZES[:4]:
        one = picture(size)
        with torch.no_grad():
            expected = net(torch.from_numpy(preprocess(one, card.preprocess))[None])
        probabilities, logits = runtime.ask(np.asarray(one), ["probabilities", "logits"])
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-6)
        np.testing.assert_allclose(probabilities.sum(), 1, atol=1e-6)


def test_boxes_are_in_the_pictures_own_pixels() -> None:
    card = make_card("detect", size=(64, 96), fit="stretch", interpolation="bilinear")
    boxes = np.float32([[10, 20, 48, 60], [0, 0, 96, 64], [90.25, 1.5, 95, 7]])
    shapes = {"boxes": [*boxes.shape], "scores": [3], "labels": [3], "picture": [3]}
    kinds = {"boxes": TensorProto.FLOAT, "scores": TensorProto.FLOAT}
    model = network(
        card,
        [helper.make_node("Identity", [f"its_{name}"], [name]) for name in shapes],
        [(name, kinds.get(name, TensorProto.INT64), shape) for name, shape in shapes.items()],
        its_boxes=boxes,
        its_scores=np.float32([0.9, 0.8, 0.7]),
        its_labels=np.array([2, 0, 1]),
        its_picture=np.array([0, 0, 0]),
    )
    runtime = Session(model, card)
    batch = planes(picture((192, 32)))[None]
    (found,) = runtime.run(batch)
    np.testing.assert_array_equal(
        found["boxes"][:2], [[20, 10, 96, 30], [0, 0, 192, 32]]
    )  # x doubled, y halved
    for size in SIZES:
        (found,) = runtime.run(planes(picture(size))[None])
        raw = {"boxes": boxes, "scores": found["scores"], "labels": found["labels"]}
        (ours,) = detect.answers([raw], NAMES, [""], [size], [(64, 96)])
        (theirs,) = detect.answers([found], NAMES, [""], [size], [size[::-1]])
        np.testing.assert_array_equal(theirs.boxes, ours.boxes)
        assert theirs.labels == ours.labels == ["dogs", "ants", "bees"]


def test_classes_are_of_the_pictures_own_pixels() -> None:
    record = {"fit": "stretch", "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    card = make_card("segment", size=(32, 48), **record)
    nodes = [
        helper.make_node("Identity", ["pixels"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["classes"], axis=1, keepdims=0),
    ]
    shape = ["batch", 3, 32, 48]
    outputs = [("logits", TensorProto.FLOAT, shape), ("classes", TensorProto.INT64, ["batch", *shape[2:]])]
    runtime = Session(network(card, nodes, outputs), card)
    for size in SIZES:
        one = picture(size)
        classes, logits = runtime.ask(np.asarray(one), ["classes", "logits"])
        (expected,) = segment.decode(logits, NAMES, [""], [size], [(32, 48)])
        assert classes.shape == size[::-1]
        assert (classes == expected.mask).mean() > 0.999, size
        assert len(np.unique(classes)) > 1
        np.testing.assert_array_equal(runtime.run(planes(one)[None]), logits)


def test_pictures_of_a_batch_run_one_by_one() -> None:
    card = make_card()
    runtime = Session(classifier(card), card)
    read = reader(runtime)
    batch = np.stack([read(picture((50, 40), seed)) for seed in range(3)])
    assert (batch.shape, batch.dtype) == ((3, 3, 40, 50), np.uint8)
    means = [preprocess(picture((50, 40), seed), card.preprocess).mean((1, 2)) for seed in range(3)]
    np.testing.assert_allclose(runtime.run(batch), means, atol=1e-5)
    with pytest.raises(ValueError, match=r"it.onnx cannot run on \(1, 3, 64, 64\) float32: it preprocesses"):
        runtime.run(np.zeros((1, 3, 64, 64), np.float32))


def test_what_no_graph_can_have() -> None:
    with pytest.raises(ValueError, match="interpolation 'nearest' cannot be put into a graph"):
        check_record(make_card(interpolation="nearest"))
    with pytest.raises(ValueError, match="fit 'inside' .* expected crop or stretch"):
        check_record(make_card(fit="inside"))
    with pytest.raises(ValueError, match="fit 'crop' .* expected stretch"):
        check_record(make_card("detect"))


def test_scaled_pictures_alone() -> None:
    """Where a format resizes nothing, its card gives levels from 0 to 255."""
    card = make_card()
    net = nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    raw = preprocess(picture((90, 81)), scaled_card(card).preprocess)
    assert raw.min() >= 0 and 50 < raw.max() <= 255.01 and np.abs(raw - raw.round()).max() < 1e-4
    with torch.no_grad():
        expected = net(torch.from_numpy(preprocess(picture((90, 81)), card.preprocess))[None])
        found = Scaled(net, card.preprocess)(torch.from_numpy(raw)[None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_openvino_is_at_most_two_levels_off() -> None:
    """It computes in single precision, where halves of a level fall to either side."""
    openvino = pytest.importorskip("openvino")
    card = make_card()
    model = add_preprocessing(classifier(card), card).SerializeToString()
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled = core.compile_model(core.read_model(model), "CPU")
    for size in SIZES:
        off = levels(card, compiled({"picture": np.asarray(picture(size))})["pixels"], picture(size))
        assert off.max() < 2.01 and (off > 0.5).mean() < 0.01, size
