"""The command `metamobile`: a verb reads its arguments, calls the function of its name, prints the answer.

This module lies outside the package and imports neither torch nor rich at its top, so that `--help` answers
at once; a verb imports what it needs. Results go to stdout (tables on a terminal, tab-separated lines in a
pipe), progress and remarks to stderr.

Exit codes: 0 done; 1 done, but a picture, a file or a gate failed; 2 not done, and one line on stderr says
why (METAMOBILE_DEBUG=1 shows the traceback); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

DEFAULT_MODEL = "emo_1m.imagenette"

app = typer.Typer(
    help="Train, measure, use and export small, accurate vision models (EMO).",
    epilog="A model is a run folder, a .safetensors or exported file, or weights by name, shipped or pulled.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

study = typer.Typer(help="What the papers claim about the block, measured.")
app.add_typer(study, name="study")

MODEL = Argument(metavar="MODEL", help="Run folder, model file, exported file or weights by name.")
DATA = Option(metavar="DATA", help="Folder of pictures with classes, boxes or masks; or: shapes.")
TASK = Option(metavar="NAME", help="classify, detect or segment.")
SIZE = Option(metavar="PX", help="Input size in pixels: 128, or 96,160 (height,width).")
BATCH_SIZE = Option(metavar="N", min=1, help="Pictures at a time.")
WORKERS = Option(metavar="N", min=0, help="Readers of pictures beside the network; 0: none.")
IOU = Option(min=0, max=1, metavar="SHARE", help="Of a detector: overlap that drops the worse box.")
SLIDE = Option(min=32, metavar="PX", help="Of a segmenter: answer in overlapping windows of this side.")
DEVICE = Option(metavar="NAME", help="Where to compute: auto, cpu, cuda or mps.")


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"metamobile {version('metamobile')}")
        raise typer.Exit()


@app.callback()
def metamobile(
    version: Annotated[
        bool, Option("--version", callback=show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def models(
    pattern: Annotated[
        str, Argument(metavar="PATTERN", help="Only names that match, such as 'emo_*m'.")
    ] = "*",
) -> None:
    """List the networks and the weights: those that ship with this package, those to pull."""
    from fnmatch import fnmatch

    from metamobile.errors import nearest
    from metamobile.models.variants import VARIANTS
    from metamobile.show import print_table
    from metamobile.weights.card import read_card
    from metamobile.weights.find import SHIPPED, pulled_path
    from metamobile.weights.published import PUBLISHED

    chosen = {name: variant for name, variant in VARIANTS.items() if fnmatch(name, pattern)}
    weights = {name: read_card(path) for name, path in SHIPPED.items() if path.is_file()}
    weights = {
        name: card for name, card in weights.items() if fnmatch(name, pattern) or card.variant in chosen
    }
    published = {
        name: row for name, row in PUBLISHED.items() if fnmatch(name, pattern) or row.variant in chosen
    }
    if not chosen and not weights and not published:
        known = [*VARIANTS, *SHIPPED, *PUBLISHED]
        raise ValueError(
            f"no model matches {pattern!r}; known are {', '.join(known)}{nearest(pattern, known)}"
        )
    here = {name: ", ".join(key for key, card in weights.items() if card.variant == name) for name in chosen}
    print_table(
        "Networks, counted at 224 px; top-1 is the papers'",
        [
            "name",
            ">parameters",
            ">MFLOPs, papers' rule",
            ">M multiply-adds",
            ">ImageNet top-1 %",
            "weights here",
        ],
        [
            [
                name,
                f"{row.parameters:,}",
                f"{row.flops:.0f}",
                f"{row.macs:.0f}",
                f"{row.top1:.1f}",
                here[name] or "-",
            ]
            for name, row in chosen.items()
        ],
    )
    print_table(
        "Weights that ship with this package, with our figures",
        ["name", ">classes", ">pixels", ">top-1 %", "about"],
        [
            [name, f"{len(card.classes)}", "x".join(map(str, card.preprocess.size)),
             f"{card.metrics['top1']:.1f}", card.notes]
            for name, card in weights.items()
        ],
    )  # fmt: skip
    print_table(
        "The authors' weights, with their figures; `metamobile pull NAME` fetches them",
        ["name", "network", ">pixels", ">ImageNet top-1 %", "here"],
        [
            [name, row.variant, f"{row.size}", row.top1_text, "yes" if pulled_path(name).is_file() else "-"]
            for name, row in published.items()
        ],
    )


@app.command()
def check(
    data: Annotated[str, Argument(metavar="DATA", help="Folder of pictures with classes, boxes or masks.")],
    task: Annotated[str | None, TASK] = None,
    workers: Annotated[int, Option(metavar="N", min=0, help="Readers of pictures; 0: one a core.")] = 0,
) -> None:
    """Read every file of a data set and name each bad one. Exit code 1 if there is one."""
    from metamobile.show import print_table
    from metamobile.tasks.look import check

    inspection = check(data, task=task, workers=workers)
    print(inspection.summary())
    rows = [[problem.kind, str(problem.path), problem.detail] for problem in inspection.problems]
    print_table("", ["problem", "file", "detail"], rows)
    raise typer.Exit(0 if inspection.ok else 1)


@app.command()
def train(
    name: Annotated[str | None, Argument(metavar="NAME", help="Network, such as emo_1m.")] = None,
    data: Annotated[str | None, DATA] = None,
    task: Annotated[str | None, TASK] = None,
    head: Annotated[
        str | None, Option(metavar="NAME", help="Of a detector or segmenter: ssdlite, deeplabv3, ...")
    ] = None,
    recipe: Annotated[str | None, Option(metavar="NAME|FILE", help="Recipe to start from.")] = None,
    out: Annotated[Path | None, Option(metavar="RUN", help="Run folder to write.")] = None,
    epochs: Annotated[int | None, Option(metavar="N", min=1, help="Times through the data.")] = None,
    size: Annotated[str | None, SIZE] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="Any setting of the recipe: run.batch_size=16."),
    ] = None,
    resume: Annotated[
        Path | None, Option(metavar="RUN", help="Go on with this run where it stopped.")
    ] = None,
    device: Annotated[str | None, DEVICE] = None,
    drop_bad: Annotated[
        bool, Option("--drop-bad", help="Leave out files that `check` names; list them.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the run folder if it is there.")] = False,
) -> None:
    """Train a network on a folder of pictures; writes a run folder with the model and a report."""
    pixels = parse_size(size)
    from metamobile.training.loop import Interrupted
    from metamobile.training.train import train

    try:
        run = train(
            name,
            data,
            task=task,
            head=head,
            recipe=recipe,
            out=out,
            epochs=epochs,
            size=pixels,
            device=device,
            set=split_settings(settings or []),
            resume=resume,
            overwrite=overwrite,
            drop_bad=drop_bad,
        )
    except Interrupted as stop:  # the loop has said how to go on
        raise typer.Exit(130) from stop
    print(f"run     {run.folder}")
    print(f"report  {run.folder / 'report.html'}")


@app.command("eval")
def evaluate(
    model: Annotated[str, MODEL],
    data: Annotated[str, DATA],
    json: Annotated[Path | None, Option(metavar="FILE", help="Write all figures as JSON.")] = None,
    iou: Annotated[float | None, IOU] = None,
    slide: Annotated[int | None, SLIDE] = None,
    batch_size: Annotated[int, BATCH_SIZE] = 64,
    workers: Annotated[int, WORKERS] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Measure a model on a data set: its task's figures, and those of each class."""
    from metamobile.inference.evaluate import evaluate
    from metamobile.show import print_figures

    options = given(iou=iou, slide=slide)
    figures = evaluate(
        model, data, json=json, batch_size=batch_size, device=device, workers=workers, **options
    )
    print_figures(figures)
    remark(f"validation pictures: {figures['split']}")


@app.command()
def predict(
    model: Annotated[str, Argument(metavar="MODEL", help=f"As for eval; left out, {DEFAULT_MODEL} answers.")],
    pictures: Annotated[
        list[str] | None,
        Argument(
            metavar="PICTURES", help="Files, folders, globs, a video, camera, or - for paths from stdin."
        ),
    ] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Write annotated pictures here.")] = None,
    json: Annotated[Path | None, Option(metavar="FILE", help="Write the answers as JSON.")] = None,
    csv: Annotated[Path | None, Option(metavar="FILE", help="Write the answers as CSV.")] = None,
    top: Annotated[
        int | None, Option(metavar="N", min=1, help="Of a classifier: answers a picture, 5 unless given.")
    ] = None,
    conf: Annotated[
        float | None, Option(min=0, max=1, metavar="SHARE", help="Of a detector: the lowest score, 0.25.")
    ] = None,
    iou: Annotated[float | None, IOU] = None,
    slide: Annotated[int | None, SLIDE] = None,
    batch_size: Annotated[int, BATCH_SIZE] = 32,
    workers: Annotated[int, WORKERS] = 1,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Name what pictures show: classes, boxes, masks. A broken one is named and passed over: exit code 1."""
    model, pictures = split_model(model, pictures or [])
    from metamobile.inference.predict import predict
    from metamobile.inference.video import is_video
    from metamobile.show import print_answers
    from metamobile.training.progress import Reporter

    film = len(pictures) == 1 and is_video(pictures[0])
    with Reporter().bar(0) as bar:
        predictions = predict(
            model,
            pictures,
            out=out,
            json=json,
            csv=csv,
            batch_size=batch_size,
            device=device,
            workers=workers,
            progress=lambda done, total: bar.move("answering", done, total),
            **given(top=top, conf=conf, iou=iou, slide=slide),
        )
    if film:
        print(f"{len(predictions.results)} frames answered")
    else:
        print_answers(predictions.task, predictions.results)
    for failure in predictions.failures:
        complain(str(failure))
    for path in (out, json, csv):
        if path:
            remark(f"wrote {path}")
    raise typer.Exit(1 if predictions.failures else 0)


@app.command()
def export(
    model: Annotated[str, MODEL],
    to: Annotated[list[str], Option(metavar="RUNTIME", help="onnx; several by commas or repeated.")],
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder for the files; else the run folder.")
    ] = None,
    verify: Annotated[
        str | None, Option(metavar="FOLDER", help="Pictures for the gate; else the run's own, else shapes.")
    ] = None,
    size: Annotated[str | None, SIZE] = None,
    keep: Annotated[bool, Option("--keep", help="Keep a file that failed its gate.")] = False,
) -> None:
    """Write files for other runtimes, each compared with PyTorch on pictures. Exit code 1 if one differs."""
    pixels = parse_size(size)
    from metamobile.deploy.export import export
    from metamobile.show import print_gate

    gates = export(model, to=split_commas(to), out=out, verify=verify, keep=keep, size=pixels)
    for gate in gates:
        print_gate(gate)
    raise typer.Exit(0 if all(gate.passed for gate in gates) else 1)


@app.command()
def pull(
    name: Annotated[str, Argument(metavar="NAME", help="Such as emo_5m; `metamobile models` lists them.")],
    source: Annotated[
        Path | None, Option("--from", metavar="FILE", help="Convert this file, and fetch nothing.")
    ] = None,
) -> None:
    """Fetch the authors' weights, verified and converted; the other verbs then know them by name."""
    from metamobile.weights.pull import pull

    path = pull(name, source=source)
    print(f"{path.stem}  {path}")


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


def given(**options: object) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


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


def split_commas(values: Sequence[str]) -> list[str]:
    """["onnx,openvino", "ncnn"] -> three names."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def split_settings(values: Sequence[str]) -> list[str]:
    """["a.b=1,c.d=2"] -> two settings. A comma splits only before the next `key=`: lists stay whole."""
    return [part for value in values for part in re.split(r",(?=\s*[A-Za-z_][\w.]*=)", value)]


def parse_numbers(flag: str, text: str) -> list[int]:
    """ "7,14" -> [7, 14]."""
    parts = split_commas([text])
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{flag} {text!r}: expected whole numbers with commas between them, such as 7,14")
    return [int(part) for part in parts]


def parse_size(text: str | None) -> int | list[int] | None:
    """ "128" -> 128; "96,160" or "96x160" -> [96, 160] (height, width)."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--size {text!r}: expected pixels such as 128, or height,width such as 96,160")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else sides


def split_model(model: str, pictures: list[str]) -> tuple[str, list[str]]:
    """`predict`'s words told apart. Where the first is a picture, the shipped model answers and is named."""
    from metamobile.data.pictures import PICTURE_SUFFIXES
    from metamobile.inference.video import is_video

    path = Path(model)
    is_run = (path / "metrics.jsonl").is_file() or (path / "model.safetensors").is_file()
    is_picture = (
        model == "-"
        or path.suffix.lower() in PICTURE_SUFFIXES
        or is_video(model)
        or any(sign in model for sign in "*?[")
        or (path.is_dir() and not is_run)
    )
    if is_picture:
        remark(f"no model given, so {DEFAULT_MODEL} answers: it knows ten classes (`metamobile models`)")
        return DEFAULT_MODEL, [model, *pictures]
    if not pictures:
        raise ValueError(
            f"no picture given to {model}; expected files, folders, globs, or - for paths from stdin"
        )
    return model, pictures


def remark(text: str) -> None:
    print(text, file=sys.stderr)


def complain(text: str) -> None:
    """One line on stderr that begins with "error:", in red on a terminal."""
    typer.secho(f"error: {text}", fg="red", err=True)


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns its exit code. What the user can mend is one line, no traceback."""
    try:
        code = app(list(arguments) or ["--help"], prog_name="metamobile", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "metamobile"
        complain(f"{error.format_message().rstrip('.')}; see `{where} --help`")
    except (ValueError, OSError) as error:
        if os.environ.get("METAMOBILE_DEBUG"):
            raise
        complain(str(error))
    return 2


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
