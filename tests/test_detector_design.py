"""The published design of SSDLite, RetinaNet and Mask R-CNN: parameters, operations, and anchors by hand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metamobile.models.detection import Raw
from metamobile.models.detectors import create_detector
from metamobile.study.complexity import complexity
from metamobile.study.heads import PRINTED
from small_detector import small

ROWS = [row for row in PRINTED if row.task == "detect"]
PARAMETERS = sorted({(row.head, row.name, row.parameters) for row in ROWS})


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def truncated(value: float, digits: int) -> str:
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


@pytest.mark.parametrize(("head", "name", "printed"), PARAMETERS)
def test_parameters_are_the_published(head: str, name: str, printed: str) -> None:
    assert truncated(parameters(create_detector(name, head, 80)) / 1e6, 1) == printed


def test_parameters_of_ssdlite_emo_1m_exactly() -> None:
    """Counted by hand from the structure, and with the backbone the published 2,311,980."""
    channels = [80, 168, 512, 256, 256, 128]
    norm = 2  # weight and bias of each channel
    extra = 0
    for before, after in zip(channels[1:-1], channels[2:], strict=True):
        half = after // 2
        extra += before * half + norm * half + 9 * half + norm * half + half * after + norm * after
    heads = sum(
        2 * (9 * c + norm * c) + (c + 1) * 6 * 81 + (c + 1) * 6 * 4  # depthwise + norm twice, classes, boxes
        for c in channels
    )
    model = create_detector("emo_1m", "ssdlite", 80)
    assert parameters(model) - parameters(model.backbone) == extra + heads
    assert parameters(model) == 2_311_980


class RawOnly(nn.Module):
    """A detector up to its logits and box deltas, which is what counts of operations take."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Raw:
        return self.detector.raw(x)


def meta(name: str, head: str, window: int) -> nn.Module:
    """On the device that computes shapes only."""
    return RawOnly(create_detector(name, head, 80, window_size=window)).to("meta").eval()


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> dict[str, float]:
    """Billions, by operation."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *size, device="meta"))
    return {str(op): count / 2e9 for op, count in counter.get_flop_counts()["Global"].items()}


def printed_flops(head: str, prefix: str) -> list[Any]:
    """(name, window, size, billions as printed) of the rows whose input is known."""
    return [
        pytest.param(row.name, row.window, row.size, row.flops, id=f"{row.name}-{row.size[0]}")
        for row in ROWS
        if row.head == head and row.name.startswith(prefix) and row.size
    ]


flops_of = partial(pytest.mark.parametrize, ("name", "window", "size", "printed"))


@flops_of(printed_flops("ssdlite", "emo_"))
def test_flops_of_ssdlite_emo(name: str, window: int, size: tuple[int, int], printed: str) -> None:
    """EMO's rows are the convolutions alone, rounded: without norms and without attention's products."""
    counts = multiply_adds(meta(name, "ssdlite", window), size)
    assert f"{counts['aten.convolution']:.1f}" == printed


@flops_of(printed_flops("ssdlite", "emov2_"))
def test_flops_of_ssdlite_emov2(name: str, window: int, size: tuple[int, int], printed: str) -> None:
    """EMOv2's rows count attention and norms, truncated."""
    counted = complexity(meta(name, "ssdlite", window), size)[0].flops_paper
    assert truncated(counted / 1e9, 1) == printed


@flops_of(printed_flops("retinanet", ""))
def test_flops_of_retinanet_emo(name: str, window: int, size: tuple[int, int], printed: str) -> None:
    """1333x800, attention counted. EMOv2's rows and Mask R-CNN's have an input that is not stated."""
    total = sum(multiply_adds(meta(name, "retinanet", window), size).values())
    assert truncated(total, 0) == printed


# --- anchors, in pixels ---


def centred(x: float, y: float, width: float, height: float) -> list[float]:
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize(("size", "cells"), [(320, [20, 10, 5, 3, 2, 1]), (512, [32, 16, 8, 4, 2, 1])])
def test_anchors_of_ssdlite(size: int, cells: list[int]) -> None:
    raw = small("ssdlite").eval().raw(torch.zeros(1, 3, size, size))
    assert raw.levels == [6 * n * n for n in cells]
    assert raw.logits.shape == (1, sum(raw.levels), 4)  # three classes and the background
    levels = raw.anchors.split(raw.levels)
    cell = [
        centred(8, 8, 48, 48),
        centred(8, 8, math.sqrt(48 * 100), math.sqrt(48 * 100)),
        centred(8, 8, 48 * math.sqrt(2), 48 / math.sqrt(2)),
        centred(8, 8, 48 / math.sqrt(2), 48 * math.sqrt(2)),
        centred(8, 8, 48 * math.sqrt(3), 48 / math.sqrt(3)),
        centred(8, 8, 48 / math.sqrt(3), 48 * math.sqrt(3)),
    ]
    torch.testing.assert_close(levels[0][:6], torch.tensor(cell), atol=1e-3, rtol=0)
    # the next cell to the right, then the next row
    torch.testing.assert_close(levels[0][6], torch.tensor(centred(24, 8, 48, 48)), atol=1e-3, rtol=0)
    below = levels[0][6 * cells[0]]
    torch.testing.assert_close(below, torch.tensor(centred(8, 24, 48, 48)), atol=1e-3, rtol=0)
    squares = [(48, 100), (100, 150), (150, 202), (202, 253), (253, 304), (304, 320)]
    for level, stride, (low, high) in zip(levels, [16, 32, 64, 107, 160, 320], squares, strict=True):
        mean = math.sqrt(low * high)
        first = torch.tensor(
            [centred(stride / 2, stride / 2, s, s) for s in (low, mean)], dtype=torch.float32
        )
        torch.testing.assert_close(level[:2], first, atol=1e-3, rtol=0)


def test_anchors_of_ssdlite_keep_their_shape_in_a_wide_picture() -> None:
    raw = small("ssdlite").eval().raw(torch.zeros(1, 3, 96, 200))
    sides = raw.anchors[:, 2:] - raw.anchors[:, :2]
    torch.testing.assert_close(sides[0], torch.tensor([48.0, 48.0]), atol=1e-3, rtol=0)
    assert raw.levels[0] == 6 * 6 * 13


def test_anchors_of_retinanet() -> None:
    raw = small("retinanet").eval().raw(torch.zeros(1, 3, 100, 200))  # padded to 128x224
    cells = [(16, 28), (8, 14), (4, 7), (2, 4), (1, 2)]
    assert raw.levels == [9 * h * w for h, w in cells]
    for level, stride in zip(raw.anchors.split(raw.levels), [8, 16, 32, 64, 128], strict=True):
        expected = []
        for ratio in (0.5, 1, 2):  # height to width
            for side in (4 * stride, 4 * stride * 2 ** (1 / 3), 4 * stride * 2 ** (2 / 3)):
                expected.append(centred(0, 0, side / math.sqrt(ratio), side * math.sqrt(ratio)))
        torch.testing.assert_close(level[:9], torch.tensor(expected), atol=1e-3, rtol=0)
        # fixed strides: four cells of stride 64 lie 64 pixels apart, not 224 // 4
        torch.testing.assert_close(level[9:18, 0] - level[:9, 0], torch.full((9,), float(stride)))


def test_anchors_of_mask_rcnn() -> None:
    model = small("mask_rcnn")
    cells = model.rpn.anchor_generator.cell_anchors
    assert [c.shape for c in cells] == [(3, 4)] * 5
    for cell, side in zip(cells, [32, 64, 128, 256, 512], strict=True):
        torch.testing.assert_close(cell[1], torch.tensor(centred(0, 0, side, side)))
