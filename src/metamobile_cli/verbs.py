"""The verbs; each imports what it needs, as `--help` needs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from metamobile_cli.exported import bench, export
from metamobile_cli.options import (
    BATCH_SIZE,
    DATA,
    DEVICE,
    IOU,
    MODEL,
    SIZE,
    SLIDE,
    TASK,
    WORKERS,
    complain,
    given,
    is_picture,
    parse_numbers,
    parse_size,
    remark,
    split_models,
    split_settings,
)

DEFAULT_MODEL = "emo_1m.imagenette"

app = typer.Typer(
    help="Train, measure, use and export small, accurate vision models (EMO).",
    epilog="A model is a run folder, a .safetensors or exported file, or weights by name, shipped or pulled.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


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
    qat: Annotated[
        str | None,
        Option(
            metavar="MODEL", help="Go on from this model for a few epochs, rounding as an int8 file does."
        ),
    ] = None,
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
            qat=qat,
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
    json: Annotated[
        Path | None, Option(metavar="FILE", help="Write all figures as JSON, over an old FILE.")
    ] = None,
    iou: Annotated[float | None, IOU] = None,
    slide: Annotated[int | None, SLIDE] = None,
    batch_size: Annotated[int | None, BATCH_SIZE] = None,
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
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Write annotated pictures here; none is replaced.")
    ] = None,
    json: Annotated[
        Path | None, Option(metavar="FILE", help="Write the answers as JSON, over an old FILE.")
    ] = None,
    csv: Annotated[Path | None, Option(metavar="FILE", help="Write the answers as CSV, likewise.")] = None,
    top: Annotated[
        int | None, Option(metavar="N", min=1, help="Of a classifier: answers a picture, 5 unless given.")
    ] = None,
    conf: Annotated[
        float | None, Option(min=0, max=1, metavar="SHARE", help="Of a detector: the lowest score, 0.25.")
    ] = None,
    iou: Annotated[float | None, IOU] = None,
    slide: Annotated[int | None, SLIDE] = None,
    batch_size: Annotated[int | None, BATCH_SIZE] = None,
    workers: Annotated[int, WORKERS] = 1,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Name what pictures show: classes, boxes, masks. Broken and missing ones are named and passed over: exit
    code 1."""
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


app.command()(export)
app.command()(bench)


@app.command()
def explain(
    words: Annotated[
        list[str], Argument(metavar="MODELS... PICTURES...", help="Models, then pictures, folders or globs.")
    ],
    compare: Annotated[
        bool,
        Option("--compare", help="A column a network; one without weights to be had is left out, and named."),
    ] = False,
    out: Annotated[Path, Option(metavar="DIR", help="Write explain.png and explain.html here.")] = Path(
        "explain"
    ),
    method: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="gradcam, gradcam++, eigencam, scorecam or occlusion; exported files have the last alone.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        Option(
            "--class", metavar="CLASS", help="Name or number, else the best; person:2: its second object."
        ),
    ] = None,
    stage: Annotated[
        int | None, Option(metavar="N", min=0, max=4, help="What is looked at; else the last map.")
    ] = None,
    layer: Annotated[str | None, Option(metavar="NAME", help="A module, in place of a stage.")] = None,
    point: Annotated[
        str | None,
        Option(metavar="X,Y", help="Attention of this pixel of the pictures; else the map's peak."),
    ] = None,
    head: Annotated[
        int | None, Option(metavar="N", min=0, help="One head of the attention; else the mean of all.")
    ] = None,
    size: Annotated[str | None, SIZE] = None,
    device: Annotated[str, DEVICE] = "cpu",
) -> None:
    """Draw what models look at: maps of what speaks for the answer, attention in its windows, the receptive
    field. Of an exported file there is the map alone."""
    pixels = parse_size(size)
    where = None if point is None else tuple(parse_numbers("--point", point))
    if where is not None and len(where) != 2:
        raise ValueError(f"--point {point!r}: expected x,y in pixels, such as 120,80")
    models, pictures = split_models(words)
    from metamobile.show import print_table
    from metamobile.study.explain.explain import explain
    from metamobile.study.explain.page import explain_tables
    from metamobile.training.progress import Reporter

    with Reporter().bar(0) as bar:
        explanation = explain(
            [] if compare else models,
            pictures,
            compare=models if compare else (),
            out=out,
            method=method,
            target=target,
            stage=stage,
            layer=layer,
            point=where,
            head=head,
            size=(pixels[0], pixels[1]) if isinstance(pixels, list) else pixels,
            device=device,
            progress=lambda done, total: bar.move("explaining", done, total),
        )
    for table in explain_tables(explanation):
        print_table(*table)
    for line in (*explanation.notes, *(f"wrote {path}" for path in explanation.files)):
        remark(line)
    for failure in explanation.failures:
        complain(failure)
    raise typer.Exit(1 if explanation.failures else 0)


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


def split_model(model: str, pictures: list[str]) -> tuple[str, list[str]]:
    """`predict`'s words told apart. Where the first is a picture, the shipped model answers and is named."""
    if is_picture(model, empty=not pictures):
        remark(f"no model given, so {DEFAULT_MODEL} answers: it knows ten classes (`metamobile models`)")
        return DEFAULT_MODEL, [model, *pictures]
    if not pictures:
        raise ValueError(
            f"no picture given to {model}; expected files, folders, globs, or - for paths from stdin"
        )
    return model, pictures
