"""What an answer is asked about: the mean logit of a class over the pixels that are answered with it. Without
torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.tasks.asked import Asked, NothingFound, Target

if TYPE_CHECKING:
    from metamobile.study.explain.subject import Subject

SCORE = "share of the pixels"


def ask(subject: Subject, logits: NDArray[Any], wanted: str | int | None) -> Asked:
    best = logits[0].argmax(0)
    index = int(np.bincount(best.ravel()).argmax()) if wanted is None else subject.find_class(wanted)
    mask = best == index
    if not mask.any():
        raise NothingFound(f"no pixel is answered with {subject.labels[index]}")
    target = Target(subject.labels[index], index, float(mask.mean()), SCORE, mask=mask)
    return Asked(target, lambda answers: answers[:, index][:, mask].mean(1))
