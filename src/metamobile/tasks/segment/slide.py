"""Segmentation in overlapping windows, for pictures much larger than those of training. Without torch.

B batch, K classes, H W height and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metamobile.deploy.runtimes import Pixels, Runtime

OVERLAP = 1 / 3  # share of a window's side, as in MMSegmentation's sliding inference (512 px, stride 341)


class Sliding:
    """A runtime that answers in windows of `side` pixels and averages the logits where they overlap."""

    def __init__(self, runtime: Runtime, side: int) -> None:
        self.runtime, self.side = runtime, side
        self.name, self.card = runtime.name, runtime.card

    def run(self, batch: Pixels) -> Any:
        """(B, 3, H, W) -> logits (B, K, H, W)."""
        height, width = batch.shape[2:]
        total, count = None, np.zeros((height, width), np.float32)
        for top in starts(height, self.side):
            for left in starts(width, self.side):
                part = np.s_[..., top : top + self.side, left : left + self.side]
                logits = self.runtime.run(np.ascontiguousarray(batch[part]))
                if total is None:
                    total = np.zeros((*logits.shape[:2], height, width), np.float32)
                total[part] += logits
                count[part] += 1
        assert total is not None
        return total / count


def starts(length: int, side: int) -> list[int]:
    """Where windows begin on a line of `length` pixels: the last one ends with it, none is more apart than
    leaves the overlap."""
    if length <= side:
        return [0]
    stride = max(1, round(side * (1 - OVERLAP)))
    return [*range(0, length - side, stride), length - side]
