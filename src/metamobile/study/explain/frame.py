"""From a network's input back to the pixels of the picture it was made of.

Shapes: H W height and width of the picture, h w of the network's input, r c rows and columns of a map.
Coordinates are continuous: pixel i reaches from i to i + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metamobile.data.preprocess import Preprocess, resize_shorter

Floats = NDArray[np.float32]


class OutOfSight(ValueError):
    """A point of a picture that the network did not see."""


@dataclass(frozen=True)
class Frame:
    """Where the network's input lies: `size` (width, height) of the picture, `shape` (h, w) of the input, and
    `box` (x1, y1, x2, y2), the part of the picture that the input shows. `seen` is the part looked at,
    where a file takes the whole picture and crops it by itself."""

    size: tuple[int, int]
    shape: tuple[int, int]
    box: tuple[float, float, float, float]
    seen: tuple[float, float, float, float] | None = None

    @property
    def is_whole(self) -> bool:
        return (self.seen or self.box) == (0, 0, *self.size)

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) of the picture -> (x, y) of the input. Errors: OutOfSight outside of the box."""
        x1, y1, x2, y2 = self.box
        if not (x1 <= x < x2 and y1 <= y < y2):
            raise OutOfSight(
                f"point {x:g},{y:g} is not seen by the network; expected x from {math.ceil(x1)} to "
                f"{math.ceil(x2) - 1} and y from {math.ceil(y1)} to {math.ceil(y2) - 1}, in pixels of the "
                f"picture ({self.size[0]}x{self.size[1]})"
            )
        # the last digits would decide between two positions of a map, on whose edge the point may lie
        return (
            round((x - x1) * self.shape[1] / (x2 - x1), 6),
            round((y - y1) * self.shape[0] / (y2 - y1), 6),
        )

    def to_picture(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) of the input -> (x, y) of the picture."""
        x1, y1, x2, y2 = self.box
        return x1 + x * (x2 - x1) / self.shape[1], y1 + y * (y2 - y1) / self.shape[0]

    def place(self, values: Floats) -> Floats:
        """A map (h, w) at the input's pixels -> (H, W) at the picture's, NaN outside of the box."""
        assert values.shape == self.shape
        width, height = self.size
        x1, y1, x2, y2 = self.box
        column = np.floor((np.arange(width) + 0.5 - x1) * self.shape[1] / (x2 - x1)).astype(int)
        row = np.floor((np.arange(height) + 0.5 - y1) * self.shape[0] / (y2 - y1)).astype(int)
        seen = np.ix_((row >= 0) & (row < self.shape[0]), (column >= 0) & (column < self.shape[1]))
        placed = np.full((height, width), np.nan, np.float32)
        placed[seen] = values[np.ix_(row.clip(0, self.shape[0] - 1), column.clip(0, self.shape[1] - 1))][seen]
        return placed


def make_frame(picture: Image.Image, record: Preprocess, shape: tuple[int, int]) -> Frame:
    """The frame of what `preprocess` makes of the picture, whose height and width are `shape`."""
    width, height = picture.size
    if record.fit != "crop":
        return Frame(picture.size, shape, (0, 0, width, height))
    resized = resize_shorter(picture, record.shorter_side, "nearest")  # of which only the size counts
    left, top = round((resized.width - shape[1]) / 2), round((resized.height - shape[0]) / 2)
    across, down = width / resized.width, height / resized.height
    box = (left * across, top * down, (left + shape[1]) * across, (top + shape[0]) * down)
    return Frame(picture.size, shape, box)


def stride_of(size: int, side: int) -> float:
    """Pixels between positions of a map: the power of two that gives it, else the quotient.

    A map of 4 positions over 100 pixels has stride 32, as each halving rounds up, and not 25.
    """
    for stride in (1, 2, 4, 8, 16, 32, 64):
        if -(-size // stride) == side:
            return stride
    return size / side


def cells(size: int, side: int) -> NDArray[np.int64]:
    """(size,): for each pixel along one axis the position of a map with `side` positions that covers it."""
    return np.minimum((np.arange(size) + 0.5) // stride_of(size, side), side - 1).astype(np.int64)


def centre_of(index: int, size: int, side: int) -> float:
    """The middle, in pixels along one axis, of what position `index` covers of the input."""
    stride = stride_of(size, side)
    return (index * stride + min((index + 1) * stride, size)) / 2


def enlarge(values: Floats, shape: tuple[int, int]) -> Floats:
    """(r, c) -> (h, w), bilinear, each value at the middle of the pixels that its position stands for."""
    for axis, size in enumerate(shape):
        stride = stride_of(size, values.shape[axis])
        places = ((np.arange(size) + 0.5) / stride - 0.5).clip(0, values.shape[axis] - 1)
        below = np.floor(places).astype(int)
        above = np.minimum(below + 1, values.shape[axis] - 1)
        share = np.expand_dims(places - below, 1 - axis)
        values = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
    return values.astype(np.float32)
