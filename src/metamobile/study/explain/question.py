"""What is asked about, as one number with a gradient: each task has its own (`tasks.NAME.question`).

Shapes: B batch, h w of the network's input.
"""

from __future__ import annotations

from torch import Tensor

from metamobile.study.explain.subject import Subject
from metamobile.tasks import get_question
from metamobile.tasks.asked import Question


def ask(subject: Subject, x: Tensor, wanted: str | int | None = None) -> Question:
    """The question about one picture (1, 3, h, w): of the class `wanted`, or of what is answered.

    Of a detector "person:2" is the second-best person. Errors: ValueError for an unknown class;
    NothingFound; NotFinite.
    """
    return get_question(subject.task).ask(subject, x, wanted)
