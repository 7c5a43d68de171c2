"""What an exported file of a detector answers. Without torch.

B batch, M places for boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.deploy.runtimes import DETECTIONS

if TYPE_CHECKING:
    from metamobile.deploy.preprocessing import Graph

PURPOSE = "finds objects"
OUTPUTS = NAMED = BOXES, SCORES, LABELS = DETECTIONS[:3]
FITS = ("stretch",)


def answers(outputs: Sequence[NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    """Boxes (B, M, 4), scores and labels (B, M) -> those of each picture, without the empty places, whose
    scores are negative."""
    boxes, scores, labels = outputs
    real = scores >= 0
    return [
        {BOXES: b[r], SCORES: s[r], LABELS: la[r].astype(np.int64)}
        for b, s, la, r in zip(boxes, scores, labels, real, strict=True)
    ]


def join(outputs: Sequence[Sequence[NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
    return [dict(zip(OUTPUTS, one, strict=True)) for one in outputs]


def finish(graph: Graph) -> list[tuple[str, type, list[Any]]]:
    """Boxes of the network's input -> those of the picture, within it, as `results.decode`."""
    nodes = graph.nodes
    inner, _ = graph.rename(BOXES, "picture")
    flat = [nodes.Unsqueeze(side, [0]) for side in (graph.width, graph.height)]
    sides = nodes.Cast(nodes.Concat(*flat, *flat, axis=0), to=11)
    scale = nodes.Div(sides, np.asarray([*graph.size[::-1], *graph.size[::-1]], np.float64))
    boxes = nodes.Mul(nodes.Cast(inner, to=11), scale)
    nodes.Cast(nodes.Max(nodes.Min(boxes, sides), 0.0), to=1, output=BOXES)
    count = "detections"
    return [(BOXES, np.float32, [count, 4]), (SCORES, np.float32, [count]), (LABELS, np.int64, [count])]
