"""The evaluation, ready to draw: classes as rows, wrong pictures as cards, precision-recall curves as lines.

Which figures there are of a class is for the task to say: see `CLASS_COLUMNS` in `metamobile.tasks`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metamobile.data.pictures import read_picture
from metamobile.errors import PictureError
from metamobile.report.charts import Line
from metamobile.report.confusion import Confusion, percent

THUMBNAIL = 192  # longer side in pixels: sharp at the 150 to 190 CSS pixels of a card, about 6 kB each
DRAWING = 1000  # longer side of a drawing: as large as the two pictures beside each other are, some 100 kB
SUPPORT = "support"  # the one figure of a class that is a count

Columns = Sequence[tuple[str, str, str]]  # (key, title, tip)


def confusion_of(evaluation: Mapping[str, Any]) -> Confusion | None:
    """None where there is no matrix. `confusion_names` are there where it has a background."""
    if not evaluation.get("confusion"):
        return None
    names = evaluation.get("confusion_names")
    return Confusion(evaluation["confusion"], names or list(evaluation["per_class"]), background=bool(names))


def class_columns(columns: Columns, confusion: Confusion | None) -> list[dict]:
    """What the table has: the name, the task's figures, what the class is taken for where that is known.

    `sorted` marks the figure by which the rows are sorted, the task's first share.
    """
    main = _main_share(columns)
    table = [{"key": "name", "title": "Class", "tip": "the class, by its readable name"}]
    table += [{"key": key, "title": title, "tip": tip} for key, title, tip in columns]
    if confusion is not None:
        tip = "the commonest wrong answer, and how often"
        table.append({"key": "taken_for", "title": "Most often taken for", "tip": tip})
    return [
        {**column, "sorted": column["key"] == main, "text": column["key"] == "taken_for"} for column in table
    ]


def _main_share(columns: Columns) -> str:
    return next((key for key, _, _ in columns if key != SUPPORT), SUPPORT)


def class_rows(evaluation: Mapping[str, Any], columns: Columns) -> list[dict]:
    """One row a class, the lowest main figure first, those that have none last. Shares in percent."""
    main, confusion = _main_share(columns), confusion_of(evaluation)
    rows = []
    for i, (name, figures) in enumerate(evaluation.get("per_class", {}).items()):
        row = {"name": name, "taken_for": _taken_for(confusion, i) if confusion else ""}
        for key, _, _ in columns:
            value = figures.get(key)
            row[key] = 100 * value if value is not None and key != SUPPORT else value
        rows.append(row)
    return sorted(rows, key=lambda row: (row[main] is None, row[main] or 0.0))


def _taken_for(confusion: Confusion, i: int) -> str:
    """The other class, not the background: what is missed is in the recall."""
    row = confusion.counts[i][: confusion.classes]
    mistakes = [(count, j) for j, count in enumerate(row) if j != i and count]
    if not mistakes:
        return ""
    count, j = max(mistakes, key=lambda entry: entry[0])
    often = percent(count / confusion.totals[i]) if confusion.large else str(count)
    return f"{confusion.names[j]} ({often})"


def precision_recall(curves: Mapping[str, Any] | None) -> tuple[list[Line], list[Line]]:
    """(means over the classes at two IoUs, classes at IoU 0.5) as points (recall, precision).

    Classes come with the largest area first, which is their average precision.
    """
    if not curves:
        return [], []
    recall = curves["recall"]
    means = [
        _curve(f"mean, IoU {iou}", style, recall, curves.get(key) or [])
        for iou, style, key in (("0.50", "main", "iou50"), ("0.75", "warm", "iou75"))
    ]
    classes = [_curve(name, "third", recall, values) for name, values in curves.get("per_class", {}).items()]
    classes.sort(key=lambda line: -(line.area or 0.0))
    return means, classes


def _curve(name: str, style: str, recall: Sequence[float], precision: Sequence[float | None]) -> Line:
    points = [(x, y) for x, y in zip(recall, precision, strict=False) if y is not None]
    return Line(name, style, points)


def wrong_cards(wrong: Sequence[dict], folder: Path) -> list[dict]:
    """One card a picture; one that is gone or unreadable says so in place of its image.

    Where the task has drawn it, the drawing in the run's `folder` is shown, else the picture itself.
    """
    cards = []
    for entry in wrong:
        drawing = entry.get("drawing")
        path = folder / drawing if drawing else Path(entry["path"])
        image, missing = "", ""
        try:
            image = data_url(path, DRAWING if drawing else THUMBNAIL)
        except (PictureError, OSError) as error:
            gone = f"the {'drawing' if drawing else 'picture'} is no longer there"
            missing = gone if not path.exists() else str(error)
        score = entry.get("score")
        cards.append(
            {
                "path": entry["path"],
                "name": Path(entry["path"]).name,
                "truth": entry["truth"],
                "predicted": entry["predicted"],
                "score": "-" if score is None else percent(score),
                "note": entry.get("note") or "",
                "drawn": bool(drawing),
                "image": image,
                "missing": missing,
            }
        )
    return cards


def data_url(path: Path, side: int) -> str:
    """The picture as a data URL, its longer side at most `side` pixels."""
    picture = read_picture(path)
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
