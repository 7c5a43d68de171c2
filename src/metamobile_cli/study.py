"""The verbs of `metamobile study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from metamobile_cli.options import DEVICE, complain, parse_numbers, remark, split_commas, split_settings

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


@study.command("ablate")
def study_ablate(
    grid: Annotated[str, Argument(metavar="GRID", help="components, stages, kernel, window, attention, ...")],
    data: Annotated[str | None, Option(metavar="DATA", help="Folder of class folders.")] = None,
    model: Annotated[str, Option(metavar="NAME", help="Network that is varied.")] = "emo_1m",
    recipe: Annotated[str, Option(metavar="NAME|FILE", help="The one recipe of all runs.")] = "ablate",
    out: Annotated[Path | None, Option(metavar="DIR", help="Runs and tables; else runs/ablate-GRID.")] = None,
    seeds: Annotated[int, Option(metavar="N", min=1, help="Runs of each cell.")] = 3,
    only: Annotated[str | None, Option(metavar="CELLS", help="Train these alone, with commas.")] = None,
    epochs: Annotated[int | None, Option(metavar="N", min=1, help="Times through the data.")] = None,
    size: Annotated[int | None, Option(metavar="PX", min=32, help="Side of the pictures.")] = None,
    settings: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Any setting of the recipe.")
    ] = None,
    device: Annotated[str | None, DEVICE] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Count parameters and FLOPs; train nothing.")] = False,
) -> None:
    """Train a small grid of networks that differ in one thing; the same command goes on."""
    from metamobile.show import print_table
    from metamobile.study.ablate import ablate
    from metamobile.study.ablate_table import ablation_tables
    from metamobile.training.loop import Interrupted

    try:
        ablation = ablate(
            grid,
            data,
            model=model,
            recipe=recipe,
            out=out,
            seeds=seeds,
            only=split_commas([only]) if only else None,
            epochs=epochs,
            size=size,
            set=split_settings(settings or []),
            device=device,
            dry_run=dry_run,
        )
    except Interrupted as stop:  # what goes on was said
        raise typer.Exit(130) from stop
    for title, columns, rows in ablation_tables(ablation):
        print_table(title, columns, rows)
    if out or not dry_run:
        plot = " and .png" if (ablation.folder / "ablation.png").is_file() else ""
        remark(f"wrote {ablation.folder / 'ablation.json'}, .md{plot}")


@study.command("diagonal")
def study_diagonal(
    models: Annotated[list[str], Argument(metavar="MODELS", help="Run folders, weights or names.")],
    data: Annotated[str, Option(metavar="PICTURES", help="Folder, file or glob.")],
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Write diagonal.json and diagonal.png here.")
    ] = None,
    roles: Annotated[
        str | None, Option(metavar="LIST", help="conv, attention, both or - for each; else told by looking.")
    ] = None,
    stage: Annotated[int, Option(metavar="N", min=0, max=4, help="Whose map is measured.")] = 3,
    size: Annotated[int | None, Option(metavar="PX", min=32, help="Side of the pictures.")] = None,
    windows: Annotated[
        str, Option(metavar="HOW", help="At another size: scaled with the map, or kept.")
    ] = "scaled",
    most: Annotated[int, Option(metavar="N", min=1, help="Pictures, evenly spread.")] = 256,
    device: Annotated[str, DEVICE] = "cpu",
) -> None:
    """Similarity of features along the diagonal: how far attention, convolution and both reach."""
    from metamobile.show import print_table
    from metamobile.study.diagonal import study_diagonal
    from metamobile.study.diagonal_figure import diagonal_tables
    from metamobile.training.progress import Reporter

    with Reporter().bar(0) as bar:
        found = study_diagonal(
            models,
            data,
            out=out,
            roles=split_commas([roles]) if roles else None,
            stage=stage,
            size=size,
            windows=windows,
            most=most,
            device=device,
            progress=lambda done, total: bar.move("measuring", done, total),
        )
    for title, columns, rows in diagonal_tables(found):
        print_table(title, columns, rows)
    for failure in found.failures:
        complain(failure)
    if out:
        remark(f"wrote {out / 'diagonal.json'} and {out / 'diagonal.png'}")
    raise typer.Exit(1 if found.failures else 0)


@study.command("reproduce")
def study_reproduce(
    names: Annotated[
        list[str] | None, Argument(metavar="TABLES", help="Left out: the list of what there is.")
    ] = None,
    every: Annotated[bool, Option("--all", help="All tables.")] = False,
    data: Annotated[
        list[str] | None,
        Option(metavar="FOLDER", help="To measure accuracy on; or imagenet=, coco=, ade20k=FOLDER."),
    ] = None,
    runs: Annotated[Path, Option(metavar="DIR", help="Where trained networks lie.")] = Path("runs"),
    html: Annotated[Path | None, Option(metavar="FILE", help="Write one page of it all.")] = None,
    device: Annotated[str, DEVICE] = "cpu",
) -> None:
    """The papers' tables beside our counts and figures; a cell without one says what is missing."""
    from metamobile.show import print_table
    from metamobile.study.reproduce import reproduce

    tables = reproduce(names, all=every, data=split_folders(data or []), runs=runs, html=html, device=device)
    for table in tables:
        print_table(*table.table)
        for note in table.notes:
            remark(note)
    if html:
        remark(f"wrote {html}")


def split_folders(values: list[str]) -> str | dict[str, str] | None:
    """["coco=a", "ade20k=b"] -> folders by kind; ["a"] -> one folder. Errors: ValueError for a mixture."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    if any("=" not in value for value in values):
        raise ValueError(f"--data {', '.join(values)}: expected one folder, or KIND=FOLDER for each")
    return dict(value.split("=", 1) for value in values)
