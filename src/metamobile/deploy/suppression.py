"""A detector's last step in numpy, for runtimes that have no suppression: boxes of all anchors to answers.

The same as `metamobile.models.detection.select`, without torch.

A anchors, K classes, n boxes of one picture.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from metamobile.models.detection import OneStage

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Suppression:
    """What it needs to know: `levels` are the anchors of each level, `candidates` go on from each; a score
    must lie above `score`, a side be `smallest` pixels long; of two boxes of a class that overlap by more
    than `iou` the better stays; `limit` boxes at most."""

    levels: tuple[int, ...]
    score: float
    iou: float
    limit: int
    candidates: int
    smallest: float

    @classmethod
    def of(cls, detector: OneStage, levels: list[int]) -> Suppression:
        """With a detector's thresholds."""
        from metamobile.models.detection import CANDIDATES, SMALLEST

        holder: Any = detector.thresholds()
        return cls(
            tuple(levels),
            float(holder.score_thresh),
            float(holder.nms_thresh),
            int(holder.detections_per_img),
            CANDIDATES,
            SMALLEST,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Suppression:
        """Errors: ValueError for text that is not one."""
        try:
            values = json.loads(text)
            return cls(**{**values, "levels": tuple(values["levels"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"the record of suppression cannot be read ({error})") from error

    def select(self, boxes: Floats, scores: Floats) -> dict[str, NDArray[Any]]:
        """Boxes (A, 4) and scores (A, K) of one picture -> boxes (n, 4), scores (n,), labels (n,), best
        first."""
        found = []
        start = 0
        for count in self.levels:
            anchor, label = np.nonzero(scores[start : start + count] > self.score)
            value = scores[start + anchor, label]
            best = np.argsort(-value, kind="stable")[: self.candidates]
            found.append((boxes[start + anchor[best]], value[best], label[best]))
            start += count
        box, value, label = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(-value, kind="stable")
        order = order[(box[order, 2:] - box[order, :2] >= self.smallest).all(1)]
        box, value, label = box[order], value[order], label[order]
        keep = self._keep(box, label)
        return {"boxes": box[keep], "scores": value[keep], "labels": label[keep].astype(np.int64)}

    def _keep(self, boxes: Floats, labels: NDArray[np.intp]) -> list[int]:
        """Places of the boxes that stay, of boxes (n, 4) with the best first."""
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        rest = np.arange(len(boxes))
        keep: list[int] = []
        while len(rest) and len(keep) < self.limit:
            best, rest = rest[0], rest[1:]
            keep.append(int(best))
            sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(
                boxes[best, :2], boxes[rest, :2]
            )
            both = sides.clip(min=0).prod(1)
            overlap = both / (area[best] + area[rest] - both)
            rest = rest[(overlap <= self.iou) | (labels[rest] != labels[best])]
        return keep
