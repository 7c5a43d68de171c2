"""The gate behind every export: real pictures through PyTorch and through the exported file, compared.

Each side preprocesses with its own card, so that a wrong record in the file is found as a wrong graph is.
P pictures; what is compared is in `comparisons`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metamobile.data.pictures import find_pictures, read_picture
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.data.shapes import folder as shapes_folder
from metamobile.deploy import raw
from metamobile.deploy.comparisons import BoxComparison, Comparison, GateRow, comparison_of
from metamobile.deploy.cost import Cost
from metamobile.deploy.preprocessing import scaled_card
from metamobile.deploy.runtimes import Pixels, Runtime
from metamobile.errors import PictureError
from metamobile.tasks import get_data
from metamobile.tasks.look import find_task
from metamobile.weights.card import Card

PICTURES = 64
BATCH_SIZES = (1, 3, 8)  # a batch size baked into a reshape shows at the second
LEVELS, LEVELS_SHARE = 2, 0.99  # of 255, of a file's own preprocessing: never more; this share at most one


@dataclass
class GateResult:
    """What the gate saw. `agreement` is the share of what `same` says; `relative` is `max_diff` over `scale`,
    the largest absolute reference logit, or 1 for boxes; `spread` is how far the reference's answers range.

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
    agreement: float
    rows: list[GateRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    same: str = "same top-1"
    share_of: str = "the largest logit"  # what a difference is told as a share of; nothing for boxes
    boxes: int = 0  # that the reference found
    executed: bool = True  # False where the format's runtime is not here: what it received was compared
    cost: Cost | None = None  # of a precision below fp32

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
    tolerance: float | None = None,
    precision: str = "fp32",
) -> GateResult:
    """Run all pictures through both, once for each batch size; never raises for a candidate that differs.

    It passes where classes and preprocessing are the same, or the latter is `scaled_card`'s, and the answers:
    of logits the largest difference is at most `tolerance` (1e-4) of the largest reference logit, and every
    picture, or every pixel, has the same best class (of two that lie nearer than that, either); of boxes
    99.5 % are the same within `tolerance` (1e-3) of a score and of the picture's side. A `precision` below
    fp32 has bounds of its own, in `comparisons`. Errors: ValueError where the reference gives nothing to
    compare with.
    """
    record, other = reference.card.preprocess, candidate.card.preprocess
    own = _OwnPixels(candidate, record) if raw.takes_pictures(candidate) else None
    step = max(batch_sizes)
    if own is not None:
        batch_sizes = (1,)  # such a file takes a picture at a time
    kind: Comparison | None = None
    broken: dict[int, str] = {}
    for start in range(0, len(pictures), step):  # a chunk at a time: a segmenter's answers are large
        chunk = pictures[start : start + step]
        ours = _pixels(chunk, record)
        if own is not None:
            theirs = own.see(chunk, ours)
            expected = reference.run(theirs)
        else:
            theirs = ours if other == record else _pixels(chunk, other)
            expected = reference.run(ours)
        if kind is None:
            kind = comparison_of(expected, reference, max(ours.shape[2:]), tolerance, precision)
        kind.see(expected)
        for size in batch_sizes:
            if size in broken:
                continue
            try:
                wrong = kind.add(size, expected, own.run(chunk) if own else _run(candidate, theirs, size))
            except ValueError as error:  # a batch or picture size that the file does not take
                wrong = str(error)
            if wrong:
                broken[size] = wrong
    assert kind is not None
    if kind.nothing():
        raise ValueError(
            f"{kind.nothing()} on pictures from {source}; nothing to compare with: give the gate pictures of "
            "what it was trained for"
        )
    if len(pictures) > 1 and kind.little():
        logging.getLogger(__name__).warning("the gate can find little: %s", kind.little())

    rows, problems = [], []
    for size in batch_sizes:
        row = GateRow(size, math.inf, math.inf, 0.0) if size in broken else kind.row(size)
        rows.append(row)
        found = [broken[size]] if size in broken else kind.problems(row)
        problems += [f"batch {size}: {problem}" for problem in found]
    problems += own.problems() if own is not None else []
    if other not in (record, scaled_card(reference.card).preprocess):
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
        scale=kind.scale,
        spread=kind.spread,
        agreement=min(row.agreement for row in rows),
        rows=rows,
        problems=problems,
        same=kind.same,
        share_of=kind.share_of,
        boxes=kind.boxes if isinstance(kind, BoxComparison) else 0,
    )


class _OwnPixels:
    """A file that preprocesses by itself: what its network sees is compared level by level, and its answers
    with PyTorch's on that."""

    def __init__(self, runtime: Any, record: Preprocess) -> None:
        self.runtime, self.record = runtime, record
        self.worst = self.above = self.count = 0

    def see(self, paths: Sequence[Path], ours: Pixels) -> Pixels:
        """P files, and (P, 3, H, W) of our preprocessing -> the file's (P, 3, H, W)."""
        theirs = np.concatenate([raw.seen(self.runtime, read_picture(path)) for path in paths])
        levels = np.abs(theirs - ours) * np.asarray(self.record.std, np.float32)[:, None, None] * 255
        whole = np.rint(levels)
        self.worst = max(self.worst, int(whole.max()))
        self.above += int((whole > 1).sum())
        self.count += whole.size
        return theirs

    def run(self, paths: Sequence[Path]) -> Any:
        """Answers, with boxes in pixels of the network's input, as the reference's are."""
        found: list[Any] = []
        for path in paths:
            picture = raw.planes(read_picture(path))
            answer = self.runtime.run(picture[None])
            if isinstance(answer, list):
                (height, width), sides = self.record.size, picture.shape[1:]
                scale = np.asarray([width / sides[1], height / sides[0]] * 2, np.float32)
                answer = [one | {"boxes": one["boxes"] * scale} for one in answer]
            found.append(answer)
        return (
            [one for part in found for one in part] if isinstance(found[0], list) else np.concatenate(found)
        )

    def problems(self) -> list[str]:
        if self.worst <= LEVELS and self.above <= (1 - LEVELS_SHARE) * self.count:
            return []
        return [
            f"the file's own preprocessing is up to {self.worst} levels of 255 off, more than one in "
            f"{self.above / self.count:.2%} of pixels"
        ]


def _pixels(pictures: Sequence[Path], record: Preprocess) -> Pixels:
    """P files -> (P, 3, H, W); one decoded picture in memory at a time."""
    return np.stack([preprocess(read_picture(path), record) for path in pictures])


def _run(runtime: Runtime, pixels: Pixels, batch_size: int) -> Any:
    """(P, 3, H, W) -> answers of all, the last batch smaller where P asks for it."""
    parts = [runtime.run(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
    if all(isinstance(part, list) for part in parts):
        return [one for part in parts for one in part]
    return np.concatenate(parts)


def pick_pictures(card: Card, verify: str | Path | None = None) -> tuple[list[Path], str]:
    """`PICTURES` pictures and a sentence on where they come from.

    From `verify`; else from the data the model was trained on, if it is still there; else drawn shapes.
    Of data of the model's task and classes the validation split, if there is one, without masks.
    Spread evenly over the sorted files, and so over the classes; unreadable ones are passed over; shapes fill
    a rest.
    """
    where = verify or card.recipe.get("data", {}).get("path")
    if not where or (verify is None and where != "shapes" and not Path(where).exists()):
        gone = f": the model's own, at {where}, are not here" if where else ""
        logging.getLogger(__name__).warning("the gate has no real pictures%s; it takes drawn shapes", gone)
        return spread(find_pictures([shapes_folder()])), "drawn shapes"
    found = spread(_pictures_at(where, card))
    if len(found) == PICTURES:
        return found, str(where)
    drawn = spread(find_pictures([shapes_folder()]))[: PICTURES - len(found)]
    return found + drawn, f"{where} ({len(found)}) and drawn shapes ({len(drawn)})"


def _pictures_at(where: str | Path, card: Card) -> list[Path]:
    """Those to validate on of a data set of the card's task and classes; else all that are found there."""
    with suppress(ValueError):  # not the model's classes, or none
        if where == "shapes" or find_task(where) == card.task:
            return [sample.path for sample in get_data(card.task).eval_samples(where, card)[0]]
    return find_pictures([shapes_folder() if where == "shapes" else where])


def spread(paths: Sequence[Path], most: int | None = None) -> list[Path]:
    """At most `most` (`PICTURES`) readable ones, evenly spaced."""
    most = most or PICTURES
    first = dict.fromkeys(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int))
    others = [i for i in range(len(paths)) if i not in first]  # stand in for those that cannot be read
    chosen: list[Path] = []
    for path in [paths[i] for i in (*first, *others)]:
        if len(chosen) == most:
            break
        try:
            read_picture(path)
        except PictureError:
            continue
        chosen.append(path)
    return chosen
