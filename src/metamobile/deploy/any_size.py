"""`--size any`: files whose height and width are free, the network's own function at each size.

Windows are padded in the graph as the network pads them, so that every size of at least 32 pixels a side will
do, and no multiple of anything is asked for.

B batch, C channels, H W height and width, S sides of a grid of cells.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metamobile.data.preprocess import Preprocess
from metamobile.deploy.formats import FORMATS
from metamobile.deploy.gate import GateResult, compare
from metamobile.deploy.runtimes import Pixels, Runtime
from metamobile.models.create import plain_network
from metamobile.models.detection import OneStage

LEAST = 32  # pixels a side
EXAMPLE = (1056, 1184)  # pixels; windows of up to 16 are several then in each stage, and none fits the map
BATCH_SIZES, PICTURES = (1, 3), 24  # of the gate at the other size


def refuse(
    model: str | Path,
    network: nn.Module,
    formats: Sequence[str],
    precisions: Sequence[str],
    preprocessing: bool,
) -> None:
    """Errors: ValueError where height and width cannot be free, which says why not."""
    able = [name for name, one in FORMATS.items() if "any size" in one.can]
    unable = [name for name in formats if name not in able]
    if unable:
        raise ValueError(
            f"{', '.join(unable)}: a file has one picture size here; with --size any there are "
            f"{', '.join(able)}"
        )
    if "openvino" in formats and "int8" in precisions:
        raise ValueError(
            "openvino: in int8 a file takes one picture of one size, as OpenVINO errs in others; with --size "
            "any there are fp32 and fp16, and int8 for onnx"
        )
    if preprocessing:
        raise ValueError(
            "--size any has no effect with preprocessing in the file, which resizes every picture to the "
            "model's own size; leave one of them out"
        )
    if isinstance(network, OneStage):
        raise ValueError(
            f"{model}: a detector's file holds its anchors, which lie where one picture size has them; "
            "expected --size PX or height,width"
        )
    config: Any = getattr(plain_network(network), "pretrained_cfg", None)
    if config and config.get("fixed_input_size"):
        raise ValueError(f"{model}: the network is built for one picture size; expected no --size any")


def free_sides(network: nn.Module) -> nn.Module:
    """A copy of a network whose grids of cells torch.export can take at a size that it does not know."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                setattr(module, name, GridMeans(child.output_size))
    return network


class GridMeans(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products: (B, C, H, W) -> (B, C, S, S'), means over cells."""

    def __init__(self, sides: Any) -> None:
        super().__init__()
        self.sides = (sides, sides) if isinstance(sides, int) else tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (cells(side, size, x) for side, size in zip(self.sides, x.shape[2:], strict=True))
        return rows @ x @ columns.T


def cells(side: int, size: int, like: Tensor) -> Tensor:
    """(side, size): how much each position counts in each cell; cells overlap where they do not divide it."""
    at = torch.arange(size, device=like.device)
    first = torch.arange(side, device=like.device)[:, None]
    start = torch.div(first * size, side, rounding_mode="floor")
    end = torch.div((first + 1) * size + side - 1, side, rounding_mode="floor")
    inside = (at >= start) & (at < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


def example(size: tuple[int, int], free: bool) -> tuple[Tensor, dict[int, Any]]:
    """What torch.export traces with, and the axes that it leaves free: the batch, and with `free` the sides.

    Two pictures, as it takes a size of one for a constant.
    """
    batch = {0: torch.export.Dim("batch")}
    if not free:
        return torch.zeros(2, 3, *size), batch
    sides = {axis: torch.export.Dim(name, min=LEAST) for axis, name in ((2, "height"), (3, "width"))}
    return torch.zeros(2, 3, *EXAMPLE), batch | sides


class At:
    """A runtime that is given pictures of one other size."""

    def __init__(self, runtime: Runtime, record: Preprocess) -> None:
        self.runtime, self.record = runtime, record
        self.name = runtime.name
        self.card = replace(runtime.card, preprocess=record)

    def run(self, batch: Pixels) -> Any:
        return self.runtime.run(batch)


def at_own(runtime: Runtime) -> At:
    """Pictures of the model's own size, all of it also where it keeps their form."""
    record = runtime.card.preprocess
    return At(runtime, replace(record, fit="stretch" if record.fit == "inside" else record.fit))


def at_another(runtime: Runtime) -> At:
    """Pictures of another form, which windows do not divide: about 3/4 of the height, 5/4 of the width."""
    record = at_own(runtime).record
    height, width = (
        max(LEAST, round(side * share)) for side, share in zip(record.size, (0.75, 1.25), strict=True)
    )
    resize = record.resize and max(height, width, round(record.resize * width / record.size[1]))
    return At(runtime, replace(record, size=(height, width), resize=resize))


def compare_sizes(
    reference: Runtime, candidate: Runtime, pictures: Sequence[Path], **settings: Any
) -> GateResult:
    """`gate.compare` at the model's own size, then at another; figures are the worse ones."""
    result = compare(at_own(reference), at_own(candidate), pictures, **settings)
    step = max(1, len(pictures) // PICTURES)
    there = at_another(reference)
    other = compare(
        there, at_another(candidate), pictures[::step][:PICTURES], **settings, batch_sizes=BATCH_SIZES
    )
    size = there.record.size
    result.rows += [replace(row, size=size) for row in other.rows]
    result.problems += [f"{size[0]}x{size[1]}, {problem}" for problem in other.problems]
    result.max_diff = max(result.max_diff, other.max_diff)
    result.mean_diff = max(result.mean_diff, other.mean_diff)
    result.scale = min(result.scale, other.scale)
    result.agreement = min(result.agreement, other.agreement)
    return result
