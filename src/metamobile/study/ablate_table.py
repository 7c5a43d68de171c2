"""An ablation as tables, as a figure, and as files; and whether the paper's order holds.

Ours and the papers' figures have columns of their own: other data, other sizes, other schedules.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from metamobile.files import aside, write_text
from metamobile.models.variants import VARIANTS
from metamobile.study.grids import EMO_5M, EMOV2_5M, Published
from metamobile.weights.card import current_versions

if TYPE_CHECKING:
    from metamobile.show import Table
    from metamobile.study.ablate import Ablation, CellResult, PublishedCount

PAPERS = {EMO_5M: "EMO-5M", EMOV2_5M: "EMOv2-5M"}

# Student's t: 95 % lie within this many standard errors, by degrees of freedom from 1; above 30, as for 30.
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

RULE = (
    "The difference of two cells' means against its 95 % margin: Student's t times the standard deviation "
    "over seeds, pooled over all cells of the grid, times sqrt(1/n + 1/m) for n and m seeds. confirmed: "
    "above the margin; refuted: below minus the margin; undecided: between, or without a spread. The order "
    "is confirmed if each step is, and refuted if one step is. Pairs are not corrected for their number."
)


@dataclass(frozen=True)
class Step:
    """Two neighbours of the paper's order: by how many points `higher` is above `lower`, and the margin."""

    lower: str
    higher: str
    difference: float | None
    margin: float | None

    @property
    def verdict(self) -> str:
        if self.difference is None or self.margin is None or abs(self.difference) <= self.margin:
            return "undecided"
        return "confirmed" if self.difference > 0 else "refuted"


def pooled_spread(samples: Iterable[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation within groups, with its degrees of freedom; None without any."""
    groups = [group for group in samples if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None, 0
    squares = sum((len(group) - 1) * statistics.variance(group) for group in groups)
    return math.sqrt(squares / freedom), freedom


def judge_steps(samples: Mapping[str, Sequence[float]], claim: Sequence[str]) -> list[Step]:
    """Each step of `claim`, worst first, by `RULE`; `samples` are the figures over seeds by cell."""
    spread, freedom = pooled_spread(samples.values())
    steps = []
    for lower, higher in zip(claim, claim[1:], strict=False):
        low, high = samples.get(lower, ()), samples.get(higher, ())
        difference = statistics.fmean(high) - statistics.fmean(low) if low and high else None
        margin = None
        if spread is not None and difference is not None:
            t = T_95[min(freedom, len(T_95)) - 1]
            margin = t * spread * math.sqrt(1 / len(low) + 1 / len(high))
        steps.append(Step(lower, higher, difference, margin))
    return steps


def judge_order(steps: Sequence[Step]) -> str:
    verdicts = {step.verdict for step in steps}
    return "refuted" if "refuted" in verdicts else "confirmed" if verdicts == {"confirmed"} else "undecided"


def judge(ablation: Ablation) -> list[Step]:
    """The steps of the paper's order; none for a grid without a claim."""
    samples = {r.cell.name: [run.top1 for run in r.runs] for r in ablation.results}
    return judge_steps(samples, ablation.grid.claim)


def ablation_tables(ablation: Ablation) -> list[Table]:
    """As `show.print_table` takes them: the cells, the verdict if there is a claim, the papers' counts."""
    tables = [cells_table(ablation)]
    if ablation.grid.claim and any(result.runs for result in ablation.results):
        tables.append(verdict_table(ablation))
    if any(_has_costs(count.row) for count in ablation.published):
        tables.append(published_table(ablation.published))
    return tables


def cells_table(ablation: Ablation) -> Table:
    """Ours as trained, and the papers' top-1 beside it; "-" is not known."""
    networks = [name for name in PAPERS if any(count.row.network == name for count in ablation.published)]
    columns = ["cell", ">seeds", ">top-1 %", ">standard deviation", ">lowest", ">highest"]
    columns += [">M parameters", ">M FLOPs", *(f">{PAPERS[name]}, paper's top-1 %" for name in networks)]
    results = {result.cell.name: result for result in ablation.results}
    rows = []
    for cell in ablation.grid.cells:
        printed = {row.network: row.top1 for row in cell.published}
        papers = [_figure(printed.get(name), 1) for name in networks]
        ours = _ours(results[cell.name], ablation.seeds) if cell.name in results else ["not built", *"-" * 6]
        rows.append([cell.name, *ours, *papers])
    return f"{ablation.grid.title}: {about_runs(ablation)}", columns, rows


def _ours(result: CellResult, seeds: int) -> list[str]:
    top1 = [run.top1 for run in result.runs]
    done = f"{len(top1)} of {max(seeds, len(top1))}"
    spread = statistics.stdev(top1) if len(top1) > 1 else None
    figures = [statistics.fmean(top1), spread, min(top1), max(top1)] if top1 else [None] * 4
    costs = [f"{result.counted.parameters / 1e6:.3f}", f"{result.counted.flops_paper / 1e6:.1f}"]
    return [done, *(_figure(figure) for figure in figures), *costs]


def verdict_table(ablation: Ablation) -> Table:
    steps = judge(ablation)
    rows = [
        [
            f"{step.lower} < {step.higher}",
            "-" if step.difference is None else f"{step.difference:+.2f}",
            _figure(step.margin),
            step.verdict,
        ]
        for step in steps
    ]
    rows.append([" < ".join(ablation.grid.claim), "", "", judge_order(steps)])
    return "The paper's order", ["step", ">difference of means", ">margin", "verdict"], rows


def published_table(counts: Sequence[PublishedCount]) -> Table:
    columns = ["network", "cell", ">M parameters", ">M FLOPs", ">M parameters, paper's", ">M FLOPs, paper's"]
    columns += [">M parameters, official code", ">M FLOPs, official code"]
    rows = []
    for count in counts:
        row = count.row
        if not _has_costs(row):
            continue
        ours = ["-", "-"]
        if count.counted is not None:
            ours = [f"{count.counted.parameters / 1e6:.3f}", f"{count.counted.flops_paper / 1e6:.1f}"]
        theirs = printed_and_recounted(row)
        agrees = {True: "yes", False: "no", None: "not built"}[count.agrees]
        rows.append([PAPERS[row.network], count.cell.name, *ours, *theirs, agrees, remark_of(count)])
    title = "The papers' networks at 224 px, counted; what no table prints is the official code, counted"
    return title, [*columns, "agrees", "remark on the paper's row"], rows


def remark_of(count: PublishedCount) -> str:
    """First of all, whether a printed count is not met."""
    parts = [part for part in (count.row.unmet, count.row.remark) if part]
    if count.agrees is False or (count.counted is None and count.row.unmet):
        return "; ".join(["cannot be met exactly", *parts])
    return "; ".join(parts) or "-"


def printed_and_recounted(row: Published) -> list[str]:
    """Millions of parameters and of FLOPs: as printed, then of the official code; one pair is "-"."""
    figures = [figure or "-" for figure in (row.parameters, row.flops)]
    return ["-", "-", *figures] if row.recount else [*figures, "-", "-"]


def _has_costs(row: Published) -> bool:
    return row.parameters is not None or row.flops is not None


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def about_runs(ablation: Ablation) -> str:
    """Network, data, size and length, in one line."""
    recipe, (height, width) = ablation.recipe, ablation.recipe.data.shape
    epochs = recipe.schedule.epochs
    data = Path(recipe.data.path).name if recipe.data.path else f"{ablation.classes:,} classes"
    size = f"{height} px" if height == width else f"{height}x{width} px"
    return f"{recipe.model.name}, {data}, {size}, {epochs} epoch{'s' * (epochs != 1)}"


def write_results(ablation: Ablation) -> None:
    """ablation.json, ablation.md and, once a run is done, ablation.png, in the folder of the runs."""
    about = json.dumps(to_dict(ablation), indent=1, allow_nan=False)
    write_text(ablation.folder / "ablation.json", about + "\n")
    write_text(ablation.folder / "ablation.md", to_markdown(ablation))
    if any(result.runs for result in ablation.results):
        with aside(ablation.folder / "ablation.png") as path:
            draw(ablation).savefig(path, format="png", dpi=150)


def to_dict(ablation: Ablation) -> dict[str, Any]:
    variant = VARIANTS[ablation.recipe.model.name]
    steps = judge(ablation)
    start = ablation.start
    return {
        "what": f"{ablation.name}: {about_runs(ablation)}; top-1 in % of the last epoch",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seeds": ablation.seeds,
        "machine": start.get("machine"),
        "device": start.get("device"),
        "data": start.get("data"),
        "versions": start.get("versions") or current_versions(),
        "rule": RULE,
        "claim": list(ablation.grid.claim),
        "steps": [asdict(step) | {"verdict": step.verdict} for step in steps],
        "order": judge_order(steps) if steps else None,
        "cells": [
            {
                "name": result.cell.name,
                "settings": result.cell.settings(variant) if result.cell.settings else None,
                "counted": asdict(result.counted),
                "runs": [asdict(run) for run in result.runs],
            }
            for result in ablation.results
        ],
        "published": [
            {
                "cell": count.cell.name,
                "counted": asdict(count.counted) if count.counted else None,
                "agrees": count.agrees,
                **asdict(count.row),
            }
            for count in ablation.published
        ],
        "recipe": ablation.recipe.to_dict(),
    }


def to_markdown(ablation: Ablation) -> str:
    grid = ablation.grid
    parts = [f"# {grid.title}\n", f"Varied: {grid.varies}.{' ' + grid.note if grid.note else ''}\n"]
    for title, columns, rows in ablation_tables(ablation):
        bars = ["--:" if column.startswith(">") else ":--" for column in columns]
        lines = [[column.lstrip(">") for column in columns], bars, *rows]
        parts.append(f"**{title}**\n")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    parts.append(
        "Top-1 is that of the last epoch's weights, averaged ones if the recipe averages. The standard "
        "deviation is over seeds. FLOPs are by the papers' rule, multiply-adds and norms, and those of the "
        f"cells are at the size and with the {ablation.classes:,} classes trained on. "
        '"-" is not known.\n'
    )
    if grid.source:
        parts.append(f"The papers' figures: {grid.source}; ImageNet-1K at 224 px.\n")
    if grid.claim:
        parts.append(f"{RULE}\n")
    return "\n".join(parts)


def draw(ablation: Ablation) -> Figure:
    """A row a cell: a dot for each seed, a bar at their mean."""
    results = ablation.results
    figure = Figure(figsize=(7, 1.5 + 0.45 * len(results)), layout="constrained")
    axes = figure.subplots()
    for place, result in enumerate(results):
        top1 = [run.top1 for run in result.runs]
        if not top1:
            continue
        dots = axes.scatter(top1, [place] * len(top1), s=34, color="tab:blue", alpha=0.65, linewidths=0)
        mean = statistics.fmean(top1)
        bar = axes.vlines(mean, place - 0.28, place + 0.28, color="black", linewidth=1.6)
        axes.annotate(
            f"{mean:.2f}", (mean, place - 0.28), (0, 2), textcoords="offset points", ha="center", fontsize=8
        )
        if axes.get_legend_handles_labels() == ([], []):
            dots.set_label("one seed")
            bar.set_label("mean")
    axes.set_yticks(range(len(results)), [result.cell.name for result in results])
    axes.set_ylim(len(results) - 0.4, -0.75)  # the first cell on top
    axes.margins(x=0.08)
    axes.set_xlabel("top-1 of the last epoch, %")
    axes.set_title(f"{ablation.grid.title}\n{about_runs(ablation)}", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure
