"""What an answer is asked about: the logit of a class. Without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.errors import NotFinite
from metamobile.tasks.asked import Asked, Target

if TYPE_CHECKING:
    from metamobile.study.explain.subject import Subject

SCORE = "probability"


def ask(subject: Subject, logits: NDArray[Any], wanted: str | int | None) -> Asked:
    if not np.isfinite(logits).all():
        raise NotFinite(f"{subject.name}: its answers are infinite or not a number; look at its training")
    scores = np.exp(logits[0] - logits[0].max())
    index = int(scores.argmax()) if wanted is None else subject.find_class(wanted)
    target = Target(subject.labels[index], index, float(scores[index] / scores.sum()), SCORE)
    return Asked(target, lambda answers: answers[:, index])
