"""What a network is asked about, with a gradient: the mean logit of a class over the pixels that are answered
with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metamobile.tasks.asked import NothingFound, Question, Target
from metamobile.tasks.segment.asked import SCORE

if TYPE_CHECKING:
    from metamobile.study.explain.subject import Subject


def ask(subject: Subject, x: Tensor, wanted: str | int | None) -> Question:
    with torch.no_grad():
        best = subject.network(x)[0].argmax(0)  # (h, w)
    index = int(best.flatten().bincount().argmax()) if wanted is None else subject.find_class(wanted)
    mask = best == index
    if not mask.any():
        raise NothingFound(f"no pixel is answered with {subject.labels[index]}")
    share = float(mask.float().mean())
    target = Target(subject.labels[index], index, share, SCORE, mask=mask.cpu().numpy())
    return Question(target, subject.network, lambda logits: logits[index][mask].mean())
