"""What a classifier answers: decoded, measured, drawn. Without torch.

B batch, K classes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from metamobile.weights.card import Card

SHADE, TRACK, BAR, INK = (17, 20, 26), (38, 44, 54), (37, 99, 175), (255, 255, 255)


@dataclass
class Classification:
    """The best classes of one picture, best first: readable labels, softmax scores, class indices."""

    picture: str
    labels: list[str]
    scores: list[float]
    indices: list[int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decode(logits: ArrayLike, card: Card, pictures: Sequence[str], top: int = 5) -> list[Classification]:
    """Logits (B, K) -> an answer for each of B pictures, with at most `top` classes."""
    scores = np.exp(log_softmax(logits))
    if scores.shape != (len(pictures), len(card.names)):
        raise ValueError(
            f"logits of shape {scores.shape} do not fit "
            f"{len(pictures)} pictures and {len(card.names)} classes"
        )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        Classification(
            picture,
            labels=[card.names[i] for i in best],
            scores=[float(scores[row, i]) for i in best],
            indices=[int(i) for i in best],
        )
        for row, (picture, best) in enumerate(zip(pictures, order, strict=True))
    ]


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """(B, K) -> (B, K) in float64. Errors: ValueError for logits that are not finite."""
    values = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise ValueError(f"the network's output is not finite for {bad} of {len(values)} pictures")
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


class Metric:
    """Accuracy over any number of batches; `names` are the classes' readable names, by index."""

    def __init__(self, names: Sequence[str]) -> None:
        counts = Counter(names)  # "crane" is a bird and a machine in ImageNet
        self.names = [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
        self.confusion: NDArray[np.int64] = np.zeros((len(names), len(names)), dtype=np.int64)
        self._top5 = 0
        self._loss = 0.0

    def update(self, logits: ArrayLike, targets: ArrayLike) -> None:
        """Logits (B, K), true classes (B,)."""
        log_scores = log_softmax(logits)
        true = np.asarray(targets, dtype=np.int64)
        order = np.argsort(-log_scores, axis=1, kind="stable")[:, :5]
        np.add.at(self.confusion, (true, order[:, 0]), 1)
        self._top5 += int((order == true[:, None]).sum())
        self._loss -= float(np.take_along_axis(log_scores, true[:, None], axis=1).sum())

    def compute(self) -> dict[str, Any]:
        """top1 and top5 in percent; loss, the mean cross-entropy in nats; per_class shares from 0 to 1;
        confusion counts, a row for each true class. A share of nothing (a class never predicted) is 0.
        """
        hits = np.diag(self.confusion)
        support, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        total = int(support.sum())
        if not total:
            raise ValueError("nothing was measured: no picture was given")
        per_class = {
            name: {
                "precision": _share(hits[i], predicted[i]),
                "recall": _share(hits[i], support[i]),
                "f1": _share(2 * hits[i], predicted[i] + support[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(self.names)
        }
        return {
            "top1": 100 * int(hits.sum()) / total,
            "top5": 100 * self._top5 / total,
            "loss": self._loss / total,
            "per_class": per_class,
            "confusion": self.confusion.tolist(),
        }


def _share(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0


def draw(picture: Image.Image, result: Classification) -> Image.Image:
    """The picture above a strip with at most five labels, each on a bar of its score's length.

    A picture narrower than 256 pixels is enlarged in whole steps, so that the strip can be read.
    """
    scale = max(1, 256 // max(picture.size))
    picture = picture.convert("RGB").resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    width = max(picture.width, 256)
    # a share of the width up to a large picture's height, so that a panorama's strip does not bury it
    text = max(14, round(min(width, 1.5 * max(picture.height, 256)) / 32))
    regular, bold = _font(text), _font(text, bold=True)
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
        pen.text((left + gap, middle), _fit(label, font, room), INK, font, anchor="lm")
        pen.text((right - gap, middle), percent, INK, font, anchor="rm")
    return sheet


def _fit(label: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The label, cut with an ellipsis to `room` pixels."""
    if font.getlength(label) <= room:
        return label
    while label and font.getlength(label + "…") > room:
        label = label[:-1]
    return label.rstrip() + "…"


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib: PIL's own font knows Latin letters only."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)
