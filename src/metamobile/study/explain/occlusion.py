"""Occlusion: how far what is asked about falls where a patch of the picture is hidden.

It needs answers alone, no gradients, and so takes an exported file as it takes the network. For each
position of a grid the picture is answered once more, with a grey square over it and the positions around it;
the map is how far the number asked about fell, as a share of the furthest, and 0 where it rose.
Each task says what number that is (`tasks.NAME.asked`).

Source: Visualizing and Understanding Convolutional Networks (arXiv 1311.2901), section 4.2; for objects after
D-RISE (arXiv 2006.03204), whose masks are random.

Shapes: B batch, h w of the input, r c rows and columns of the map, n boxes of a picture.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metamobile.data.preprocess import IMAGENET_MEAN
from metamobile.deploy import raw
from metamobile.errors import NotFinite
from metamobile.study.explain.frame import Floats
from metamobile.study.explain.subject import Subject
from metamobile.tasks import get_asked, get_results
from metamobile.tasks.asked import Asked

POSITIONS = 12  # at least, along the longer side; 16 pixels apart at 224
AROUND = 1  # positions on each side of the one that is hidden
MOST = 16  # pictures at a time
ROUNDING = 1e-5  # of the number asked about, or of one; a fall of less is none


def ask_answers(subject: Subject, pixels: NDArray[Any], wanted: str | int | None = None) -> Asked:
    """What is asked about one picture (1, 3, h, w), as `target.ask` has it, from the answer alone.

    Errors: ValueError for an unknown class; NothingFound; NotFinite.
    """
    found = subject.run(pixels)
    return get_asked(subject.task).ask(subject, found, wanted)


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
    many = min(MOST, get_results(subject.task).BATCH_SIZE)
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
