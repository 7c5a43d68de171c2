"""Answers as text: tables on a terminal, tab-separated lines in a pipe. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from metamobile.files import bytes_of
from metamobile.tasks import get_results

if TYPE_CHECKING:
    from metamobile.deploy.cost import Cost
    from metamobile.deploy.gate import GateResult
    from metamobile.study.operators import OperatorRow

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def print_gate(gate: GateResult) -> None:
    """What was compared, the differences for each batch size, and the verdict."""
    boxes = f", {gate.boxes:,} boxes" if gate.boxes else ""
    print(f"{gate.runtime} against PyTorch on {gate.pictures} pictures{boxes}: {gate.source}")
    columns, rows = [">batch", ">largest difference"], []
    if gate.share_of:
        columns.append(f">of {gate.share_of}")
    for row in gate.rows:
        share = [f"{row.max_diff / gate.scale:.1e}"] if gate.share_of else []
        agreement = f"{100 * row.agreement:.1f} %"
        batch = f"{row.batch_size} of {row.size[0]}x{row.size[1]}" if row.size else f"{row.batch_size}"
        rows.append([batch, f"{row.max_diff:.2e}", *share, f"{row.mean_diff:.2e}", agreement])
    print_table("", [*columns, ">mean difference", f">{gate.same}"], rows)
    if gate.cost is not None:
        print_cost(gate.cost)
    if gate.passed:
        size = f"{bytes_of(gate.path) / 1e6:.1f} MB"
        if gate.executed:
            typer.secho(f"PASS  {gate.path}, {size}", fg="green")
        else:
            typer.secho(f"converted, not executed  {gate.path}, {size}", fg="yellow")
    else:
        kept = ".unverified" in gate.path.suffixes
        typer.secho(f"FAIL  {gate.path}{' kept' if kept else ' not written'}", fg="red")


def print_cost(cost: Cost) -> None:
    """What a lower precision costs, in one line."""
    measured = f"{cost.figure} not measured ({cost.why})"
    if cost.before is not None and cost.after is not None:
        change = f"{cost.before:.2f} to {cost.after:.2f} {cost.unit}"
        measured = f"{cost.figure} {change} on {cost.pictures:,} pictures"
    print(f"{measured}; {cost.size:.2f} of the size and {cost.time:.2f} of the time of the fp32 file")


def print_answers(task: str, results: Sequence[Any]) -> None:
    """One line a picture, as the task tells its answers."""
    columns, rows = get_results(task).answers_table(results)
    print_table("", columns, rows)


def print_figures(figures: Mapping[str, Any]) -> None:
    """What `metamobile.evaluate` gives: a line, then a table with each class."""
    module = get_results(figures["task"])
    print(module.figures_line(figures))
    title, columns, rows = module.class_table(figures)
    print_table(title, columns, rows)


def print_operators(rows: Sequence[OperatorRow]) -> None:
    """What each operator costs and how far it reaches, by formula and as measured."""
    names = ["module", ">C", ">side", ">parameters", ">counted", ">FLOPs", ">counted", ">path", ">measured"]
    cells = []
    for row in rows:
        costs = [row.parameters_formula, row.parameters_counted, row.flops_formula, row.flops_counted]
        measured = "-" if row.path_measured is None else f"{row.path_measured:.3g}"
        cells.append(
            [row.module, f"{row.channels}", f"{row.side}", *(f"{cost:,}" for cost in costs)]
            + [f"{row.path_formula:.3g}", measured]
        )
    print_table("Operators of the block, by formula and as measured", names, cells)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated lines in a pipe. ">" before a name aligns its column right."""
    if not rows:
        return
    names = [column.lstrip(">") for column in columns]
    if not sys.stdout.isatty():
        for row in [names, *rows]:
            print("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name, column in zip(names, columns, strict=True):
        table.add_column(name, justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
