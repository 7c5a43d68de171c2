"""Preprocessing within a file: a picture in as it was decoded, answers in its own pixels out.

For ONNX, and through it OpenVINO, all of it: `add_preprocessing`. Elsewhere scaling and normalisation alone:
`Scaled`. Resizing is Pillow's algorithm in two matrix products, as no operator of ONNX gives Pillow's levels
in each runtime: OpenVINO's Resize leaves out antialiasing (openvino issue 35893), ONNX Runtime's with CUDA is
wrong (onnxruntime issue 25264), and its bilinear one on the CPU is up to two levels off. The products are of
whole numbers in double precision: exact, but in OpenVINO, which computes them in single precision.

H W the picture's height and width, h w the network's, K classes, M boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from metamobile.data.preprocess import Preprocess
from metamobile.deploy.raw import PICTURE
from metamobile.deploy.runtimes import INPUT
from metamobile.tasks import get_files
from metamobile.weights.card import Card

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

STEPS = 2.0**22  # Pillow's weights are whole numbers of 1 / 2^22
PREFIX = "picture_"  # of the names of all that is added
UNIT = 1 / 255  # of `scaled_card`: a level of 0..255 is this much of 0..1


class Nodes:
    """Nodes in the making: `nodes.Add(a, b)` adds one and gives its output's name. Numbers and arrays become
    constants: whole ones int64, others as they are, Python's in double precision."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __getattr__(self, operator: str) -> Callable[..., str]:
        if not operator[0].isupper():
            raise AttributeError(operator)

        def add(*inputs: Any, output: str = "", **attributes: Any) -> str:
            from onnx import helper

            output = output or f"{PREFIX}{len(self.nodes)}"
            names = [one if isinstance(one, str) else self._constant(one) for one in inputs]
            self.nodes.append(helper.make_node(operator, names, [output], **attributes))
            return output

        return add

    def _constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


@dataclass
class Graph:
    """A model whose pictures are preprocessed, as a task's `files.finish` goes on with it.

    `nodes` come behind the model's. `shape` is the name of the picture's (H, W, 3), `height` and `width` of
    its sides; `size` is (h, w) of the network's input, `classes` their number.
    """

    model: ModelProto
    nodes: Nodes
    shape: str
    height: str
    width: str
    size: tuple[int, int]
    classes: int

    def rename(self, *names: str) -> list[str]:
        """Make room for outputs, or an input, of these names; what the model's are called now."""
        now = {name: f"{PREFIX}{name}_before" for name in names}
        for node in self.model.graph.node:
            for place in (node.input, node.output):
                for i, name in enumerate(place):
                    place[i] = now.get(name, name)
        return list(now.values())


def add_preprocessing(model: ModelProto, card: Card) -> ModelProto:
    """`model`, whose input is "pixels" (batch, 3, h, w), for one picture at a time: it is changed in place.

    Input "picture" uint8 (H, W, 3), RGB, of any size. Outputs of a classifier "probabilities" (1, K) and
    "logits" (1, K); of a segmenter "classes" (H, W) int64, the best of each of the picture's own pixels, and
    "logits" (1, K, h, w); of a detector "boxes" (M, 4) in the picture's own pixels, "scores" (M,), "labels"
    (M,). The last is "pixels" (1, 3, h, w), what the network sees: in ONNX Runtime to the last bit that of
    `data.preprocess` with the fit "crop", and at most a level off with "stretch", where Pillow from 13 on may
    resize columns before rows. Errors: ValueError for preprocessing that a graph cannot have.
    """
    from onnx import TensorProto, checker, helper

    check_record(card)
    nodes, record = Nodes(), card.preprocess
    shape = nodes.Shape(PICTURE)
    height, width = (nodes.Gather(shape, axis) for axis in (0, 1))
    _preprocess(nodes, height, width, record)
    before = len(nodes.nodes)
    answering = Graph(model, nodes, shape, height, width, record.size, len(card.classes))
    outputs = [*get_files(card.task).finish(answering), (INPUT, np.float32, [1, 3, *record.size])]

    graph = model.graph
    every = [*nodes.nodes[:before], *graph.node, *nodes.nodes[before:]]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]  # shapes there have a batch
    graph.node.extend(every)
    graph.initializer.extend(nodes.constants)
    graph.input.append(helper.make_tensor_value_info(PICTURE, TensorProto.UINT8, ["height", "width", 3]))
    for name, kind, sides in outputs:
        number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        graph.output.append(helper.make_tensor_value_info(name, number, sides))
    checker.check_model(model)
    return model


def check_record(card: Card) -> None:
    """Errors: ValueError for preprocessing that a graph cannot have."""
    record = card.preprocess
    if record.interpolation not in FILTERS:
        raise ValueError(
            f"interpolation {record.interpolation!r} cannot be put into a graph, as Pillow rounds a running "
            f"sum in it; expected {', '.join(FILTERS)}"
        )
    fits = get_files(card.task).FITS
    if record.fit not in fits:
        raise ValueError(
            f"fit {record.fit!r} cannot be put into the graph of a model with the task {card.task}; expected "
            f"{' or '.join(fits)}"
        )


def _preprocess(nodes: Nodes, height: str, width: str, record: Preprocess) -> None:
    """From PICTURE to INPUT, as `data.preprocess.preprocess`; the crop is in the choice of the weights."""
    down, across = (
        _weights(nodes, side, *_part(nodes, side, shorter, size, record), size, record.interpolation)
        for shorter in [nodes.Min(height, width)]
        for side, size in zip((height, width), record.size, strict=True)
    )
    planes = nodes.Cast(nodes.Transpose(PICTURE, perm=[2, 0, 1]), to=11)  # (3, H, W), double
    wide = _levels(nodes, nodes.MatMul(planes, nodes.Transpose(across)))  # first the rows, as in Pillow
    levels = nodes.Cast(_levels(nodes, nodes.MatMul(down, wide)), to=1)  # (3, h, w)
    mean, std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (record.mean, record.std))
    normal = nodes.Div(nodes.Sub(nodes.Div(levels, np.float32(255)), mean), std)
    nodes.Unsqueeze(normal, [0], output=INPUT)


def _part(nodes: Nodes, side: str, shorter: str, size: int, record: Preprocess) -> tuple[Any, Any]:
    """A side's length in pixels once resized, and where on it the network's part starts."""
    if record.fit == "stretch":
        return size, 0
    whole = nodes.Div(nodes.Mul(side, record.shorter_side), shorter)  # whole numbers: it rounds down
    rest = nodes.Sub(whole, size)
    half = nodes.Div(rest, 2)
    up = nodes.Mul(nodes.Mod(rest, 2), nodes.Mod(half, 2))  # Python's round: a half goes to the even one
    return whole, nodes.Add(half, up)


def _weights(nodes: Nodes, side: str, whole: Any, start: Any, size: int, interpolation: str) -> str:
    """(size, side): what each pixel of a resized line takes from those of the picture, as in Pillow.

    The line has `whole` pixels, of which those from `start` are wanted. A pixel o of it has its centre at
    (2 o + 1) / (2 whole) of the side, one of the picture's at (2 i + 1) / (2 side).
    """
    new, old = (
        nodes.Add(nodes.Mul(nodes.Range(first, last, 1), 2), 1)
        for first, last in ((start, nodes.Add(start, size)), (0, side))
    )
    new, old = nodes.Unsqueeze(nodes.Mul(new, side), [1]), nodes.Unsqueeze(nodes.Mul(old, whole), [0])
    # in pixels of the smaller of the two lines; whole numbers as long as may be
    number, below = nodes.Sub(new, old), nodes.Mul(nodes.Max(side, whole), 2)
    distance = nodes.Abs(nodes.Div(nodes.Cast(number, to=11), nodes.Cast(below, to=11)))
    raw = FILTERS[interpolation](nodes, distance)
    shares = nodes.Div(raw, nodes.ReduceSum(raw, [1], keepdims=1))
    return nodes.Div(_rounded(nodes, nodes.Mul(shares, STEPS)), STEPS)


def _bilinear(nodes: Nodes, x: str) -> str:
    return nodes.Max(nodes.Sub(1.0, x), 0.0)


def _bicubic(nodes: Nodes, x: str) -> str:
    """Of a = -0.5."""
    near = nodes.Sub(nodes.Mul(x, 1.5), 2.5)
    near = nodes.Add(nodes.Mul(nodes.Mul(near, x), x), 1.0)
    far = nodes.Add(nodes.Mul(nodes.Sub(x, 5.0), x), 8.0)
    far = nodes.Mul(nodes.Sub(nodes.Mul(far, x), 4.0), -0.5)
    return nodes.Where(nodes.Less(x, 1.0), near, nodes.Where(nodes.Less(x, 2.0), far, 0.0))


def _lanczos(nodes: Nodes, x: str) -> str:
    """Of three lobes."""
    angle = nodes.Mul(nodes.Max(x, 1e-9), np.pi)
    third = nodes.Div(angle, 3.0)
    waves = nodes.Mul(nodes.Sin(angle), nodes.Sin(third))
    return nodes.Where(nodes.Less(x, 3.0), nodes.Div(waves, nodes.Mul(angle, third)), 0.0)


FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}  # of distances from 0


def _rounded(nodes: Nodes, x: str) -> str:
    return nodes.Floor(nodes.Add(x, 0.5))


def _levels(nodes: Nodes, x: str) -> str:
    """Pillow's picture between its two passes, and after them, has 8 bits."""
    return nodes.Clip(_rounded(nodes, x), 0.0, 255.0)


class Scaled(nn.Module):
    """A module whose pictures are neither scaled nor normalised: float (B, 3, h, w), RGB from 0 to 255,
    resized and cropped already. `record` is the module's own preprocessing."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, record: Preprocess) -> None:
        super().__init__()
        self.module, self.record = module, record
        self.register_buffer("mean", 255 * torch.tensor(record.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(record.std)[:, None, None])

    def forward(self, pictures: Tensor) -> Any:
        return self.module((pictures - self.mean) / self.std)

    def around(self, module: nn.Module) -> Scaled:
        """The same for a module that takes the place of this one's."""
        return Scaled(module, self.record)


def scaled_card(card: Card) -> Card:
    """The card of a file of `Scaled`: its preprocessing gives levels from 0 to 255."""
    return replace(card, preprocess=replace(card.preprocess, mean=(0.0,) * 3, std=(UNIT,) * 3))


def is_scaled(card: Card) -> bool:
    """Whether it is a `scaled_card`."""
    return card == scaled_card(card)
