"""COCO's figures of a detector, and which boxes it took for what. Without torch.

K classes, n found boxes and m true boxes of a picture; T IoU thresholds (0.50, 0.55, ..., 0.95), R recall
points (0, 0.01, ..., 1), A ranges of areas (all, small, medium, large), M limits of boxes (1, 10, 100).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from metamobile.errors import DataError
from metamobile.tasks.detect.results import CONF, Codes, Detections, run_lengths
from metamobile.tasks.names import distinct

if TYPE_CHECKING:
    from metamobile.data.box_sample import BoxSample

IOU = 0.5  # of a box that counts as found, with a score of `CONF`, for everything but COCO's own figures
CURVES = 20  # classes with a curve of their own
BACKGROUND = "background"

# key: (precision or recall, the IoU threshold or None for all, range of areas, limit of boxes)
FIGURES: dict[str, tuple[str, float | None, str, int]] = {
    "ap": ("precision", None, "all", 100),
    "ap50": ("precision", 0.5, "all", 100),
    "ap75": ("precision", 0.75, "all", 100),
    "ap_small": ("precision", None, "small", 100),
    "ap_medium": ("precision", None, "medium", 100),
    "ap_large": ("precision", None, "large", 100),
    "ar_1": ("recall", None, "all", 1),
    "ar_10": ("recall", None, "all", 10),
    "ar_100": ("recall", None, "all", 100),
    "ar_small": ("recall", None, "small", 100),
    "ar_medium": ("recall", None, "medium", 100),
    "ar_large": ("recall", None, "large", 100),
}


@dataclass
class _Answer:
    """One picture's answer, its masks as run-length codes, and the true and the found class of each box."""

    result: Detections
    codes: Codes | None
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def entries(self, kind: str) -> Iterator[tuple[int, float, dict[str, Any]]]:
        """(class, score, its box or its mask in COCO's form) of each found object.

        A mask comes without its box: so it has an area of its own, as in Detectron2 and MMDetection.
        """
        if kind == "bbox":
            shapes: list[dict[str, Any]] = [{"bbox": box} for box in _to_xywh(self.result.boxes)]
        else:
            shapes = [{"segmentation": code} for code in self.codes or ()]
        yield from zip(self.result.indices, self.result.scores, shapes, strict=True)

    @property
    def f1(self) -> float:
        """2 hits / (boxes found + boxes there), 1 for a picture where nothing is and nothing was found."""
        return 1 - self.wrong / (self.wrong + 2 * self.hits) if len(self.rows) else 1.0

    @property
    def hits(self) -> int:
        return int((self.rows == self.columns).sum())

    @property
    def wrong(self) -> int:
        """Missed boxes and false boxes; one that was taken for another class is both."""
        missed = (self.rows != self.columns) & (self.rows >= 0)
        false = (self.rows != self.columns) & (self.columns >= 0)
        return int(missed.sum() + false.sum())


class Metric:
    """Average precision over any number of pictures; `names` are the classes' readable names, by index.

    A picture given twice counts once, as given last.
    """

    def __init__(self, names: Sequence[str], samples: Sequence[BoxSample] = ()) -> None:
        self.names = distinct(names)
        self.samples = samples
        self._answers: dict[int, _Answer] = {}

    def update(self, results: Sequence[Detections], indices: Sequence[int]) -> None:
        """Compare each result with the boxes of samples[index].

        Errors: ValueError for a result of another size than its picture's and for classes that there are not,
        DataError for masks of a picture that has them for some boxes only.
        """
        for result, index in zip(results, indices, strict=True):
            sample, found = self.samples[index], np.asarray(result.indices, np.int64)
            if tuple(result.size) != tuple(sample.size):
                given, expected = (f"{width} x {height}" for width, height in (result.size, sample.size))
                raise ValueError(f"{sample.path}: the answer is for {given} pixels, expected {expected}")
            if found.size and not 0 <= found.min() <= found.max() < len(self.names):
                wrong = found.max() if found.max() >= len(self.names) else found.min()
                raise ValueError(
                    f"{sample.path}: class {wrong} in the answer, expected 0 to {len(self.names) - 1}"
                )
            codes = None
            if result.masks is not None and sample.segmentations is not None:
                if not all(sample.segmentations):
                    raise DataError(f"{sample.path}: some boxes have no mask; add them, or leave all out")
                codes = run_lengths(result.masks)
            rows, columns = confused(result, sample)
            self._answers[int(index)] = _Answer(replace(result, masks=None), codes, rows, columns)

    def compute(self) -> dict[str, Any]:
        """COCO's twelve figures in percent, None for a mean of nothing; the same of masks as "mask_...".

        per_class: ap, ap50, recall, precision as shares from 0 to 1, None for a share of nothing, and support
        in boxes. confusion: counts (K + 1, K + 1), a row for each true class; the last row are false boxes,
        the last column are missed ones. Recall, precision and confusion are of boxes with a score of at least
        `CONF` that overlap by at least `IOU`. curves: precision at each recall, at IoU 0.5 and 0.75.
        """
        if not self._answers:
            raise ValueError("nothing was measured: no picture was given")
        evaluated = self._evaluate("bbox")
        figures: dict[str, Any] = coco_figures(evaluated)
        if self._has_masks():
            masks = coco_figures(self._evaluate("segm"))
            figures |= {f"mask_{key}": value for key, value in masks.items()}
        confusion = self._confusion()
        precision = evaluated.eval["precision"][..., 0, -1]  # (T, R, K), all areas, 100 boxes
        return figures | {
            "per_class": self._per_class(precision, confusion),
            "curves": self._curves(precision, confusion[:-1].sum(axis=1)),
            "confusion": confusion.tolist(),
            "confusion_names": [*self.names, BACKGROUND],
        }

    def worst(self, most: int) -> list[tuple[int, Detections, float]]:
        """(index, its boxes with a score of at least `CONF`, F1) of the pictures that are not all right.

        The lowest F1 (0 to 1) comes first; of equal ones that with the most wrong boxes.
        """
        wrong = [(answer.f1, -answer.wrong, index) for index, answer in self._answers.items() if answer.wrong]
        found = []
        for f1, _, index in sorted(wrong)[:most]:
            answer = self._answers[index]
            masks = None if answer.codes is None else decoded(answer.codes, answer.result.size)
            found.append((index, replace(answer.result, masks=masks).above(CONF), f1))
        return found

    def _has_masks(self) -> bool:
        """Whether every picture with boxes has their masks, in the answer and in the data."""
        answers = self._answers.values()
        truths = all(self.samples[index].segmentations is not None for index in self._answers)
        given = all(answer.codes is not None or not len(answer.result.boxes) for answer in answers)
        return truths and given and any(answer.codes is not None for answer in answers)

    def _evaluate(self, kind: str) -> Any:
        """faster-coco-eval's evaluation of "bbox" or "segm". Its figures equal pycocotools'."""
        samples = {index: self.samples[index] for index in sorted(self._answers)}
        sizes = [(index, *sample.size) for index, sample in samples.items()]
        coco = COCO(
            {
                "images": [{"id": index, "width": width, "height": height} for index, width, height in sizes],
                "categories": [{"id": i, "name": name} for i, name in enumerate(self.names)],
                "annotations": _annotations(samples),
            }
        )
        found = [
            {"image_id": index, "category_id": int(label), "score": float(score), **shape}
            for index in samples
            for label, score, shape in self._answers[index].entries(kind)
        ]
        evaluated = COCOeval_faster(coco, coco.loadRes(found), kind)
        evaluated.evaluate()
        evaluated.accumulate()
        return evaluated

    def _confusion(self) -> NDArray[np.int64]:
        """(K + 1, K + 1); background, -1 in rows and columns, is the last."""
        counts = np.zeros((len(self.names) + 1, len(self.names) + 1), dtype=np.int64)
        for answer in self._answers.values():
            np.add.at(counts, (answer.rows, answer.columns), 1)
        return counts

    def _per_class(
        self, precision: NDArray[np.float64], confusion: NDArray[np.int64]
    ) -> dict[str, dict[str, Any]]:
        hits, support, named = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        return {
            name: {
                "ap": _mean(precision[:, :, i]),
                "ap50": _mean(precision[0, :, i]),
                "recall": float(hits[i] / support[i]) if support[i] else None,
                "precision": float(hits[i] / named[i]) if named[i] else None,
                "support": int(support[i]),
            }
            for i, name in enumerate(self.names)
        }

    def _curves(self, precision: NDArray[np.float64], support: NDArray[np.int64]) -> dict[str, Any]:
        """recall (R), iou50 and iou75 (R), the means over the classes; per_class (R) at IoU 0.5 of those
        with the most boxes. Empty where there is no class with boxes.
        """
        there = np.flatnonzero(support)
        most = there[np.argsort(-support[there], kind="stable")][:CURVES]
        means = precision[:, :, there].mean(axis=2) if there.size else np.zeros((len(precision), 0))
        return {
            "recall": np.linspace(0, 1, precision.shape[1]).round(2).tolist(),
            "iou50": means[0].round(4).tolist(),
            "iou75": means[5].round(4).tolist(),  # 0.50, 0.55, ..., 0.75
            "per_class": {self.names[i]: precision[0, :, i].round(4).tolist() for i in most},
        }


def _annotations(samples: Mapping[int, BoxSample]) -> list[dict[str, Any]]:
    """The true boxes in COCO's form, numbered from 1: 0 would mean "not found"."""
    entries: list[dict[str, Any]] = []
    for index, sample in samples.items():
        boxes = _to_xywh(sample.boxes)
        masks = sample.segmentations or [None] * len(boxes)
        for i, (box, mask) in enumerate(zip(boxes, masks, strict=True)):
            entry = {"id": len(entries) + 1, "image_id": index, "category_id": int(sample.labels[i])}
            about = {"bbox": box, "area": float(sample.areas[i]), "iscrowd": int(sample.crowd[i])}
            entries.append({**entry, **about, "segmentation": mask})
    return entries


def coco_figures(evaluated: Any) -> dict[str, float | None]:
    """The twelve of COCO's own summary, in percent; None where there is no such object."""
    settings = evaluated.params
    figures: dict[str, float | None] = {}
    for key, (what, iou, areas, limit) in FIGURES.items():
        values = evaluated.eval[what]  # precision (T, R, K, A, M), recall (T, K, A, M)
        values = values[..., settings.areaRngLbl.index(areas), settings.maxDets.index(limit)]
        if iou is not None:
            values = values[np.isclose(settings.iouThrs, iou)]
        mean = _mean(values)
        figures[key] = None if mean is None else 100 * mean
    return figures


def confused(result: Detections, sample: BoxSample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(true class, found class) of each box of a picture, -1 for the background.

    Each found box, the best score first, takes the true box that it overlaps most, first of its own class,
    then, for those left, of any class: a box that has an answer of its class is not held against another.
    One in a crowd of its class is left out.
    """
    sure = np.flatnonzero(np.asarray(result.scores) >= CONF)
    sure = sure[np.argsort(-np.asarray(result.scores)[sure], kind="stable")]
    boxes, found = result.boxes[sure], np.asarray(result.indices, np.int64)[sure]
    single = ~sample.crowd
    truth = sample.labels[single].astype(np.int64)
    overlaps = box_iou(boxes, sample.boxes[single])  # (n, m)
    same = found[:, None] == truth
    match = _match(np.where(same, overlaps, 0))
    inside = box_iou(boxes, sample.boxes[sample.crowd], crowd=True) >= IOU
    ignored = (inside & (found[:, None] == sample.labels[sample.crowd])).any(axis=1) & (match < 0)
    taken = np.zeros(len(truth), bool)
    taken[match[match >= 0]] = True
    free = (match < 0) & ~ignored
    match[free] = _match(np.where(taken, 0, overlaps)[free])
    missed = np.setdiff1d(np.arange(len(truth)), match)
    counted = ~ignored
    rows = np.where(match >= 0, truth[match], -1)[counted] if len(truth) else np.full(counted.sum(), -1)
    return (
        np.concatenate([rows, truth[missed]]).astype(np.int64),
        np.concatenate([found[counted], np.full(len(missed), -1)]).astype(np.int64),
    )


def _match(overlaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n, m) -> (n,): the column that each row takes, in the rows' order; -1 for none."""
    overlaps = overlaps.copy()
    match = np.full(len(overlaps), -1, dtype=np.int64)
    for row in range(len(overlaps) if overlaps.size else 0):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= IOU:
            match[row] = best
            overlaps[:, best] = 0
    return match


def box_iou(boxes: NDArray[Any], others: NDArray[Any], crowd: bool = False) -> NDArray[np.float64]:
    """(n, 4), (m, 4) -> intersection over union (n, m); of a crowd, over the area of `boxes` alone."""
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)  # (n, m)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    whole = areas if crowd else areas + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def decoded(codes: Codes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Run-length codes -> bool (n, H, W)."""
    if not codes:
        return np.zeros((0, size[1], size[0]), bool)
    return coco_mask.decode(codes).astype(bool).transpose(2, 0, 1)


def _to_xywh(boxes: NDArray[Any]) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist()


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of what is there; COCO writes -1 for what is not."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None
