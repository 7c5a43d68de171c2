"""What a lower precision costs: the task's main figure, size and time, beside the same format in fp32."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metamobile.deploy.runtimes import Pixels, Runtime
from metamobile.errors import DataError
from metamobile.inference.evaluate import evaluate
from metamobile.inference.model import Model
from metamobile.tasks import get_results
from metamobile.weights.card import Card

ROUNDS, RUNS = 7, 5
WARM_UP = 3


@dataclass
class Cost:
    """`before` is the figure of the network in PyTorch, `after` that of the file, of `pictures` with their
    truth; None where there is none, and `why` says so. `size` and `time` are shares of the fp32 file's."""

    figure: str
    unit: str
    before: float | None
    after: float | None
    pictures: int
    size: float
    time: float
    why: str = ""


def measure_cost(
    reference: Runtime,
    candidate: Runtime,
    plain: Runtime,
    sizes: tuple[int, int],
    data: str | Path | None,
    pixels: Pixels,
    known: dict[str, Any],
) -> Cost:
    """`sizes` are bytes of the file and of the fp32 one, `plain`; `pixels` (1, 3, H, W) is what is timed.
    `known` keeps the reference's figures from one file to the next."""
    key, label, unit, _ = get_results(reference.card.task).HEADLINES[0]
    shares = sizes[0] / sizes[1], time_ratio(candidate, plain, pixels)
    if data is None:
        return Cost(label, unit, None, None, 0, *shares, why="no data with truth; --verify names some")
    try:
        if not known:
            known.update(evaluate(Model(reference), data))
        figures = evaluate(Model(candidate), data)
    except (DataError, ValueError) as error:  # pictures without truth, or of other classes
        return Cost(label, unit, None, None, 0, *shares, why=str(error))
    return Cost(label, unit, known[key], figures[key], figures["pictures"], *shares)


def data_of(card: Card, verify: str | Path | None) -> str | Path | None:
    """What the figure is measured on: `verify`, else what the model was trained on, if it is still there."""
    where = verify or card.recipe.get("data", {}).get("path")
    return where if where and (where == "shapes" or Path(where).exists()) else None


def time_ratio(candidate: Runtime, plain: Runtime, pixels: Pixels) -> float:
    """The candidate's time over the other's: the median of rounds that take turns."""

    def seconds(runtime: Runtime, runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            runtime.run(pixels)
        return (time.perf_counter() - start) / runs

    for runtime in (candidate, plain):
        seconds(runtime, WARM_UP)
    return float(np.median([seconds(candidate, RUNS) / seconds(plain, RUNS) for _ in range(ROUNDS)]))
