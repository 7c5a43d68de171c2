"""How two models' answers are compared, by what they are: logits, logits of each pixel, or boxes.

P pictures, K classes, n boxes of a picture; H, W the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

Boxes = Sequence[Mapping[str, NDArray[Any]]]  # boxes, scores, labels of each picture

TOLERANCE = 1e-4  # of the largest reference logit; float32 graphs differ by about 1e-6
# Of a score, and of the picture's longer side: box deltas go through exp and are multiplied by anchors, so
# that rounding shows at about 1e-5; a wrong pixel record or weight shows at some hundredths.
BOX_TOLERANCE = 1e-3
# Of two scores or overlaps that are equal but for rounding, suppression may take either, and then other boxes
# follow. Seen are none to some in ten thousand.
SAME_BOXES = 0.995
# Below fp32: the tolerance of logits and of boxes, and the share that must agree. Half precision keeps three
# digits. Eight bits move every logit: there the choice counts, and what it costs is measured.
LOWER = {"fp16": (2e-2, 2e-2, 0.98), "int8": (0.5, 0.1, 0.9)}
OVERLAP = 0.5  # from which a box is taken for the other side's, and compared with it


@dataclass
class GateRow:
    """One batch size: differences between answers, and the share of pictures, pixels or boxes that agree.
    `size` is (height, width) where it is not the model's own."""

    batch_size: int
    max_diff: float
    mean_diff: float
    agreement: float
    size: tuple[int, int] | None = None


class Comparison(Protocol):
    """For each chunk of pictures, `see` the reference's answers, then `add` the candidate's."""

    same: str  # what `agreement` is the share of
    share_of: str  # what a difference is told as a share of; nothing where it is one already
    scale: float

    @property
    def spread(self) -> float: ...
    def see(self, expected: Any) -> None: ...
    def add(self, batch_size: int, expected: Any, found: Any) -> str:
        """What makes them incomparable, or nothing."""

    def row(self, batch_size: int) -> GateRow: ...
    def problems(self, row: GateRow) -> list[str]: ...
    def nothing(self) -> str:
        """Why there is nothing to compare with, or nothing."""

    def little(self) -> str:
        """Why a fault could hide, or nothing."""


def comparison_of(
    expected: Any, reference: Any, side: int, tolerance: float | None, precision: str = "fp32"
) -> Comparison:
    """The one for a reference's answers; `side` is the longer one of its input, in pixels."""
    logits, boxes, share = LOWER.get(precision, (TOLERANCE, BOX_TOLERANCE, None))
    if isinstance(expected, list):
        thresholds = reference.network.thresholds()
        return BoxComparison(thresholds, side, tolerance or boxes, SAME_BOXES if share is None else share)
    return LogitComparison(expected.ndim > 2, tolerance or logits, 1.0 if share is None else share)


@dataclass
class _Sums:
    max_diff: float = 0.0
    total: float = 0.0
    count: int = 0
    same: int = 0
    choices: int = 0


class LogitComparison:
    """Logits (P, K), or (P, K, H, W), whose best class is that of a picture or of a pixel.

    `scale` is the largest absolute reference logit, `spread` the widest range of a class's logits.
    """

    share_of = "the largest logit"

    def __init__(self, pixels: bool, tolerance: float, needed: float = 1.0) -> None:
        self.same = "same class of a pixel" if pixels else "same top-1"
        self.things = "pixels" if pixels else "pictures"
        self.tolerance, self.needed = tolerance, needed
        self.scale = 0.0
        self.range: NDArray[np.floating] | None = None  # (2, K): lowest and highest
        self.sums: dict[int, _Sums] = {}

    @property
    def spread(self) -> float:
        return 0.0 if self.range is None else float((self.range[1] - self.range[0]).max())

    def see(self, expected: NDArray[np.floating]) -> None:
        self.scale = float(np.maximum(self.scale, np.abs(expected).max()))  # NaN stays
        others = (0, *range(2, expected.ndim))
        low, high = expected.min(others), expected.max(others)
        if self.range is not None:
            low, high = np.minimum(low, self.range[0]), np.maximum(high, self.range[1])
        self.range = np.stack([low, high])

    def add(self, batch_size: int, expected: NDArray[np.floating], found: Any) -> str:
        shape = getattr(found, "shape", "of boxes")
        if shape != expected.shape:
            return f"the answer has shape {shape}, expected {expected.shape}"
        if not np.isfinite(found).all():
            return "some logits are not finite"
        difference = np.abs(found - expected)
        # how far the class that the candidate chose lies below the reference's best
        chosen = np.take_along_axis(expected, found.argmax(1)[:, None], 1)[:, 0]
        lost = expected.max(1) - chosen
        sums = self.sums.setdefault(batch_size, _Sums())
        sums.max_diff = max(sums.max_diff, float(difference.max()))
        sums.total += float(difference.sum(dtype=np.float64))
        sums.count += difference.size
        sums.same += int((lost <= TOLERANCE * np.abs(expected).max()).sum())
        sums.choices += lost.size
        return ""

    def row(self, batch_size: int) -> GateRow:
        sums = self.sums[batch_size]
        return GateRow(batch_size, sums.max_diff, sums.total / sums.count, sums.same / sums.choices)

    def problems(self, row: GateRow) -> list[str]:
        found = []
        if row.max_diff > self.tolerance * self.scale:
            found.append(
                f"logits differ by {row.max_diff:.2e}, which is {row.max_diff / self.scale:.1e} "
                f"of the largest; allowed is {self.tolerance:.0e}"
            )
        if row.agreement < self.needed:
            found.append(f"the best class is the same for {row.agreement:.1%} of {self.things}")
        return found

    def nothing(self) -> str:
        valid = math.isfinite(self.scale) and self.scale
        return "" if valid else f"the network itself answers {self.scale}"

    def little(self) -> str:
        same = self.spread < 0.01 * self.scale
        where = "pixel" if self.things == "pixels" else "picture"
        return f"the network answers nearly the same for every {where}; is it trained?" if same else ""


@dataclass
class _Found:
    """Of one batch size: the difference of each pair, and how many boxes have none."""

    pairs: list[NDArray[np.floating]] = field(default_factory=list)
    alone: int = 0


class BoxComparison:
    """Boxes, each compared with the other side's of its class that overlaps most.

    A pair's difference is the larger of that of scores, and that of coordinates over the picture's longer
    side. `agreement` is the share of boxes of either side that have a pair within the tolerance. A box
    without a pair does not count where a threshold explains it: its score lies within the tolerance of the
    lowest allowed, or of the lowest in a picture with as many boxes as are allowed. `max_diff` leaves out as
    many of the worst pairs as may disagree. `spread` is the range of the reference's scores.
    """

    same, share_of = "same boxes", ""
    scale = 1.0

    def __init__(self, thresholds: Any, side: int, tolerance: float, needed: float = SAME_BOXES) -> None:
        self.lowest, self.limit = thresholds.score_thresh, thresholds.detections_per_img
        self.side, self.tolerance, self.needed = side, tolerance, needed
        self.boxes = 0  # of the reference
        self.pictures = 0
        self.range = (math.inf, -math.inf)
        self.found: dict[int, _Found] = {}
        self.broken = False

    @property
    def spread(self) -> float:
        return max(0.0, self.range[1] - self.range[0])

    def see(self, expected: Boxes) -> None:
        for one in expected:
            self.boxes += len(one["boxes"])
            self.pictures += 1
            self.broken |= not _finite(one)
            if len(one["scores"]):
                low, high = float(one["scores"].min()), float(one["scores"].max())
                self.range = (min(self.range[0], low), max(self.range[1], high))

    def add(self, batch_size: int, expected: Boxes, found: Any) -> str:
        if not isinstance(found, list) or len(found) != len(expected):
            given = f"for {len(found)} pictures" if isinstance(found, list) else "is not boxes"
            return f"the answer {given}, expected boxes for {len(expected)}"
        if not all(_finite(one) for one in found):
            return "some boxes are not finite"
        sums = self.found.setdefault(batch_size, _Found())
        for ours, theirs in zip(expected, found, strict=True):
            rows, columns = match(ours, theirs)
            box = np.abs(ours["boxes"][rows] - theirs["boxes"][columns]).max(1, initial=0) / self.side
            score = np.abs(ours["scores"][rows] - theirs["scores"][columns])
            sums.pairs.append(np.maximum(box, score))
            sums.alone += self._unexplained(ours, rows) + self._unexplained(theirs, columns)
        return ""

    def _unexplained(self, one: Mapping[str, NDArray[Any]], paired: NDArray[np.integer]) -> int:
        scores = one["scores"]
        lowest = scores.min() if len(scores) >= self.limit else self.lowest
        return int((np.delete(scores, paired) > lowest + self.tolerance).sum())

    def row(self, batch_size: int) -> GateRow:
        found = self.found[batch_size]
        pairs = np.sort(np.concatenate(found.pairs))
        boxes = 2 * len(pairs) + found.alone
        if not len(pairs):
            return GateRow(batch_size, math.inf, math.inf, 0.0)
        same = 2 * int((pairs <= self.tolerance).sum()) / boxes
        used = pairs[: len(pairs) - int(len(pairs) * (1 - self.needed))]
        return GateRow(batch_size, float(used[-1]), float(used.mean()), same)

    def problems(self, row: GateRow) -> list[str]:
        if row.agreement >= self.needed:
            return []
        return [
            f"{row.agreement:.1%} of boxes are the same within {self.tolerance:.0e} of score and side; "
            f"needed are {self.needed:.1%}; those that overlap differ by up to {row.max_diff:.1e}"
        ]

    def nothing(self) -> str:
        if self.broken:
            return "the network itself answers boxes that are not finite"
        return "" if self.boxes else f"the network itself finds no box with a score above {self.lowest:g}"

    def little(self) -> str:
        if self.boxes >= self.pictures:
            return ""
        return f"the network finds {self.boxes} boxes in {self.pictures} pictures; is it trained?"


def match(
    ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of boxes of one class, one to one, those that overlap most first: places on either side."""
    overlap = box_iou(torch.from_numpy(ours["boxes"]), torch.from_numpy(theirs["boxes"])).numpy()
    near = (overlap >= OVERLAP) & (ours["labels"][:, None] == theirs["labels"][None])
    rows, columns = np.nonzero(near)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return np.array(list(pairs), np.intp), np.array(list(pairs.values()), np.intp)


def _finite(one: Mapping[str, NDArray[Any]]) -> bool:
    return bool(np.isfinite(one["boxes"]).all() and np.isfinite(one["scores"]).all())
