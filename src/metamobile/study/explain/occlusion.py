"""Occlusion: how far what is asked about falls where a patch of the picture is hidden.

It needs answers alone, no gradients, and so takes an exported file as it takes the network. For each
position of a grid the picture is answered once more, with a grey square over it and the positions around it;
the map is how far the number asked about fell, as a share of the furthest, and 0 where it rose.

    classify   the class's logit
    segment    the mean logit of the class over the pixels that are answered with it
    detect     the best of the class's objects, by its score times its overlap with the one asked about

Source: Visualizing and Understanding Convolutional Networks (arXiv 1311.2901), section 4.2; for objects after
D-RISE (arXiv 2006.03204), whose masks are random.

Shapes: B batch, h w of the input, r c rows and columns of the map, n boxes of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metamobile.data.preprocess import IMAGENET_MEAN
from metamobile.deploy import raw
from metamobile.errors import NotFinite
from metamobile.study.explain.frame import Floats
from metamobile.study.explain.subject import Subject
from metamobile.study.explain.target import SCORES, NothingFound, Target, choose_object

POSITIONS = 12  # at least, along the longer side; 16 pixels apart at 224
AROUND = 1  # positions on each side of the one that is hidden
BATCHES = {"classify": 16}  # pictures at a time; of other tasks, whose answers are large, 2
ROUNDING = 1e-5  # of the number asked about, or of one; a fall of less is none


@dataclass
class Asked:
    """`value`: the answers to B pictures -> the number asked about of each, (B,)."""

    target: Target
    value: Callable[[Any], NDArray[Any]]


def ask_answers(subject: Subject, pixels: NDArray[Any], wanted: str | int | None = None) -> Asked:
    """What is asked about one picture (1, 3, h, w), as `target.ask` has it, from the answer alone.

    Errors: ValueError for an unknown class; NothingFound; NotFinite.
    """
    found = subject.run(pixels)
    asked = {"classify": _ask_class, "detect": _ask_object, "segment": _ask_region}[subject.task]
    return asked(subject, found, wanted)


def _ask_class(subject: Subject, logits: NDArray[Any], wanted: str | int | None) -> Asked:
    if not np.isfinite(logits).all():
        raise NotFinite(f"{subject.name}: its answers are infinite or not a number; look at its training")
    scores = np.exp(logits[0] - logits[0].max())
    index = int(scores.argmax()) if wanted is None else subject.find_class(wanted)
    target = Target(subject.labels[index], index, float(scores[index] / scores.sum()), SCORES["classify"])
    return Asked(target, lambda answers: answers[:, index])


def _ask_region(subject: Subject, logits: NDArray[Any], wanted: str | int | None) -> Asked:
    best = logits[0].argmax(0)
    index = int(np.bincount(best.ravel()).argmax()) if wanted is None else subject.find_class(wanted)
    mask = best == index
    if not mask.any():
        raise NothingFound(f"no pixel is answered with {subject.labels[index]}")
    target = Target(subject.labels[index], index, float(mask.mean()), SCORES["segment"], mask=mask)
    return Asked(target, lambda answers: answers[:, index][:, mask].mean(1))


def _ask_object(subject: Subject, found: Any, wanted: str | int | None) -> Asked:
    (one,) = found
    place = choose_object(subject, one["labels"].tolist(), wanted)
    label, box = int(one["labels"][place]), one["boxes"][place]
    x1, y1, x2, y2 = (float(side) for side in box)
    mask = one["masks"][place] if "masks" in one else None
    score = float(one["scores"][place])
    target = Target(subject.labels[label], label, score, SCORES["detect"], (x1, y1, x2, y2), mask)

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


def spacing(shape: tuple[int, int]) -> int:
    """Pixels between positions: the power of two that gives at least `POSITIONS` along the longer side."""
    return 2 ** max(0, math.floor(math.log2(max(shape) / POSITIONS)))


def grey(subject: Subject) -> NDArray[Any]:
    """(3, 1, 1): the mean colour of ImageNet's pictures, as this model's input has it."""
    colour = np.asarray(IMAGENET_MEAN, np.float32)[:, None, None]
    if subject.runtime is not None and raw.takes_pictures(subject.runtime):
        return np.rint(255 * colour).astype(np.uint8)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (subject.record.mean, subject.record.std))
    return (colour - mean) / std


def occlusion_map(subject: Subject, asked: Asked, pixels: NDArray[Any]) -> Floats:
    """(1, 3, h, w) -> (r, c) from 0 to 1; all 0 where nothing that was hidden matters. Errors: NotFinite."""
    height, width = pixels.shape[2:]
    step, fill = spacing((height, width)), grey(subject)
    rows, columns = -(-height // step), -(-width // step)
    before = float(asked.value(subject.run(pixels))[0])
    after = np.empty(rows * columns)
    many = BATCHES.get(subject.task, 2)
    for first in range(0, rows * columns, many):
        places = range(first, min(first + many, rows * columns))
        hidden = np.repeat(pixels, len(places), 0)
        for one, place in zip(hidden, places, strict=True):
            row, column = divmod(place, columns)
            top, left = (max(0, at - AROUND) * step for at in (row, column))
            one[:, top : (row + AROUND + 1) * step, left : (column + AROUND + 1) * step] = fill
        after[first : first + len(places)] = asked.value(subject.run(hidden))
    if not np.isfinite(after).all():
        raise NotFinite(f"{subject.name}: where a patch is hidden, its answers are infinite or not a number")
    falls = (before - after).clip(0).reshape(rows, columns)
    if falls.max() <= ROUNDING * max(1.0, abs(before)):
        return np.zeros((rows, columns), np.float32)
    return (falls / falls.max()).astype(np.float32)
