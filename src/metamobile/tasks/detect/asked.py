"""What an answer is asked about: the best of a class's objects, by its score times its overlap with the one
asked about. Without torch.

n boxes of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.tasks.asked import Asked, NothingFound, Target

if TYPE_CHECKING:
    from metamobile.study.explain.subject import Subject

SCORE = "score"


def ask(subject: Subject, found: Any, wanted: str | int | None) -> Asked:
    (one,) = found
    place = choose_object(subject, one["labels"].tolist(), wanted)
    label, box = int(one["labels"][place]), one["boxes"][place]
    x1, y1, x2, y2 = (float(side) for side in box)
    mask = one["masks"][place] if "masks" in one else None
    score = float(one["scores"][place])
    target = Target(subject.labels[label], label, score, SCORE, (x1, y1, x2, y2), mask)

    def likeness(answer: Any) -> float:
        same = answer["labels"] == label
        values = answer["scores"][same] * overlaps(answer["boxes"][same], box)
        return float(values.max(initial=0))

    return Asked(target, lambda answers: np.asarray([likeness(answer) for answer in answers]))


def overlaps(boxes: NDArray[Any], box: NDArray[Any]) -> NDArray[Any]:
    """(n, 4), (4,) -> intersection over union, (n,)."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    both = sides.clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    shares: NDArray[Any] = both / np.maximum(areas - both, 1e-9)
    return shares


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
