"""The confusion matrix, ready to draw: cells of a heat map, and lists of what is mistaken most often.

K classes; a matrix is K lists of K counts, a row for each true class. One with a background (boxes are found
where nothing is, and missed) has K + 1 of both, the background as the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

ALL, SOME = 100, 60  # up to ALL classes are drawn; of more the SOME with the most mistakes
LARGE = 10_000  # from this count on, cells tell shares, and those under LEAST are left blank
LEAST = 0.005


@dataclass
class Confusion:
    """Counts with the names of their rows and columns."""

    counts: Sequence[Sequence[int]]
    names: Sequence[str]
    background: bool = False

    @property
    def classes(self) -> int:
        """K, without the background."""
        return len(self.names) - self.background

    @cached_property
    def totals(self) -> list[int]:
        """The sum of each row."""
        return [sum(row) for row in self.counts]

    @cached_property
    def large(self) -> bool:
        """Whether the counts are too large to be read in a cell, as those of pixels are."""
        return max((max(row, default=0) for row in self.counts), default=0) >= LARGE

    def mistakes(self) -> Iterator[tuple[int, int, int]]:
        """(count, row, column) of all that is off the diagonal and not zero, in the rows' order."""
        for i, row in enumerate(self.counts):
            for j, count in enumerate(row):
                if count and i != j:
                    yield count, i, j

    def drawn(self) -> list[int]:
        """The rows that are drawn: all, or those with the most mistakes; and the background."""
        if self.classes <= ALL:
            return list(range(len(self.names)))
        wrong = [0] * len(self.names)
        for count, i, j in self.mistakes():
            wrong[i] += count
            wrong[j] += count
        worst = sorted(range(self.classes), key=lambda i: -wrong[i])[:SOME]
        return sorted(worst) + list(range(self.classes, len(self.names)))


def matrix_view(confusion: Confusion) -> dict:
    """Where each cell of the heat map lies, its colour and texts; the lists beside it; what is left out."""
    rows = confusion.drawn()
    names = [confusion.names[i] for i in rows]
    cell = round(min(84.0, max(9.0, 520 / len(names))), 2)
    name_size = round(min(13.0, max(7.5, cell * 0.85)), 1)
    longest = max(len(name) for name in names)
    margin = round(min(longest, 22) * name_size * 0.58 + 10)  # 0.58 em is a wide letter's share
    width = margin + cell * len(names) + 4
    show_texts = cell >= 22
    return {
        "cells": _cells(confusion, rows, cell, margin, show_texts),
        "cell": cell,
        "count_size": round(min(13.0, cell * 0.4), 1),
        "names": [shorten(name, 22) for name in names],
        "name_size": name_size,
        "left": margin,
        "top": 4,
        "side": round(cell * len(names), 2),
        "width": round(width),
        "height": round(4 + cell * len(names) + margin),
        "least": round(min(width, max(280.0, 0.72 * width))),
        "background": confusion.background,
        "notes": _notes(confusion, rows, show_texts),
        "lists": _lists(confusion),
    }


def _notes(confusion: Confusion, rows: Sequence[int], show_texts: bool) -> list[str]:
    """What is left out, and what numbers in cells are where they are no counts."""
    notes = []
    if len(rows) < len(confusion.names):
        notes.append(
            f"Of {confusion.classes} classes, the {SOME} with the most mistakes are drawn; "
            "shares are of all that a row has."
        )
    if confusion.large and show_texts:
        notes.append("Numbers are percent of the row.")
    if confusion.large:
        notes.append(f"Shares under {percent(LEAST)} are left blank.")
    return notes


def _cells(
    confusion: Confusion, rows: Sequence[int], cell: float, margin: int, show_texts: bool
) -> list[dict]:
    cells = []
    for row, i in enumerate(rows):
        for column, j in enumerate(rows):
            count = confusion.counts[i][j]
            share = count / confusion.totals[i] if count else 0.0
            if not count or (confusion.large and share < LEAST):
                continue
            text = f"{100 * share:.0f}" if confusion.large else str(count)
            cells.append(
                {
                    "x": round(margin + column * cell, 2),
                    "y": round(4 + row * cell, 2),
                    "style": _style(confusion, i, j),
                    # A floor and a square root keep single mistakes visible beside the full diagonal.
                    "opacity": round(share if i == j else 0.16 + 0.84 * share**0.5, 3),
                    "text": text if show_texts else "",
                    "tip": _tip(confusion, i, j),
                }
            )
    return cells


def _style(confusion: Confusion, i: int, j: int) -> str:
    if i == j:
        return "hit"
    return "ground" if confusion.background and confusion.classes in (i, j) else "miss"


def _tip(confusion: Confusion, i: int, j: int) -> str:
    count, total, names = confusion.counts[i][j], confusion.totals[i], confusion.names
    missed = confusion.background and j == confusion.classes
    said = "missed" if missed else f"named {names[j]}"
    return f"{names[i]}\n{said}: {count:,} of {total:,} ({percent(count / total)})"


def _lists(confusion: Confusion) -> list[dict]:
    """The commonest mistakes: one class for another; with a background also what is missed or not there."""
    last = confusion.classes if confusion.background else -1
    names, totals, mistakes = confusion.names, confusion.totals, list(confusion.mistakes())
    confused = [
        _mistake(count, totals[i], names[i], names[i], names[j])
        for count, i, j in mistakes
        if last not in (i, j)
    ]
    lists = [_ranked("Most often confused", "None: no class was taken for another.", confused, 8)]
    if confusion.background:
        missed = [_mistake(count, totals[i], names[i], names[i]) for count, i, j in mistakes if j == last]
        named = [sum(column) for column in zip(*confusion.counts, strict=True)]
        false = [
            _mistake(count, named[j], f"what was named {names[j]}", names[j])
            for count, i, j in mistakes
            if i == last
        ]
        lists.append(_ranked("Most often missed", "None: all were found.", missed, 5))
        lists.append(_ranked("Most often seen where nothing is", "None.", false, 5))
    return lists


def _mistake(count: int, total: int, whole: str, name: str, predicted: str = "") -> dict:
    """`count` times a thing of the class `name` (was taken for `predicted`), of a `total` of the `whole`."""
    note = f"{percent(count / total)} of {whole}"
    texts = {"truth": name, "predicted": predicted, "count": short(count), "note": note}
    return {**texts, "order": (-count, -count / total)}


def _ranked(title: str, none: str, mistakes: Sequence[dict], most: int) -> dict:
    """The `most` largest counts; each bar's width is in percent of the largest."""
    rows = sorted(mistakes, key=lambda row: row["order"])[:most]
    for row in rows:
        row["width"] = round(100 * row["order"][0] / rows[0]["order"][0], 1)
    return {"title": title, "none": none, "rows": rows}


def percent(share: float) -> str:
    """0.1234 -> "12.3 %"."""
    return f"{100 * share:.1f} %"


def short(count: int) -> str:
    """A count that is read at a glance: 9469 -> "9469", 1_234_567 -> "1.23 M"."""
    if count < LARGE:
        return str(count)
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
