"""The verbs of `metamobile study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from metamobile_cli.options import parse_numbers, remark

study = typer.Typer(help="What the papers claim about the block, measured.")


@study.command("complexity")
def study_complexity(
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Write complexity.json and complexity.png here.")
    ] = None,
    channels: Annotated[str, Option(metavar="LIST", help="Widths of the modules.")] = "32,64,128,256",
    sides: Annotated[str, Option(metavar="LIST", help="Sides of the maps.")] = "7,14,28,56",
    window: Annotated[int, Option(metavar="N", min=1, help="Side of a window.")] = 7,
    kernel: Annotated[int, Option(metavar="N", min=3, help="Side of a convolution's kernel.")] = 3,
) -> None:
    """Parameters, FLOPs and path length of the operators: the papers' formulas, and as measured."""
    widths, maps = parse_numbers("--channels", channels), parse_numbers("--sides", sides)
    from metamobile.show import print_operators
    from metamobile.study.operators import study_complexity

    print_operators(study_complexity(out, channels=widths, sides=maps, window=window, kernel=kernel))
    if out:
        remark(f"wrote {out / 'complexity.json'} and {out / 'complexity.png'}")


@study.command("criteria")
def study_criteria(
    names: Annotated[
        list[str] | None,
        Argument(metavar="NAMES", help="Networks, ours or timm's; left out: those of the paper's table."),
    ] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Write criteria.json here.")] = None,
) -> None:
    """What a mobile network should be: the paper's four criteria, marked by counts beside its own marks."""
    from metamobile.show import print_table
    from metamobile.study.criteria import study_criteria
    from metamobile.study.tables import criteria_tables

    for title, columns, rows in criteria_tables(study_criteria(names, out)):
        print_table(title, columns, rows)
    if out:
        remark(f"wrote {out / 'criteria.json'}")


@study.command("heads")
def study_heads(
    out: Annotated[Path | None, Option(metavar="DIR", help="Write heads.json here.")] = None,
) -> None:
    """Detectors and segmenters: parameters and FLOPs beside the papers', each difference named."""
    from metamobile.show import print_table
    from metamobile.study.heads import study_heads
    from metamobile.study.tables import head_table

    print_table(*head_table(study_heads(out)))
    if out:
        remark(f"wrote {out / 'heads.json'}")
