"""Studies as tables of text: of the criteria one for each and one of what differs, and one of the heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from metamobile.study.criteria import OTHER_SIZE, CriteriaRow
from metamobile.study.peers import CRITERIA

if TYPE_CHECKING:
    from metamobile.show import Table
    from metamobile.study.heads import HeadRow


def criteria_tables(rows: Sequence[CriteriaRow]) -> Iterator[Table]:
    """Our mark and the paper's have columns of their own; "-" is unknown, or not in the paper's table."""
    described = (
        (
            "Usability; other arithmetic and indexed movement are outside the stated set",
            _usability,
            [">kinds of operators", "other arithmetic", "indexed movement", ">copies"],
        ),
        (
            "Uniformity; kinds of blocks by what is in them, as one class can hold many switches",
            _uniformity,
            [">block classes", ">kinds", "largest kind", ">its share"],
        ),
        (
            "Efficiency and effectiveness; ahead are networks as accurate or more with no more of it",
            _efficiency,
            [
                ">px",
                ">M parameters",
                ">M multiply-adds",
                ">top-1 %, paper's",
                ">ahead in parameters",
                ">in multiply-adds",
                ">in both",
                "the best of them",
            ],
        ),
        (
            "Generalisation",
            _generalisation,
            [
                "strides of features",
                f"runs at {OTHER_SIZE[0]}x{OTHER_SIZE[1]}",
                "tasks of the series in the paper",
            ],
        ),
    )
    for criterion, (title, describe, columns) in zip(CRITERIA, described, strict=True):
        cells = []
        for row in rows:
            counted = describe(row)
            name = row.model if counted else f"{row.model}, not in timm"
            cells.append([name, *(counted or "-" * len(columns)), *_marks(row, criterion)])
        yield title, ["network", *columns, "by count", "the paper's"], cells
    differing = [
        [row.model, criterion, *_marks(row, criterion)] for row in rows for criterion in row.differences()
    ]
    yield "Where the two differ", ["network", "criterion", "by count", "the paper's"], differing


def _marks(row: CriteriaRow, criterion: str) -> list[str]:
    return [row.ours()[criterion] or "-", row.paper()[criterion] or "-"]


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "-"


def _usability(row: CriteriaRow) -> list[str] | None:
    part = row.usability
    if part is None:
        return None
    kinds = len(part.inside) + len(part.other) + len(part.indexed)
    return [f"{kinds}", _names(part.other), _names(part.indexed), f"{sum(part.copies.values())}"]


def _uniformity(row: CriteriaRow) -> list[str] | None:
    part = row.uniformity
    if part is None:
        return None
    if not part.kinds:
        return ["-", "-", "no list of blocks found", "-"]
    largest = part.kinds[0]
    return [
        f"{len(part.classes)}",
        f"{part.counted}",
        " + ".join(largest.contents),
        f"{100 * largest.share:.0f} %",
    ]


def _efficiency(row: CriteriaRow) -> list[str] | None:
    """Ahead is a network that is at least as accurate with no more of it."""
    part = row.efficiency
    if part is None:
        return None
    height, width = part.size
    counts = [f"{height}" if height == width else f"{height}x{width}"]
    counts += [f"{part.parameters / 1e6:.2f}", f"{part.multiply_adds / 1e6:,.0f}"]
    if part.top1 is None:
        return [*counts, *"-----"]
    ahead = (part.no_more_parameters, part.no_more_multiply_adds, part.no_more_of_both)
    best = next((names[0] for names in reversed(ahead) if names), "-")
    teacher = " (teacher)" if part.distilled else ""
    return [*counts, f"{part.top1:.1f}{teacher}", *(f"{len(names)}" for names in ahead), best]


def _generalisation(row: CriteriaRow) -> list[str] | None:
    part = row.generalisation
    if part is None:
        return None
    strides = _names(f"{stride}" for stride in part.strides)
    return [strides, "yes" if part.other_size else "no", _names(part.tasks or ())]


def head_table(rows: Sequence[HeadRow]) -> Table:
    """Published detectors and segmenters; "-" is not counted, or not printed."""
    columns = ["network", "head", ">px", ">window", ">M parameters", ">G multiply-adds", ">G FLOPs"]
    columns += [">M parameters, paper's", ">G FLOPs, paper's", "agrees", "what the paper's figure counts"]
    return (
        "Detectors and segmenters; FLOPs are by the papers' rule, multiply-adds and norms",
        columns,
        [_head(row) for row in rows],
    )


def _head(row: HeadRow) -> list[str]:
    height, width = row.size or (0, 0)
    size = "-" if not row.size else f"{height}" if height == width else f"{height}x{width}"
    counts = ["-" if count is None else f"{count / 1e9:.3f}" for count in (row.multiply_adds, row.flops)]
    ours = [size, f"{row.window or '-'}", f"{row.parameters / 1e6:.3f}", *counts]
    agrees = "no" if not row.agrees else "parameters" if row.flops_agree is None else "yes"
    said = "; ".join(part for part in (row.explained, row.exempt) if part)
    return [row.model, row.head, *ours, row.printed_parameters, row.printed_flops or "-", agrees, said or "-"]
