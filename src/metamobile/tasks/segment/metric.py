"""Agreement of segmentations with their truth. Without torch.

K classes, H height, W width.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metamobile.data.masks import IGNORED, MaskSample
from metamobile.tasks.names import distinct
from metamobile.tasks.segment.results import Segmentation


class Metric:
    """Intersection over union over any number of pictures, from one confusion matrix of all their pixels.

    `names` are the classes' readable names, by index. Pixels whose truth is 255 are not counted. The `keep`
    worst pictures are held as they come, so that memory does not grow with the data.
    """

    def __init__(self, names: Sequence[str], samples: Sequence[MaskSample] = (), *, keep: int = 24) -> None:
        self.names = distinct(names)
        self.samples = samples
        self.keep = keep
        self.confusion: NDArray[np.int64] = np.zeros((len(names), len(names)), dtype=np.int64)
        # a heap whose first entry is the best picture kept: (-score, -index, order of arrival, result)
        self._worst: list[tuple[float, int, int, Segmentation]] = []
        self._seen = 0

    def update(self, results: Sequence[Segmentation], indices: Sequence[int]) -> None:
        """Compare each result's mask (H, W) with the mask of samples[index].

        Errors: ValueError for masks of different sizes and for classes that there are not.
        """
        for result, index in zip(results, indices, strict=True):
            sample = self.samples[index]
            counts = confusion_matrix(result.mask, sample.read_mask(), len(self.names), str(sample.mask))
            self.confusion += counts
            self._seen += 1
            iou = shares(counts)["iou"][counts.sum(axis=1) > 0]
            if not iou.size or not self.keep:
                continue  # a picture without a labelled pixel is neither right nor wrong
            entry = (-float(iou.mean()), -int(index), self._seen, result)
            if len(self._worst) < self.keep:
                heapq.heappush(self._worst, entry)
            else:
                heapq.heappushpop(self._worst, entry)

    def compute(self) -> dict[str, Any]:
        """miou, macc, aacc in percent; per_class shares from 0 to 1 and support in pixels; confusion counts,
        a row for each true class.

        A share of nothing is None and left out of the means: so miou is over the classes that occur in truth
        or prediction, macc (mean recall) over those in the truth, as mmsegmentation counts them.
        """
        total = int(self.confusion.sum())
        if not total:
            raise ValueError("nothing was measured: no picture with a labelled pixel was given")
        found = shares(self.confusion)
        support = self.confusion.sum(axis=1)
        per_class = {
            name: {
                **{key: None if math.isnan(values[i]) else float(values[i]) for key, values in found.items()},
                "support": int(support[i]),
            }
            for i, name in enumerate(self.names)
        }
        return {
            "miou": 100 * float(np.nanmean(found["iou"])),
            "macc": 100 * float(np.nanmean(found["accuracy"])),
            "aacc": 100 * int(np.trace(self.confusion)) / total,
            "per_class": per_class,
            "confusion": self.confusion.tolist(),
        }

    def worst(self, most: int) -> list[tuple[int, Segmentation, float]]:
        """(index, result, score) of at most `most` (and `keep`) pictures, the lowest score first.

        The score is the mean IoU, 0 to 1, over the classes in the picture's truth.
        """
        kept = sorted(self._worst, key=lambda entry: (-entry[0], -entry[1], entry[2]))
        return [(-index, result, -score) for score, index, _, result in kept[:most]]


def confusion_matrix(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], classes: int, name: str = "the truth"
) -> NDArray[np.int64]:
    """Pixel counts (K, K) of two masks (H, W), rows the truth; pixels of truth 255 are left out.

    Errors: ValueError, which begins with `name`, for different sizes and for classes outside 0 ... K - 1.
    """
    if predicted.shape != truth.shape:
        given, expected = (" x ".join(map(str, mask.shape[::-1])) for mask in (predicted, truth))
        raise ValueError(f"{name}: the answer's mask is {given} pixels, expected {expected}")
    counted = truth != IGNORED
    rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for what, values in (("the truth", rows), ("the answer", columns)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            wrong = values.max() if values.max() >= classes else values.min()
            raise ValueError(f"{name}: class {wrong} in {what}, expected 0 to {classes - 1} or {IGNORED}")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)  # (K, K)


def shares(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """iou, accuracy (recall) and precision (K,) of a confusion matrix (K, K); nan for a share of nothing."""
    hits = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    wholes = {"iou": support + predicted - hits, "accuracy": support, "precision": predicted}
    return {
        key: np.divide(hits, whole, out=np.full(len(hits), np.nan), where=whole > 0)
        for key, whole in wholes.items()
    }
