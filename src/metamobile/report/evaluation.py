"""The evaluation, ready to draw: confusion matrix as cells, classes as rows, wrong pictures as cards.

K classes; a confusion matrix is K lists of K counts, a row for each true class.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from metamobile.data.pictures import read_picture
from metamobile.errors import PictureError

THUMBNAIL = 192  # longer side in pixels: sharp at the 150 to 190 CSS pixels of a card, about 6 kB each


def matrix_view(confusion: Sequence[Sequence[int]], names: Sequence[str], pairs: int = 8) -> dict:
    """Where each cell of the heat map lies, its colour and texts, and the pairs most often confused."""
    classes = len(names)
    cell = round(min(84.0, max(9.0, 520 / classes)), 2)
    name_size = round(min(13.0, max(7.5, cell * 0.85)), 1)
    longest = max(len(name) for name in names)
    margin = round(min(longest, 22) * name_size * 0.58 + 10)  # 0.58 em is a wide letter's share
    show_counts = cell >= 22
    cells, confused = [], []
    for i, row in enumerate(confusion):
        total = sum(row)
        for j, count in enumerate(row):
            if not count:
                continue
            share = count / total
            cells.append(
                {
                    "x": round(margin + j * cell, 2),
                    "y": round(4 + i * cell, 2),
                    "style": "hit" if i == j else "miss",
                    # A floor and a square root keep single mistakes visible beside the full diagonal.
                    "opacity": round(share if i == j else 0.16 + 0.84 * share**0.5, 3),
                    "text": str(count) if show_counts else "",
                    "tip": f"{names[i]}\nnamed {names[j]}: {count:,} of {total:,} ({percent(share)})",
                }
            )
            if i != j:
                confused.append((count, share, i, j))
    confused.sort(key=lambda entry: (-entry[0], -entry[1]))
    most = confused[0][0] if confused else 1
    width = margin + cell * classes + 4
    return {
        "cells": cells,
        "cell": cell,
        "count_size": round(min(13.0, cell * 0.4), 1),
        "names": [shorten(name, 22) for name in names],
        "name_size": name_size,
        "left": margin,
        "top": 4,
        "side": round(cell * classes, 2),
        "width": round(width),
        "height": round(4 + cell * classes + margin),
        "least": round(min(width, max(280.0, 0.72 * width))),
        "pairs": [
            {
                "truth": names[i],
                "predicted": names[j],
                "count": count,
                "share": percent(share),
                "width": round(100 * count / most, 1),
            }
            for count, share, i, j in confused[:pairs]
        ],
    }


def class_rows(evaluation: dict, names: Sequence[str]) -> list[dict]:
    """One row a class, lowest recall first, with the class it is most often taken for. Shares in percent."""
    rows = []
    for i, name in enumerate(names):
        figures = evaluation["per_class"][name]
        mistakes = [
            (count, names[j]) for j, count in enumerate(evaluation["confusion"][i]) if j != i and count
        ]
        count, other = max(mistakes, default=(0, ""), key=lambda entry: entry[0])
        rows.append(
            {
                "name": name,
                "support": figures["support"],
                "recall": 100 * figures["recall"],
                "precision": 100 * figures["precision"],
                "f1": 100 * figures["f1"],
                "taken_for": f"{other} ({count})" if other else "",
            }
        )
    return sorted(rows, key=lambda row: row["recall"])


def wrong_cards(wrong: Sequence[dict]) -> list[dict]:
    """One card a picture; one that is gone or unreadable says so in place of its thumbnail."""
    cards = []
    for entry in wrong:
        image, missing = "", ""
        try:
            image = thumbnail(entry["path"])
        except (PictureError, OSError) as error:
            missing = "the picture is no longer there" if not Path(entry["path"]).exists() else str(error)
        cards.append(
            {
                "path": entry["path"],
                "name": Path(entry["path"]).name,
                "truth": entry["truth"],
                "predicted": entry["predicted"],
                "score": percent(entry["score"]),
                "image": image,
                "missing": missing,
            }
        )
    return cards


def thumbnail(path: str) -> str:
    """The picture as a data URL, its longer side at most `THUMBNAIL` pixels."""
    picture = read_picture(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def percent(share: float) -> str:
    """0.1234 -> "12.3 %"."""
    return f"{100 * share:.1f} %"


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
