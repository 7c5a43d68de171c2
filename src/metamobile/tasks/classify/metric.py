"""Accuracy of a classifier. Without torch.

B batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metamobile.tasks.classify.results import log_softmax
from metamobile.tasks.names import distinct


class Metric:
    """Accuracy over any number of batches; `names` are the classes' readable names, by index."""

    def __init__(self, names: Sequence[str], samples: Sequence[Any] = ()) -> None:
        self.names = distinct(names)
        self.confusion: NDArray[np.int64] = np.zeros((len(names), len(names)), dtype=np.int64)
        self._top5 = 0
        self._losses: list[float] = []
        self._true: list[int] = []
        self._named: list[int] = []
        self._scores: list[float] = []

    def update(self, logits: ArrayLike, targets: ArrayLike) -> None:
        """Logits (B, K), true classes (B,)."""
        log_scores = log_softmax(logits)
        true = np.asarray(targets, dtype=np.int64)
        order = np.argsort(-log_scores, axis=1, kind="stable")[:, :5]
        np.add.at(self.confusion, (true, order[:, 0]), 1)
        self._top5 += int((order == true[:, None]).sum())
        self._losses += (-np.take_along_axis(log_scores, true[:, None], axis=1)[:, 0]).tolist()
        self._true += true.tolist()
        self._named += order[:, 0].tolist()
        self._scores += np.exp(log_scores.max(axis=1)).tolist()

    def compute(self) -> dict[str, Any]:
        """top1 and top5 in percent; loss, the mean cross-entropy in nats; per_class shares from 0 to 1;
        confusion counts, a row for each true class. A share of nothing (a class never predicted) is 0.
        """
        hits = np.diag(self.confusion)
        support, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        total = int(support.sum())
        if not total:
            raise ValueError("nothing was measured: no picture was given")
        per_class = {
            name: {
                "precision": _share(hits[i], predicted[i]),
                "recall": _share(hits[i], support[i]),
                "f1": _share(2 * hits[i], predicted[i] + support[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(self.names)
        }
        return {
            "top1": 100 * int(hits.sum()) / total,
            "top5": 100 * self._top5 / total,
            "loss": math.fsum(self._losses) / total,
            "per_class": per_class,
            "confusion": self.confusion.tolist(),
        }

    def worst(self, most: int) -> list[tuple[int, int, float]]:
        """(place, class named, its score) of wrong answers, the largest loss first; places as updated."""
        order = sorted(range(len(self._losses)), key=lambda place: -self._losses[place])
        wrong = [place for place in order if self._named[place] != self._true[place]]
        return [(place, self._named[place], self._scores[place]) for place in wrong[:most]]


def _share(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0
