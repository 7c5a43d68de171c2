"""The report: a run folder as one HTML page that needs no network.

Texts from the run (class names, paths, the recipe) are escaped by the template engine; the page's own style
and script are the only markup that is passed through.
"""

from __future__ import annotations

import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from metamobile.files import write_text
from metamobile.report.charts import Chart, Line, line_chart
from metamobile.report.evaluation import class_rows, matrix_view, wrong_cards
from metamobile.report.run import RunRecord, read_run

COLUMNS = [
    ("name", "Class", "the class, by its readable name"),
    ("support", "Pictures", "validation pictures of this class"),
    ("recall", "Recall %", "share of this class's pictures that were named right"),
    ("precision", "Precision %", "share of the pictures named so that are of this class"),
    ("f1", "F1 %", "harmonic mean of recall and precision"),
    ("taken_for", "Most often taken for", "the commonest wrong answer, and how often"),
]
# Anchor, name in the contents, and the part of the view without which the section is left out.
SECTIONS = [
    ("curves", "Curves", "charts"),
    ("wrong", "Wrong pictures", "wrong"),
    ("confusion", "Confusion", "matrix"),
    ("classes", "Classes", "classes"),
    ("next", "Go on", "commands"),
    ("made", "Recipe and machine", "facts"),
]


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into the run folder from what lies there; returns its path.

    Parts of which the files are not there yet (no evaluation, no weights) are left out.
    Raises ValueError for a folder without `metrics.jsonl`.
    """
    run = read_run(run_folder)
    path = run.folder / "report.html"
    write_text(path, render(run))
    return path


def render(run: RunRecord) -> str:
    """The page's HTML."""
    here = Path(__file__).parent
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined
    )
    evaluation = run.evaluation
    names = list(evaluation["per_class"]) if evaluation else []
    view = {
        "title": run.folder.resolve().name,
        "lead": _lead(run),
        "unfinished": _unfinished(run),
        "figures": _figures(run),
        "charts": _charts(run),
        "wrong": wrong_cards(evaluation.get("wrong", [])),
        "matrix": matrix_view(evaluation["confusion"], names) if evaluation else None,
        "classes": class_rows(evaluation, names) if evaluation else [],
        "columns": COLUMNS,
        "commands": _commands(run),
        "facts": _facts(run),
        "recipe": run.recipe,
        "version": run.start.get("versions", {}).get("metamobile", ""),
        "folder": str(run.folder),
        "style": Markup((here / "page.css").read_text(encoding="utf-8")),
        "script": Markup((here / "page.js").read_text(encoding="utf-8")),
    }
    view["contents"] = [(key, name) for key, name, part in SECTIONS if view[part]]
    return templates.get_template("page.html").render(view)


def best_epoch(run: RunRecord) -> dict | None:
    """The epoch whose weights were kept: the highest validation top-1, the earlier of two equal ones."""
    measured = [epoch for epoch in run.epochs if epoch.get("top1") is not None]
    return max(measured, key=lambda epoch: epoch["top1"], default=None)


def _lead(run: RunRecord) -> str:
    data = run.start.get("data", {})
    parts = [str(run.setting("model", "name") or "")]
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


def _figures(run: RunRecord) -> list[dict]:
    """The headline cards: value, unit, and a note that says what the value is of."""
    best = best_epoch(run)
    planned = run.setting("schedule", "epochs") or (run.epochs[-1]["epoch"] if run.epochs else 0)
    averaged = "averaged weights" if run.setting("ema", "enabled") else "weights"
    figures = []
    top1 = run.evaluation.get("top1", best and best["top1"])
    if top1 is not None:
        figures.append(_figure("Top-1", f"{top1:.1f}", "%", _wrong_count(run)))
    if run.evaluation.get("top5") is not None and len(run.evaluation["per_class"]) > 5:
        figures.append(
            _figure("Top-5", f"{run.evaluation['top5']:.1f}", "%", "the truth is among the first five")
        )
    if best:
        note = f"chosen by validation top-1 of the {averaged}"
        figures.append(_figure("Epoch", str(best["epoch"]), f"of {planned}", note))
    if run.start.get("parameters"):
        figures.append(_figure("Parameters", *_count(run.start["parameters"]), _file_note(run)))
    if run.epochs:
        seconds = sum(epoch["seconds"] for epoch in run.epochs)
        speed = sum(epoch["images_per_second"] for epoch in run.epochs) / len(run.epochs)
        figures.append(_figure("Time", *duration(seconds), f"{speed:,.0f} pictures a second in training"))
    return figures


def _figure(label: str, value: str, unit: str, note: str) -> dict:
    return {"label": label, "value": value, "unit": unit, "note": note}


def _wrong_count(run: RunRecord) -> str:
    confusion = run.evaluation.get("confusion")
    if not confusion:
        return "of the validation pictures"
    total = sum(map(sum, confusion))
    wrong = total - sum(row[i] for i, row in enumerate(confusion))
    return f"{wrong:,} of {total:,} validation pictures wrong"


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


def _charts(run: RunRecord) -> list[Chart]:
    epochs, best = run.epochs, best_epoch(run)
    averaged = "averaged" if run.setting("ema", "enabled") else "validation"
    chosen = best["epoch"] if best else None

    def series(name: str, style: str, key: str, show: str) -> Line:
        return Line(name, style, [(e["epoch"], e[key]) for e in epochs if e.get(key) is not None], show)

    accuracy = line_chart(
        "Top-1, %",
        [
            series(averaged, "main", "top1", "{:.1f} %"),
            series("raw weights", "third", "raw_top1", "{:.1f} %"),
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
    return [chart for chart in (accuracy, loss, rate) if chart]


def _commands(run: RunRecord) -> list[tuple[str, str]]:
    commands = []
    folder = str(run.folder)
    if (run.folder / "model.safetensors").is_file():
        data = run.setting("data", "path") or "DATA"
        commands += [
            ("Name pictures: files, folders or globs", f"metamobile predict {folder} photo.jpg"),
            ("Measure it on other pictures", f"metamobile eval {folder} --data {data}"),
            (
                "Make one file for ONNX Runtime, checked against PyTorch",
                f"metamobile export {folder} --to onnx",
            ),
        ]
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
