"""The claim about the diagonal similarity, put as comparisons of curves, and how each is decided.

Shapes: H side of the map, D = H distances 0 to H - 1, N pictures, R bootstrap draws.
Source of the claim: EMO (arXiv 2301.01146) figure 7 as its author describes it; figures and verdict are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROLES = {"conv": "convolution alone", "attention": "attention alone", "both": "both"}
RESAMPLES = 2000
CONFIDENCE = 95  # percent, of the intervals

CLAIM = {
    "long": "attention adds long range",
    "short": "the convolution adds short range",
    "most": "both together reach the most",
}
# (part of the claim, figure, the role that should have more of it, the role that should have less)
COMPARISONS = (
    ("long", "far", "both", "conv"),
    ("long", "half_width", "attention", "conv"),
    ("short", "near", "both", "attention"),
    ("most", "half_width", "both", "conv"),
    ("most", "half_width", "both", "attention"),
    ("most", "mean", "both", "conv"),
    ("most", "mean", "both", "attention"),
)
FIGURES = {
    "half_width": "half-width",
    "near": "similarity of neighbours",
    "far": "similarity from half the map on",
    "mean": "mean similarity off the diagonal",
}


@dataclass(frozen=True)
class Reach:
    """Figures of one curve over the distances 0 to H - 1.

    `half_width`: the distance at which the curve has first fallen half-way from its value at 0 to its
    smallest, with straight lines between whole distances; None where it never falls below its value at 0, so
    that it is more than H - 1. `near`: at distance 1. `far`: mean over the pairs at distances of H / 2 and
    more. `mean`: over all pairs of two different positions.
    """

    half_width: float | None
    near: float
    far: float
    mean: float


@dataclass(frozen=True)
class Comparison:
    """`more` should have more of `figure` than `less`: the difference, and its interval."""

    part: str
    figure: str
    more: str
    less: str
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Confirmed or refuted where the whole interval lies on one side of 0."""
        return "confirmed" if self.low > 0 else "refuted" if self.high < 0 else "undecided"


def distance_curve(similarity: Floats) -> Floats:
    """(H, H) -> (H,): mean over the pairs at each distance |i - j|."""
    side = len(similarity)
    # both triangles, as a mean over pictures and a hand-made matrix need not be symmetric to the last digit
    pairs = [(similarity.diagonal(d).sum() + similarity.diagonal(-d).sum()) / 2 for d in range(side)]
    return np.array(pairs) / np.arange(side, 0, -1)


def half_widths(curves: Floats) -> Floats:
    """See `Reach`. (R, D) -> (R,) distances, infinite for a curve that never falls."""
    start, low = curves[:, 0], curves.min(1)
    target = (start + low) / 2
    # the first distance at which the curve is down; where it falls at all, that is not 0
    after = np.maximum((curves <= target[:, None]).argmax(1), 1)
    row = np.arange(len(curves))
    upper, lower = curves[row, after - 1], curves[row, after]
    falls = low < start
    drop = np.where(falls, upper - lower, 1.0)
    return np.where(falls, after - 1 + (upper - target) / drop, math.inf)


def reach_figures(curves: Floats) -> dict[str, Floats]:
    """The figures of `Reach` for many curves, (R, D) -> (R,) each; distance d weighs its D - d pairs."""
    length = curves.shape[1]
    if length < 2:
        raise ValueError(f"the map's side is {length}; expected at least 2, so give larger pictures")
    pairs = np.arange(length, 0, -1)
    start = math.ceil(length / 2)
    return {
        "half_width": half_widths(curves),
        "near": curves[:, 1],
        "far": curves[:, start:] @ pairs[start:] / pairs[start:].sum(),
        "mean": curves[:, 1:] @ pairs[1:] / pairs[1:].sum(),
    }


def find_reach(curve: Floats) -> Reach:
    """Of one curve (D,)."""
    figures = {name: float(values[0]) for name, values in reach_figures(curve[None]).items()}
    width = figures.pop("half_width")
    return Reach(None if math.isinf(width) else width, **figures)


def compare(by_role: Mapping[str, Sequence[Floats]], resamples: int = RESAMPLES) -> list[Comparison]:
    """The claim's comparisons, from curves (N, D) of the pictures, for each role of its runs.

    Empty unless each role has a run; all must have the same pictures and distances.

    A role's figure is that of the mean curve of its runs; a half-width of more than D - 1 counts as D - 1.
    Each resample draws pictures, the same ones for all networks, and runs of each role, with replacement; the
    interval holds the middle 95 % of the differences.
    """
    if not all(by_role.values()):
        return []
    draw = np.random.default_rng(0)
    curves = {role: np.stack(runs) for role, runs in by_role.items()}  # (runs, N, D)
    count = curves["both"].shape[1]
    # (1 + R, N): how often each picture was drawn, as a share; the first: all once. Of runs likewise.
    pictures = np.vstack(
        [np.full(count, 1 / count), draw.multinomial(count, [1 / count] * count, resamples) / count]
    )
    figures = {}
    for role, each in curves.items():
        number = len(each)
        runs = np.vstack(
            [[1 / number] * number, draw.multinomial(number, [1 / number] * number, resamples) / number]
        )
        means = sum(runs[:, [i]] * (pictures @ run) for i, run in enumerate(each))  # (1 + R, D)
        figures[role] = reach_figures(np.asarray(means))
    longest = curves["both"].shape[2] - 1.0  # what a half-width of more counts as
    rest = (100 - CONFIDENCE) / 2
    found = []
    for part, figure, more, less in COMPARISONS:
        pair = (np.minimum(figures[role][figure], longest) for role in (more, less))
        differences = np.subtract(*pair)
        low, high = np.percentile(differences[1:], [rest, 100 - rest])
        found.append(Comparison(part, figure, more, less, float(differences[0]), float(low), float(high)))
    return found


def spread_in_words(by_role: Mapping[str, Sequence[Floats]]) -> str:
    """What the intervals hold."""
    missing = [ROLES[role] for role, group in by_role.items() if not group]
    if missing:
        return f"no verdict: no network with {', '.join(missing)}"
    runs = "; ".join(f"{ROLES[role]}: {len(group)}" for role, group in by_role.items())
    if any(len(group) == 1 for group in by_role.values()):
        note = "where a role has one run, the interval says nothing of another seed"
    else:
        note = "pictures and runs are drawn again"
    return f"intervals hold {CONFIDENCE} % of {RESAMPLES:,} bootstrap draws; runs of {runs}; {note}"
