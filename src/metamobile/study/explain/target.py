"""What is asked about: a class, an object, a region. Without torch, for exported files.

Shapes: h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metamobile.study.explain.subject import Subject

SCORES = {"classify": "probability", "detect": "score", "segment": "share of the pixels"}


class NothingFound(ValueError):
    """What is asked about is not to be seen in this picture, or not in the layer that is looked at."""


@dataclass(eq=False)
class Target:
    """A class, or an object of it: `score` is the probability, the detection's score, or the share of the
    pixels. An object has its `box` (x1, y1, x2, y2) in pixels of the network's input, a region its `mask`
    (h, w)."""

    label: str
    index: int
    score: float
    score_name: str
    box: tuple[float, float, float, float] | None = None
    mask: NDArray[np.bool_] | None = None


def choose_object(subject: Subject, labels: Sequence[int], wanted: str | int | None) -> int:
    """The place of the object asked about, among those that were found, best first. Errors: NothingFound."""
    index, rank = (None, 1) if wanted is None else _class_and_rank(subject, str(wanted))
    chosen = [place for place, label in enumerate(labels) if index in (None, label)]
    if len(chosen) < rank:
        what = "object" if index is None else subject.labels[index]
        many = f"{len(chosen)} are" if chosen else "none is"
        raise NothingFound(f"{what} {rank} cannot be shown, as {many} found above the lowest score")
    return chosen[rank - 1]


def _class_and_rank(subject: Subject, text: str) -> tuple[int, int]:
    """ "person:2" -> the class's number, and 2; a class may have such a name itself."""
    head, _, tail = text.rpartition(":")
    if head and tail.isdecimal() and int(tail) >= 1 and text not in (*subject.labels, *subject.classes):
        return subject.find_class(head), int(tail)
    return subject.find_class(text), 1
