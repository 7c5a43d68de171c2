"""What is asked about, as one number with a gradient: each task has its own (`tasks.NAME.question`).

Shapes: B batch, h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from metamobile.study.explain.subject import Subject
from metamobile.study.explain.target import Target
from metamobile.tasks import get_question


@dataclass
class Question:
    """`answer`: (B, 3, h, w) -> tensors, one a picture; `value`: such a one -> the number asked about."""

    target: Target
    answer: nn.Module
    value: Callable[[Tensor], Tensor]


def ask(subject: Subject, x: Tensor, wanted: str | int | None = None) -> Question:
    """The question about one picture (1, 3, h, w): of the class `wanted`, or of what is answered.

    Of a detector "person:2" is the second-best person. Errors: ValueError for an unknown class;
    NothingFound; NotFinite.
    """
    return get_question(subject.task).ask(subject, x, wanted)
