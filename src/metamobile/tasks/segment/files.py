"""What an exported file of a segmenter answers. Without torch.

B batch, K classes, h and w of the network's input, H and W of the picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from metamobile.deploy.runtimes import OUTPUT
from metamobile.tasks.classify.files import answers, join

if TYPE_CHECKING:
    from metamobile.deploy.preprocessing import Graph

__all__ = ["FITS", "NAMED", "OUTPUTS", "PURPOSE", "answers", "finish", "join"]

PURPOSE = "names each pixel"
CLASSES = "classes"
OUTPUTS, NAMED = (OUTPUT,), (OUTPUT, CLASSES)
FITS = ("stretch",)


def finish(graph: Graph) -> list[tuple[str, type, list[Any]]]:
    """Logits (1, K, h, w) -> "classes" (H, W), resized first, as `results.decode`. One class after the other,
    as K maps of a large picture do not fit in memory."""
    nodes = graph.nodes
    graph.rename(CLASSES)
    sides = nodes.Concat([1, 1], nodes.Slice(graph.shape, [0], [2]), axis=0)
    best, answer = "", nodes.Expand([[[[0]]]], sides)
    for index in range(graph.classes):
        logits = nodes.Gather(OUTPUT, [index], axis=1)
        large = nodes.Resize(logits, "", "", sides, mode="linear")
        if best:
            answer = nodes.Where(nodes.Greater(large, best), index, answer)
        best = nodes.Max(best, large) if best else large
    nodes.Squeeze(answer, [0, 1], output=CLASSES)
    return [(CLASSES, np.int64, ["height", "width"]), (OUTPUT, np.float32, [1, graph.classes, *graph.size])]
