"""The figure and the tables of the diagonal similarity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metamobile.study.diagonal import Diagonal, DiagonalRow
from metamobile.study.diagonal_claim import CLAIM, FIGURES, ROLES

if TYPE_CHECKING:
    from metamobile.show import Table

COLUMNS = 4  # heat maps in a row
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#000000")
DASHES = ("-", "--", ":", "-.")


def title_of(row: DiagonalRow) -> str:
    """The role, where there is one, and the end of the name."""
    name = row.name if len(row.name) <= 30 else "..." + row.name[-27:]
    return f"{ROLES[row.role]}\n{name}" if row.role else name


def draw(result: Diagonal) -> Figure:
    """A heat map of each network, all on one scale of colours, and the curves with their half-widths."""
    rows = result.rows
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    above, below = 3.3 * lines + 0.9 * bool(result.comparisons), 3.6 + 0.11 * len(rows)
    figure = Figure(figsize=(max(7.5, 3.1 * columns), above + below), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(above, below))
    top, bottom = parts
    grid = top.subplots(lines, columns, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(rows):
            axes.axis("off")
            continue
        image = axes.imshow(rows[index].similarity, vmin=0, vmax=1, cmap="viridis")
        axes.set_title(title_of(rows[index]), fontsize=10)
        ticks = range(0, rows[index].side, max(1, rows[index].side // 7))
        axes.set(xticks=ticks, yticks=ticks, xlabel="position j", ylabel="position i")
    top.colorbar(image, ax=grid, label="mean similarity", shrink=0.85)
    axes = bottom.subplots()
    for row, (colour, style) in zip(rows, line_styles(rows), strict=True):
        label = f"{title_of(row).replace(chr(10), ', ')}: half-width {width_text(row)}"
        axes.plot(range(row.side), row.curve, style, color=colour, marker="o", markersize=4, label=label)
        if row.reach.half_width is not None:
            height = (row.curve[0] + min(row.curve)) / 2
            axes.plot(row.reach.half_width, height, "D", color=colour, markersize=9, markerfacecolor="none")
    axes.set(xlabel="distance |i - j| along the diagonal", ylabel="mean similarity", ylim=(0, 1.02))
    axes.set_title(
        "Similarity over distance; the diamond is half-way down to the curve's lowest", fontsize=10
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    bottom.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=1 + (columns > 3))
    title = f"Diagonal similarity in stage {result.stage}, {rows[0].pictures} pictures"
    if result.comparisons:
        title += "".join(f"\n{text}: {result.verdict(part)}" for part, text in CLAIM.items())
    figure.suptitle(title, fontsize=11)
    return figure


def line_styles(rows: Sequence[DiagonalRow]) -> list[tuple[str, str]]:
    """Colour and dashes of each: a colour for each role and for each network without one; dashes tell those
    of a colour apart."""
    groups = list(dict.fromkeys(row.role or row.name for row in rows))
    places = [groups.index(row.role or row.name) % len(COLOURS) for row in rows]
    return [(COLOURS[at], DASHES[places[:i].count(at) % len(DASHES)]) for i, at in enumerate(places)]


def width_text(row: DiagonalRow) -> str:
    width = row.reach.half_width
    return f"more than {row.side - 1}" if width is None else f"{width:.2f}"


def diagonal_tables(result: Diagonal) -> Iterator[Table]:
    """The figures of each network; the comparisons; the verdicts, or why there are none."""
    columns = [
        "network",
        "role",
        ">px",
        ">map",
        "windows",
        ">pictures",
        *(f">{each}" for each in FIGURES.values()),
    ]
    yield (
        f"Diagonal similarity in stage {result.stage}; distances are in positions of the map",
        columns,
        [
            [
                row.name,
                ROLES[row.role] if row.role else "-",
                f"{row.size}",
                f"{row.side}x{row.side}",
                ", ".join(f"{h}x{w}" for h, w in row.windows) or "-",
                f"{row.pictures}",
                width_text(row),
                *(f"{getattr(row.reach, figure):.3f}" for figure in list(FIGURES)[1:]),
            ]
            for row in result.rows
        ],
    )
    yield (
        f"The claim as comparisons; {result.spread}",
        ["claim", "figure", "more", "less", ">difference", ">from", ">to", "verdict"],
        [
            [CLAIM[row.part], FIGURES[row.figure], ROLES[row.more], ROLES[row.less]]
            + [f"{value:+.3f}" for value in (row.difference, row.low, row.high)]
            + [row.verdict]
            for row in result.comparisons
        ],
    )
    if not result.comparisons:
        yield "The claim", ["claim", "verdict"], [[text, result.spread] for text in CLAIM.values()]
        return
    verdicts = [[text, result.verdict(part) or "-"] for part, text in CLAIM.items()]
    yield "The claim", ["claim", "verdict"], [*verdicts, ["all of it", result.verdict() or "-"]]
