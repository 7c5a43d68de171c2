"""The gate behind every export: real pictures through PyTorch and through the exported file, compared.

Each side preprocesses with its own card, so that a wrong record in the file is found as a wrong graph is.
P pictures, K classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metamobile.data.pictures import find_pictures, read_picture
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.data.shapes import folder as shapes_folder
from metamobile.deploy.runtimes import Logits, Pixels, Runtime
from metamobile.errors import PictureError
from metamobile.weights.card import Card

PICTURES = 64
BATCH_SIZES = (1, 3, 8)  # a batch size baked into a reshape shows at the second
TOLERANCE = 1e-4  # of the largest reference logit; float32 graphs differ by about 1e-6


@dataclass
class GateRow:
    """One batch size: differences between logits, and the share of pictures with the same best class."""

    batch_size: int
    max_diff: float
    mean_diff: float
    top1_agreement: float


@dataclass
class GateResult:
    """What the gate saw. `relative` is `max_diff` over the largest absolute reference logit, `scale`;
    `spread` is how far a reference logit lies at most from its mean over the pictures.

    `path` is the file, or where it would be had it passed; `problems` say why it did not.
    """

    path: Path
    runtime: str
    pictures: int
    source: str
    max_diff: float
    mean_diff: float
    scale: float
    spread: float
    top1_agreement: float
    rows: list[GateRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def relative(self) -> float:
        return self.max_diff / self.scale

    @property
    def passed(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "relative": self.relative, "passed": self.passed}


def compare(
    reference: Runtime,
    candidate: Runtime,
    pictures: Sequence[Path],
    *,
    path: Path = Path(),
    source: str = "",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
) -> GateResult:
    """Run all pictures through both, once for each batch size; never raises for a candidate that differs.

    It passes where classes are the same, the largest difference is at most `tolerance` of the largest
    reference logit, and every picture has the same best class (of two that lie nearer than that, either).
    """
    ours = _pixels(pictures, reference.card.preprocess)
    theirs = ours
    if candidate.card.preprocess != reference.card.preprocess:
        theirs = _pixels(pictures, candidate.card.preprocess)
    expected = _run(reference, ours, max(batch_sizes))
    scale = float(np.abs(expected).max())
    if not math.isfinite(scale) or not scale:
        raise ValueError(
            f"the network itself answers {scale} on pictures from {source}; nothing to compare with"
        )
    spread = float(np.abs(expected - expected.mean(axis=0)).max())
    if len(pictures) > 1 and spread < 0.01 * scale:
        logging.getLogger(__name__).warning(
            "the network answers nearly the same for every picture, the gate can find little; is it trained?"
        )

    rows, problems = [], []
    for size in batch_sizes:
        row, found = _compare_batches(expected, candidate, theirs, size, scale, tolerance)
        rows.append(row)
        problems += found
    if candidate.card.preprocess != reference.card.preprocess:
        problems.append("the file's preprocessing record is not the model's")
    if (candidate.card.classes, candidate.card.names) != (reference.card.classes, reference.card.names):
        problems.append("the file's classes are not the model's")
    return GateResult(
        path,
        candidate.name,
        len(pictures),
        source,
        max_diff=max(row.max_diff for row in rows),
        mean_diff=max(row.mean_diff for row in rows),
        scale=scale,
        spread=spread,
        top1_agreement=min(row.top1_agreement for row in rows),
        rows=rows,
        problems=problems,
    )


def _compare_batches(
    expected: Logits, candidate: Runtime, pixels: Pixels, size: int, scale: float, tolerance: float
) -> tuple[GateRow, list[str]]:
    """One batch size: its figures, and what is wrong with them."""
    nothing = GateRow(size, math.inf, math.inf, 0.0)
    try:
        found = _run(candidate, pixels, size)
    except ValueError as error:  # a batch or picture size that the file does not take
        return nothing, [f"batch {size}: {error}"]
    if found.shape != expected.shape:
        return nothing, [f"batch {size}: the answer has shape {found.shape}, expected {expected.shape}"]
    if not np.isfinite(found).all():
        return nothing, [f"batch {size}: some logits are not finite"]
    difference = np.abs(found - expected)
    # how far the class that the candidate chose lies below the reference's best
    lost = expected.max(axis=1) - expected[np.arange(len(expected)), found.argmax(axis=1)]
    agreement = float((lost <= tolerance * scale).mean())
    row = GateRow(size, float(difference.max()), float(difference.mean()), agreement)
    problems = []
    if row.max_diff > tolerance * scale:
        problems.append(
            f"batch {size}: logits differ by {row.max_diff:.2e}, which is {row.max_diff / scale:.1e} "
            f"of the largest; allowed is {tolerance:.0e}"
        )
    if agreement < 1:
        problems.append(f"batch {size}: the best class is the same for {agreement:.1%} of pictures")
    return row, problems


def _pixels(pictures: Sequence[Path], record: Preprocess) -> Pixels:
    """P files -> (P, 3, H, W); one decoded picture in memory at a time."""
    return np.stack([preprocess(read_picture(path), record) for path in pictures])


def _run(runtime: Runtime, pixels: Pixels, batch_size: int) -> Logits:
    """(P, 3, H, W) -> (P, K), the last batch smaller where P asks for it."""
    return np.concatenate(
        [runtime.run(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
    )


def pick_pictures(card: Card, verify: str | Path | None = None) -> tuple[list[Path], str]:
    """`PICTURES` pictures and a sentence on where they come from.

    From `verify`; else from the data the model was trained on, if it is still there; else drawn shapes.
    Spread evenly over the sorted files, and so over the classes; unreadable ones are passed over; shapes fill
    a rest.
    """
    where = verify or card.recipe.get("data", {}).get("path")
    if where == "shapes":
        return _spread(find_pictures([shapes_folder()])), "shapes"
    if not where or (verify is None and not Path(where).exists()):
        gone = f": the model's own, at {where}, are not here" if where else ""
        logging.getLogger(__name__).warning("the gate has no real pictures%s; it takes drawn shapes", gone)
        return _spread(find_pictures([shapes_folder()])), "drawn shapes"
    found = _spread(find_pictures([where]))
    if len(found) == PICTURES:
        return found, str(where)
    drawn = _spread(find_pictures([shapes_folder()]))[: PICTURES - len(found)]
    return found + drawn, f"{where} ({len(found)}) and drawn shapes ({len(drawn)})"


def _spread(paths: Sequence[Path]) -> list[Path]:
    """At most `PICTURES` readable ones, evenly spaced."""
    first = dict.fromkeys(np.linspace(0, len(paths) - 1, min(PICTURES, len(paths))).astype(int))
    others = [i for i in range(len(paths)) if i not in first]  # stand in for those that cannot be read
    chosen: list[Path] = []
    for path in [paths[i] for i in (*first, *others)]:
        if len(chosen) == PICTURES:
            break
        try:
            read_picture(path)
        except PictureError:
            continue
        chosen.append(path)
    return chosen
