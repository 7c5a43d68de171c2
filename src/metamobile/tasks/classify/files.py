"""What an exported file of a classifier answers. Without torch.

B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.deploy.runtimes import OUTPUT

if TYPE_CHECKING:
    from metamobile.deploy.preprocessing import Graph

PURPOSE = "classifies pictures"
OUTPUTS = NAMED = (OUTPUT,)
FITS = ("crop", "stretch")


def answers(outputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(B, K)"""
    return outputs[0]


def join(outputs: Sequence[Sequence[NDArray[Any]]]) -> NDArray[Any]:
    return np.concatenate([one[0] for one in outputs])


def finish(graph: Graph) -> list[tuple[str, type, list[Any]]]:
    """Adds "probabilities" (1, K)."""
    from metamobile.deploy.raw import PROBABILITIES

    graph.nodes.Softmax(OUTPUT, output=PROBABILITIES, axis=1)
    return [(name, np.float32, [1, graph.classes]) for name in (PROBABILITIES, OUTPUT)]
