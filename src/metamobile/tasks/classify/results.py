"""What a classifier answers: decoded, drawn, told. Without torch.

B batch, K classes.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from metamobile.errors import NotFinite
from metamobile.tasks.drawing import INK, SHADE, enlarged, fit, text_size
from metamobile.tasks.drawing import font as drawing_font

if TYPE_CHECKING:
    from metamobile.deploy.runtimes import Runtime


HEADLINES = [
    ("top1", "Top-1", "%", "of the validation pictures"),
    ("top5", "Top-5", "%", "the truth is among the first five"),
]
CLASS_COLUMNS = [
    ("support", "Pictures", "validation pictures of this class"),
    ("recall", "Recall %", "share of this class's pictures that were named right"),
    ("precision", "Precision %", "share of the pictures named so that are of this class"),
    ("f1", "F1 %", "harmonic mean of recall and precision"),
]
OPTIONS = ("top",)
MEASURED = ()
BATCH_SIZE = 64
TRACK, BAR = (38, 44, 54), (37, 99, 175)


@dataclass
class Classification:
    """The best classes of one picture, best first: readable labels, softmax scores, class indices."""

    picture: str
    labels: list[str]
    scores: list[float]
    indices: list[int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decode(
    outputs: ArrayLike,
    names: Sequence[str],
    pictures: Sequence[str],
    sizes: Sequence[tuple[int, int]] = (),
    shapes: Sequence[tuple[int, int]] = (),
    *,
    top: int = 5,
) -> list[Classification]:
    """Logits (B, K) -> an answer for each of B pictures, with at most `top` classes. Sizes do not matter."""
    scores = np.exp(log_softmax(outputs))
    if scores.shape != (len(pictures), len(names)):
        raise ValueError(
            f"logits of shape {scores.shape} do not fit {len(pictures)} pictures and {len(names)} classes"
        )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        Classification(
            picture,
            labels=[names[i] for i in best],
            scores=[float(scores[row, i]) for i in best],
            indices=[int(i) for i in best],
        )
        for row, (picture, best) in enumerate(zip(pictures, order, strict=True))
    ]


def answers(
    outputs: ArrayLike,
    names: Sequence[str],
    pictures: Sequence[str],
    sizes: Sequence[tuple[int, int]] = (),
    shapes: Sequence[tuple[int, int]] = (),
) -> NDArray[np.floating]:
    """What the metric takes: the logits themselves."""
    return np.asarray(outputs)


def configure(runtime: Runtime, **options: Any) -> Runtime:
    """The runtime as it is: no option changes what the network computes."""
    return runtime


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """(B, K) -> (B, K) in float64. Errors: NotFinite for logits that are not finite."""
    values = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise NotFinite(f"the network's output is not finite for {bad} of {len(values)} pictures")
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def draw(picture: Image.Image, result: Classification) -> Image.Image:
    """The picture above a strip with at most five labels, each on a bar of its score's length.

    A picture narrower than 256 pixels is enlarged in whole steps, so that the strip can be read.
    """
    picture = enlarged(picture)
    width = max(picture.width, 256)
    text = text_size(picture)
    regular, bold = drawing_font(text), drawing_font(text, bold=True)
    gap, row = round(text * 0.4), round(text * 1.7)
    labels = result.labels[:5]
    sheet = Image.new("RGB", (width, picture.height + gap + len(labels) * (row + gap)), SHADE)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    left, right, radius = gap, width - gap, round(text * 0.3)
    for i, (label, score) in enumerate(zip(labels, result.scores, strict=False)):
        font = regular if i else bold
        top = picture.height + gap + i * (row + gap)
        middle = top + row / 2
        pen.rounded_rectangle((left, top, right, top + row), radius, fill=TRACK)
        pen.rounded_rectangle((left, top, left + score * (right - left), top + row), radius, fill=BAR)
        percent = f"{100 * score:.1f} %"
        room = right - left - 3 * gap - font.getlength(percent)
        pen.text((left + gap, middle), fit(label, font, room), INK, font, anchor="lm")
        pen.text((right - gap, middle), percent, INK, font, anchor="rm")
    return sheet


def save_more(result: Classification, drawing: Path) -> None:
    """Nothing but the drawing is written for a classification."""


def answers_table(results: Sequence[Classification]) -> tuple[list[str], list[list[str]]]:
    """A row a picture: the best label with its score, then the others that reach one percent."""
    rows = []
    for result in results:
        scores = [f"{100 * score:.1f} %" for score in result.scores]
        best = f"{bar(result.scores[0])} {scores[0]:>7}" if sys.stdout.isatty() else scores[0]
        ranks = [rank for rank, score in enumerate(result.scores) if rank and score >= 0.01]
        others = ", ".join(f"{result.labels[rank]} {scores[rank]}" for rank in ranks)
        rows.append([result.picture, result.labels[0], best, others])
    return ["picture", "label", ">score", "then"], rows


def bar(share: float, width: int = 10) -> str:
    """A share from 0 to 1 as a bar of `width` characters, in eighths of one."""
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).ljust(width)[:width]


def json_text(results: Sequence[Classification], about: Mapping[str, Any]) -> str:
    """`about`, then the results."""
    found = {**about, "results": [result.to_dict() for result in results]}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def csv_text(results: Sequence[Classification], failures: Sequence[tuple[str, str]]) -> str:
    """CSV: picture, label1, score1, ..., error; one row a picture, the (picture, error) ones last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    top = max((len(result.labels) for result in results), default=1)
    columns = [f"{name}{rank}" for rank in range(1, top + 1) for name in ("label", "score")]
    writer.writerow(["picture", *columns, "error"])
    for result in results:
        pairs = zip(result.labels, result.scores, strict=True)
        writer.writerow(
            [result.picture, *(cell for label, score in pairs for cell in (label, f"{score:.6f}")), ""]
        )
    for picture, error in failures:
        writer.writerow([picture, *[""] * len(columns), error])
    return text.getvalue()


def figures_line(figures: Mapping[str, Any]) -> str:
    headline = f"top-1 {figures['top1']:.2f} %   top-5 {figures['top5']:.2f} %   loss {figures['loss']:.4f}"
    return f"{headline}   {figures['pictures']:,} pictures"


def class_table(figures: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [name, f"{entry['support']:,}", *(f"{100 * entry[key]:.1f}" for key in ("recall", "precision", "f1"))]
        for name, entry in sorted(figures["per_class"].items(), key=lambda item: item[1]["recall"])
    ]
    return "Classes, lowest recall first", ["class", ">pictures", ">recall %", ">precision %", ">F1 %"], rows
