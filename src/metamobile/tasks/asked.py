"""What an answer is explained by: a class, an object, a region. Without torch, for exported files.

Shapes: B batch, h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn


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


@dataclass
class Asked:
    """`value`: the answers to B pictures -> the number asked about of each, (B,)."""

    target: Target
    value: Callable[[Any], NDArray[Any]]


@dataclass
class Question:
    """`answer`: (B, 3, h, w) -> tensors, one a picture; `value`: such a one -> the number asked about."""

    target: Target
    answer: nn.Module
    value: Callable[[Tensor], Tensor]
