"""What a network is asked about, with a gradient: the logit of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metamobile.errors import NotFinite
from metamobile.tasks.asked import Question, Target
from metamobile.tasks.classify.asked import SCORE

if TYPE_CHECKING:
    from metamobile.study.explain.subject import Subject


def ask(subject: Subject, x: Tensor, wanted: str | int | None) -> Question:
    with torch.no_grad():
        scores = subject.network(x).float().softmax(-1)[0]
    if not torch.isfinite(scores).all():
        raise NotFinite(f"{subject.name}: its answers are infinite or not a number; look at its training")
    index = int(scores.argmax()) if wanted is None else subject.find_class(wanted)
    target = Target(subject.labels[index], index, float(scores[index]), SCORE)
    return Question(target, subject.network, lambda logits: logits[index])
