"""The report: a run folder as one HTML page that needs no network.

What a run's figures are is for its task to say, in `HEADLINES` and `CLASS_COLUMNS` of its results module.
Texts from the run (class names, paths, the recipe) are escaped by the template engine; the page's own style
and script are the only markup that is passed through.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from metamobile.files import write_text
from metamobile.report.charts import Chart, Line, line_chart, recall_chart
from metamobile.report.confusion import matrix_view
from metamobile.report.evaluation import (
    SUPPORT,
    class_columns,
    class_rows,
    confusion_of,
    precision_recall,
    wrong_cards,
)
from metamobile.report.run import RunRecord, read_run
from metamobile.tasks import get_results

if TYPE_CHECKING:
    from metamobile.tasks import ResultsModule

HERE = Path(__file__).parent
# Anchor, name in the contents, and the part of the view without which the section is left out.
SECTIONS = [
    ("curves", "Curves", "charts"),
    ("recall", "Precision and recall", "recall"),
    ("wrong", "Wrong pictures", "wrong"),
    ("confusion", "Confusion", "matrix"),
    ("classes", "Classes", "classes"),
    ("next", "Go on", "commands"),
    ("made", "Recipe and machine", "facts"),
]


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into the run folder from what lies there; returns its path.

    Parts of which the files are not there yet (no evaluation, no weights) are left out.
    Errors: ValueError for a folder without `metrics.jsonl` and for an unknown task.
    """
    run = read_run(run_folder)
    path = run.folder / "report.html"
    write_text(path, render(run))
    return path


def render(run: RunRecord) -> str:
    """The page's HTML."""
    evaluation, results = run.evaluation, get_results(run.task)
    confusion = confusion_of(evaluation)
    means, classes = precision_recall(evaluation.get("curves"))
    columns = class_columns(results.CLASS_COLUMNS, confusion)
    wrong = wrong_cards(evaluation.get("wrong", []), run.folder)
    view = {
        "title": run.folder.resolve().name,
        "lead": _lead(run),
        "unfinished": _unfinished(run),
        "figures": _figures(run, results),
        "charts": _charts(run, results),
        "recall": recall_chart("Precision over recall", means, classes),
        "wrong": wrong,
        "drawn": any(card["drawn"] for card in wrong),
        "matrix": matrix_view(confusion) if confusion else None,
        "classes": class_rows(evaluation, results.CLASS_COLUMNS),
        "columns": columns,
        "sorted_by": [_in_a_sentence(column["title"]) for column in columns if column["sorted"]],
        "count": f"{len(evaluation.get('per_class', ())):,}",
        "validated": any(epoch.get("val_loss") is not None for epoch in run.epochs),
        "commands": _commands(run),
        "facts": _facts(run),
        "recipe": run.recipe,
        "version": run.start.get("versions", {}).get("metamobile", ""),
        "folder": str(run.folder),
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup((HERE / "page.js").read_text(encoding="utf-8")),
    }
    view["contents"] = [(key, name) for key, name, part in SECTIONS if view[part]]
    return _template().render(view)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html")


def best_epoch(run: RunRecord, key: str) -> dict | None:
    """The epoch whose weights were kept: the highest main figure, the earlier of two equal ones."""
    measured = [epoch for epoch in run.epochs if epoch.get(key) is not None]
    return max(measured, key=lambda epoch: epoch[key], default=None)


def _lead(run: RunRecord) -> str:
    data = run.start.get("data", {})
    name, head = run.setting("model", "name") or "", run.setting("model", "head")
    parts = [f"{name} with {head}" if head else str(name)]
    if run.setting("data", "path"):
        parts.append(f"trained on {Path(run.setting('data', 'path')).name}")
    if data:
        parts.append(
            f"{data['classes']} classes, {data['train']:,} training and {data['val']:,} validation pictures"
        )
    return " · ".join(part for part in parts if part)


def _unfinished(run: RunRecord) -> str:
    planned = run.setting("schedule", "epochs")
    done = run.epochs[-1]["epoch"] if run.epochs else 0
    if planned and done < planned:
        return f"It stands at epoch {done} of {planned}: metamobile train --resume {run.folder} goes on."
    return ""


def _figures(run: RunRecord, results: ResultsModule) -> list[dict]:
    """The headline cards: value, unit, and a note that says what the value is of."""
    main, label, *_ = results.HEADLINES[0]
    best = best_epoch(run, main)
    planned = run.setting("schedule", "epochs") or (run.epochs[-1]["epoch"] if run.epochs else 0)
    averaged = "averaged weights" if run.setting("ema", "enabled") else "weights"
    measured = ({main: best[main]} if best else {}) | run.evaluation
    figures = []
    for key, name, unit, note in results.HEADLINES:
        if key not in measured or _says_nothing(key, measured):
            continue
        value = measured[key]
        if key == main:
            note = _wrong_count(run, results) or note
        figures.append(_figure(name, *(("-", "") if value is None else (f"{value:.1f}", unit)), note))
    if best:
        note = f"chosen by validation {_in_a_sentence(label)} of the {averaged}"
        figures.append(_figure("Epoch", str(best["epoch"]), f"of {planned}", note))
    if run.start.get("parameters"):
        figures.append(_figure("Parameters", *_count(run.start["parameters"]), _file_note(run)))
    if run.epochs:
        seconds = sum(epoch["seconds"] for epoch in run.epochs)
        speed = sum(epoch["images_per_second"] for epoch in run.epochs) / len(run.epochs)
        figures.append(_figure("Time", *duration(seconds), f"{speed:,.0f} pictures a second in training"))
    return figures


def _in_a_sentence(label: str) -> str:
    """ "Recall %" -> "recall"; "mIoU" and "AP" are written as they are."""
    label = label.removesuffix(" %")
    return label.lower() if label[1:].islower() else label


def _figure(label: str, value: str, unit: str, note: str) -> dict:
    return {"label": label, "value": value, "unit": unit, "note": note}


def _says_nothing(key: str, measured: dict) -> bool:
    """Whether it is a top-n of no more than n classes, which is always right."""
    top = re.fullmatch(r"top(\d+)", key)
    return top is not None and int(top[1]) > 1 and len(measured.get("per_class", ())) <= int(top[1])


def _wrong_count(run: RunRecord, results: ResultsModule) -> str:
    """The main figure in counts, where it is the confusion matrix's share of right answers; else ""."""
    confusion, value = confusion_of(run.evaluation), run.evaluation.get(results.HEADLINES[0][0])
    total = sum(confusion.totals) if confusion and not confusion.background else 0
    if not confusion or not total or value is None:
        return ""
    right = sum(row[i] for i, row in enumerate(confusion.counts))
    if not math.isclose(100 * right / total, value, abs_tol=1e-6):
        return ""
    unit = next((title.lower() for key, title, _ in results.CLASS_COLUMNS if key == SUPPORT), "answers")
    return f"{total - right:,} of {total:,} validation {unit} wrong"


def _count(number: int) -> tuple[str, str]:
    return (f"{number / 1e6:.2f}", "M") if number >= 1e6 else (f"{number / 1e3:.0f}", "k")


def _file_note(run: RunRecord) -> str:
    path = run.folder / "model.safetensors"
    return (
        f"model.safetensors, {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "no weights saved yet"
    )


def duration(seconds: float) -> tuple[str, str]:
    """Seconds in the two largest units that matter: 6132 -> ("1:43", "h")."""
    if seconds < 60:
        return f"{seconds:.0f}", "s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02}", "min"
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02}", "h"


def _charts(run: RunRecord, results: ResultsModule) -> list[Chart]:
    main, label, unit, _ = results.HEADLINES[0]
    epochs, best = run.epochs, best_epoch(run, main)
    averaged = "averaged" if run.setting("ema", "enabled") else "validation"
    chosen = best["epoch"] if best else None

    def series(name: str, style: str, key: str, show: str) -> Line:
        return Line(name, style, [(e["epoch"], e[key]) for e in epochs if e.get(key) is not None], show)

    figure = line_chart(
        f"{label}, {unit}",
        [
            series(averaged, "main", main, "{:.1f} %"),
            series("raw weights", "third", f"raw_{main}", "{:.1f} %"),
        ],
        low=0,
        high=100,
        best_epoch=chosen,
    )
    loss = line_chart(
        "Loss",
        [
            series("validation", "main", "val_loss", "{:.3f}"),
            series("training", "second", "train_loss", "{:.3f}"),
        ],
        low=0,
    )
    rate = line_chart("Learning rate", [series("learning rate", "warm", "lr", "{:.2e}")], low=0)
    return [chart for chart in (figure, loss, rate) if chart]


def _commands(run: RunRecord) -> list[tuple[str, str]]:
    commands = []
    folder = str(run.folder)
    if (run.folder / "model.safetensors").is_file():
        data = run.setting("data", "path") or "DATA"
        commands += [
            ("Name pictures: files, folders or globs", f"metamobile predict {folder} photo.jpg"),
            ("Measure it on other pictures", f"metamobile eval {folder} --data {data}"),
        ]
        if run.setting("model", "head") != "mask_rcnn":  # which `export` refuses
            to_onnx = f"metamobile export {folder} --to onnx"
            commands.append(("Make one file for ONNX Runtime, checked against PyTorch", to_onnx))
    if _unfinished(run) and (run.folder / "last").is_dir():
        commands.append(("Go on with training where it stopped", f"metamobile train --resume {folder}"))
    return commands


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    start = run.start
    facts = [(key, start[key.lower()]) for key in ("Command", "Machine", "Device") if start.get(key.lower())]
    if start.get("data", {}).get("split"):
        facts.append(("Split", start["data"]["split"]))
    facts += [(name, version) for name, version in start.get("versions", {}).items()]
    return facts
