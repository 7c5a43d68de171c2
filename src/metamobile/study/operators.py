"""What the operators cost and how far they reach: the papers' formulas beside what real modules show.

Symbols of the formulas: C channels, a map of side x side = L positions, windows of window x window = l
positions, kernel k, expansion ratio lambda. FLOPs count a multiply-add as two, and softmax as three per
score; norms, activations and additions are free. Source: EMOv2 (arXiv 2412.06674) table 2, for one head. It
has no costs for the iRMB; those are derived here. Its path lengths are orders of magnitude: a stack of k x
k convolutions needs 2 (side - 1) / (k - 1), rounded up. An iRMB with contiguous windows advances by one
window each, and its convolution only carries over the edge; with strided windows it needs less than the
formula.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metamobile.files import aside, write_text
from metamobile.models.blocks import irmb, self_attention
from metamobile.models.operators import WindowAttention
from metamobile.study.reach import measure_path_length
from metamobile.weights.card import current_versions

LARGEST_REACH = 28  # larger maps have too many pairs of positions for an experiment of seconds
PROBE_CHANNELS = 2  # of the modules that reach is measured on, which does not depend on their number


@dataclass(frozen=True)
class OperatorRow:
    """One module at one size; `path_measured` is None where the map is too large for the experiment."""

    module: str
    channels: int
    side: int
    parameters_formula: int
    parameters_counted: int
    flops_formula: int
    flops_counted: int
    path_formula: float
    path_measured: float | None


@dataclass(frozen=True)
class Kind:
    """A module with its formulas: `make(C)`, `parameters(C)`, `flops(C, L)`, `path(side)`."""

    make: Callable[[int], nn.Module]
    parameters: Callable[[int], int]
    flops: Callable[[int, int], int]
    path: Callable[[int], float]


def operator_kinds(window: int = 7, kernel: int = 3, expand_ratio: int = 4) -> dict[str, Kind]:
    """MHSA, W-MHSA, Conv, DW-Conv, and the iRMB's cascade with contiguous and with strided windows."""
    k, r, l = kernel, expand_ratio, window**2  # noqa: E741  (the paper's letters)

    def windows(c: int) -> nn.Module:
        return self_attention(c, 1, attention=WindowAttention(c, c, window, "contiguous"))

    def cascade(partition: str) -> Kind:
        return Kind(
            lambda c: irmb(c, expand_ratio=r, kernel_size=k, dim_head=c, window=window, partition=partition),
            # queries, keys, expansion, shrinking; their biases, the kernels and two norms
            lambda c: (2 + 2 * r) * c * c + (4 + r * (k * k + 3)) * c,
            lambda c, n: (4 + 4 * r) * c * c * n + 4 * c * n * l + 3 * n * l + 2 * k * k * r * c * n,
            lambda side: 2 * side / (k - 1 + 2 * window),
        )

    return {
        "MHSA": Kind(
            lambda c: self_attention(c, 1),
            lambda c: 4 * (c + 1) * c,
            lambda c, n: 8 * c * c * n + 4 * c * n * n + 3 * n * n,
            lambda side: 1,
        ),
        "W-MHSA": Kind(
            windows,
            lambda c: 4 * (c + 1) * c,
            lambda c, n: 8 * c * c * n + 4 * c * n * l + 3 * n * l,
            lambda side: math.inf,
        ),
        "Conv": Kind(
            lambda c: nn.Conv2d(c, c, k, padding=k // 2),
            lambda c: (c * k * k + 1) * c,
            lambda c, n: 2 * c * k * k * n * c,
            lambda side: 2 * side / (k - 1),
        ),
        "DW-Conv": Kind(
            lambda c: nn.Conv2d(c, c, k, padding=k // 2, groups=c),
            lambda c: (k * k + 1) * c,
            lambda c, n: 2 * k * k * n * c,
            lambda side: 2 * side / (k - 1),
        ),
        "iRMB, contiguous windows": cascade("contiguous"),
        "iRMB, strided windows": cascade("strided"),
    }


def _softmax(shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 3 * math.prod(shape)  # exponential, sum, division


def count_flops(module: nn.Module, channels: int, side: int) -> int:
    """FLOPs of a module on the meta device, of which nothing is computed: any size will do."""
    rules = {torch.ops.aten._softmax: _softmax}
    with FlopCounterMode(display=False, custom_mapping=rules) as counter, torch.no_grad():
        module(torch.empty(1, channels, side, side, device="meta"))
    return counter.get_total_flops()


def study_complexity(
    out: str | Path | None = None,
    *,
    channels: Sequence[int] = (32, 64, 128, 256),
    sides: Sequence[int] = (7, 14, 28, 56),
    window: int = 7,
    kernel: int = 3,
    expand_ratio: int = 4,
) -> list[OperatorRow]:
    """Parameters, FLOPs and maximum path length of each operator by formula, and as measured.

    A row for each module and size: all widths on the middle one of `sides`, and all sides at the middle one
    of `channels`. `out` is a folder for complexity.json and complexity.png. Errors: ValueError for a side
    that the window does not divide (the formulas know no padding), an even kernel, an empty list.
    """
    if not channels or not sides or min(*channels, *sides, window, expand_ratio) < 1:
        raise ValueError(
            f"channels {list(channels)}, sides {list(sides)}, window {window}: expected positive numbers"
        )
    for side in sides:
        if side % window:
            raise ValueError(
                f"window {window} does not divide side {side}, and the formulas know no padding; "
                f"the next larger one is {side + -side % window}"
            )
    if kernel % 2 == 0 or kernel < 3:
        raise ValueError(f"kernel {kernel}: expected an odd number of at least 3")
    torch.manual_seed(0)
    middle_width, middle_side = channels[len(channels) // 2], sides[len(sides) // 2]
    sizes = sorted({(c, middle_side) for c in channels} | {(middle_width, side) for side in sides})
    rows = []
    for name, kind in operator_kinds(window, kernel, expand_ratio).items():
        paths = {
            side: measure_path_length(partial(kind.make, PROBE_CHANNELS), PROBE_CHANNELS, side)
            for side in sides
            if side <= LARGEST_REACH
        }
        for width, side in sizes:
            with torch.device("meta"):
                module = kind.make(width)
            rows.append(
                OperatorRow(
                    module=name,
                    channels=width,
                    side=side,
                    parameters_formula=kind.parameters(width),
                    parameters_counted=sum(p.numel() for p in module.parameters()),
                    flops_formula=kind.flops(width, side * side),
                    flops_counted=count_flops(module, width, side),
                    path_formula=kind.path(side),
                    path_measured=paths.get(side),
                )
            )
    if out is not None:
        settings = {"window": window, "kernel": kernel, "expand_ratio": expand_ratio}
        write_rows(Path(out) / "complexity.json", rows, settings)
        with aside(Path(out) / "complexity.png") as path:
            draw_rows(rows, middle_width, middle_side).savefig(path, format="png", dpi=150)
    return rows


def write_rows(path: Path, rows: Sequence[OperatorRow], settings: dict[str, int]) -> None:
    """JSON of all rows. An infinite path is "never", one that was not measured null."""

    def plain(value: Any) -> Any:
        return "never" if value == math.inf else value

    table = [{key: plain(value) for key, value in asdict(row).items()} for row in rows]
    write_text(
        path, json.dumps({"settings": settings, "versions": current_versions(), "rows": table}, indent=1)
    )


STYLES = {  # colour and marker
    "MHSA": ("#0072b2", "o"),
    "W-MHSA": ("#56b4e9", "x"),
    "Conv": ("#000000", "s"),
    "DW-Conv": ("#999999", "D"),
    "iRMB, contiguous windows": ("#d55e00", "^"),
    "iRMB, strided windows": ("#009e73", "v"),
}


def draw_rows(rows: Sequence[OperatorRow], channels: int, side: int) -> Figure:
    """Parameters and FLOPs against width and resolution, and path length."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    by_width = [row for row in rows if row.side == side]
    by_side = [row for row in rows if row.channels == channels]
    draw_panel(top_left, by_width, "channels", "parameters", "Parameters")
    draw_panel(top_right, by_width, "channels", "flops", f"FLOPs on a map of {side} x {side}")
    draw_panel(bottom_left, by_side, "side", "flops", f"FLOPs at {channels} channels")
    draw_panel(bottom_right, by_side, "side", "path", "Modules that connect all positions (W-MHSA: never)")
    handles = top_left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Operators of the Meta Mobile Block: lines by formula, marks measured")
    return figure


def draw_panel(axes: Axes, rows: Sequence[OperatorRow], over: str, field: str, title: str) -> None:
    """One quantity over "channels" or "side", both on logarithmic scales."""
    measured = "path_measured" if field == "path" else f"{field}_counted"
    for name, (colour, marker) in STYLES.items():
        chosen = [row for row in rows if row.module == name]
        x = [getattr(row, over) for row in chosen]
        axes.plot(x, [getattr(row, f"{field}_formula") for row in chosen], color=colour, linewidth=1.2)
        marks = [getattr(row, measured) or math.nan for row in chosen]
        axes.plot(x, marks, marker, color=colour, markerfacecolor="none", markersize=8, label=name)
    axes.set(title=title, xscale="log", yscale="log")
    axes.set_xlabel("channels C" if over == "channels" else "side of the map W")
    axes.set_xticks(sorted({getattr(row, over) for row in rows}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
