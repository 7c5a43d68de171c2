"""The verbs of exported files: what writes them, and what times them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from metamobile_cli.options import (
    DEVICE,
    MODEL,
    SIZE,
    complain,
    parse_size,
    parse_size_or_any,
    remark,
    split_commas,
)


def export(
    model: Annotated[str, MODEL],
    to: Annotated[list[str], Option(metavar="RUNTIME", help="onnx, torch-export, ...; several by commas.")],
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder for the files; else the run folder.")
    ] = None,
    verify: Annotated[
        str | None, Option(metavar="FOLDER", help="Pictures for the gate; else the run's own, else shapes.")
    ] = None,
    precision: Annotated[
        list[str] | None, Option(metavar="P", help="fp32, fp16 or int8; several by commas.")
    ] = None,
    calibrate: Annotated[
        str | None,
        Option(metavar="FOLDER", help="Pictures that int8 is set by; else the run's training pictures."),
    ] = None,
    with_preprocessing: Annotated[
        bool, Option("--with-preprocessing", help="In the file: a picture as it is, resized in the graph.")
    ] = False,
    size: Annotated[
        str | None, Option(metavar="PX", help="128; 96,160 (height,width); or any: both stay free.")
    ] = None,
    keep: Annotated[bool, Option("--keep", help="Keep a file that failed its gate.")] = False,
) -> None:
    """Write files for other runtimes, each compared with PyTorch on pictures. Exit code 1 if one differs."""
    pixels = parse_size_or_any(size)
    from metamobile.deploy.export import export
    from metamobile.show import print_gate

    wanted = split_commas(precision) if precision else ["fp32"]
    gates = export(
        model,
        to=split_commas(to),
        out=out,
        verify=verify,
        precision=wanted,
        calibrate=calibrate,
        with_preprocessing=with_preprocessing,
        keep=keep,
        size=pixels,
        tell=print_gate,
    )
    raise typer.Exit(0 if all(gate.passed for gate in gates) else 1)


def bench(
    models: Annotated[
        list[str],
        Argument(metavar="MODELS", help="Exported files, run folders, weights; networks by name, untrained."),
    ],
    size: Annotated[str | None, SIZE] = None,
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Pictures at a time.")] = 1,
    threads: Annotated[int, Option(metavar="N", min=1, help="Of each model.")] = 1,
    rounds: Annotated[int, Option(metavar="N", min=1, help="Turns of each model, in reversing order.")] = 5,
    runs: Annotated[
        int | None,
        Option(metavar="N", min=1, help="Runs of a turn; else 40 or 2 seconds, whichever is more."),
    ] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Write bench.json and bench.png here.")] = None,
    json: Annotated[Path | None, Option(metavar="FILE", help="Write the figures as JSON.")] = None,
    device: Annotated[str, DEVICE] = "cpu",
) -> None:
    """Time models by turns, each in a process of its own; ratios are to the first. One that fails is named:
    exit code 1."""
    pixels = parse_size(size)
    from metamobile.deploy.bench import bench
    from metamobile.deploy.bench_figure import bench_tables, machine_line
    from metamobile.show import print_table
    from metamobile.training.progress import Reporter

    with Reporter().bar(0) as bar:
        found = bench(
            models,
            size=pixels,
            batch_size=batch_size,
            threads=threads,
            rounds=rounds,
            runs=runs,
            out=out,
            json=json,
            device=device,
            progress=lambda done, total: bar.move("measuring", done, total),
        )
    for table in bench_tables(found):
        print_table(*table)
    for line in (machine_line(found), *found.notes):
        remark(line)
    for failure in found.failures:
        complain(failure)
    if out:
        remark(f"wrote {out / 'bench.json'}" + (f" and {out / 'bench.png'}" if found.rows else ""))
    if json:
        remark(f"wrote {json}")
    raise typer.Exit(1 if found.failures else 0)
