"""What a detector answers: decoded, drawn, told. Without torch.

n boxes of a picture, x1 y1 x2 y2 in pixels; h and w of the network's input, H and W of the picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from metamobile.errors import NotFinite
from metamobile.tasks.detect.drawing import draw as draw
from metamobile.tasks.names import distinct

if TYPE_CHECKING:
    from metamobile.data.box_sample import BoxSample
    from metamobile.deploy.runtimes import Runtime

HEADLINES = [
    ("ap", "AP", "%", "average precision, mean of IoU 0.50 to 0.95 and of the classes"),
    ("ap50", "AP50", "%", "boxes that overlap by half count as found"),
    ("ap75", "AP75", "%", "boxes that overlap by three quarters count as found"),
    ("mask_ap", "Mask AP", "%", "the same as AP, of masks"),
]
CLASS_COLUMNS = [
    ("support", "Boxes", "true boxes of this class"),
    ("ap", "AP %", "average precision, mean of IoU 0.50 to 0.95"),
    ("ap50", "AP50 %", "average precision at IoU 0.50"),
    ("recall", "Recall %", "share of this class's boxes that were found with a score of at least 0.25"),
    ("precision", "Precision %", "share of the boxes named so, with at least that score, that are right"),
]

# COCO's other nine, as `eval` tells them: by areas under 32 x 32 pixels, under 96 x 96, and above; AR is the
# share of boxes found, where an answer may have 1, 10 or 100 boxes a picture
SIZES = ("small", "medium", "large")
NINE = [
    ("AP", [(f"ap_{size}", size) for size in SIZES]),
    ("AR", [("ar_1", "of 1 box"), ("ar_10", "of 10"), ("ar_100", "of 100")]),
    ("AR", [(f"ar_{size}", size) for size in SIZES]),
]

OPTIONS = ("conf", "iou")
MEASURED = ("iou",)
BATCH_SIZE = 16
CONF = 0.25  # lowest score of what is shown
SCORE_NOTE = "F1 of the boxes with a score of at least 0.25"

Codes = list[dict[str, Any]]  # COCO's run-length codes, {"size": [H, W], "counts": text}


@dataclass(eq=False)
class Detections:
    """The objects found in one picture, the best score first.

    size: (width, height). boxes: float32 (n, 4) in the picture's own pixels. scores: (n,) from 0 to 1.
    labels: n readable names; indices: their classes (n,). masks: bool (n, H, W), or None without any.
    """

    picture: str
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.floating]
    labels: list[str]
    indices: NDArray[np.integer]
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: ArrayLike) -> Detections:
        """Those of these places, in this order."""
        rows = np.asarray(rows, dtype=np.intp)
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=[self.labels[row] for row in rows],
            indices=self.indices[rows],
            masks=None if self.masks is None else self.masks[rows],
        )

    def above(self, conf: float) -> Detections:
        """Those with a score of at least `conf`."""
        return self.take(np.flatnonzero(self.scores >= conf))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; masks as COCO's run-length codes."""
        found = {
            "picture": self.picture,
            "size": list(self.size),
            "labels": self.labels,
            "indices": [int(index) for index in self.indices],
            "scores": [_rounded(score, 6) for score in self.scores],
            "boxes": [[_rounded(value, 3) for value in box] for box in self.boxes],
        }
        return found if self.masks is None else {**found, "masks": run_lengths(self.masks)}


def decode(
    outputs: Sequence[Mapping[str, ArrayLike]],
    names: Sequence[str],
    pictures: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    shapes: Sequence[tuple[int, int]],
    conf: float = CONF,
    iou: float | None = None,
) -> list[Detections]:
    """A network's boxes, scores, labels and perhaps masks of each picture -> the same in its own pixels.

    `sizes` (width, height) of the pictures, `shapes` (h, w) of the network's inputs, each of which shows its
    whole picture. Boxes are clipped to the picture; one that has no area there is dropped, as is one with a
    score below `conf`. `iou` is for `configure`. Errors: NotFinite; ValueError for what does not fit.
    """
    if not len(outputs) == len(pictures) == len(sizes) == len(shapes):
        raise ValueError(
            f"{len(outputs)} outputs, {len(sizes)} sizes and {len(shapes)} shapes do not fit {len(pictures)} "
            "pictures; expected one of each a picture"
        )
    labels = distinct(names)
    parts = zip(outputs, pictures, sizes, shapes, strict=True)
    return [_decode(found, labels, picture, size, shape, conf) for found, picture, size, shape in parts]


answers = partial(decode, conf=0.0)  # what the metric takes: every box


def configure(runtime: Runtime, *, conf: float | None = None, iou: float | None = None) -> Runtime:
    """The runtime with `conf` as the lowest score, and `iou` as the overlap at which the worse of two boxes
    of a class is dropped. Errors: ValueError for an `iou` where suppression is part of an exported file.
    """
    if hasattr(runtime, "set_thresholds"):
        return runtime if conf is None and iou is None else WithThresholds(runtime, conf, iou)
    if iou is not None:
        raise ValueError(
            f"iou {iou:g}: in a file for {runtime.name} the overlap is fixed; expected a run folder or a "
            ".safetensors file"
        )
    return runtime  # of its boxes `decode` leaves those above `conf`


class WithThresholds:
    """A runtime whose network has other thresholds while it runs, and its own again after that."""

    def __init__(self, runtime: Any, conf: float | None, iou: float | None) -> None:
        self.runtime, self.conf, self.iou = runtime, conf, iou
        self.name, self.card = runtime.name, runtime.card

    def run(self, batch: NDArray[np.float32]) -> Any:
        holder = self.runtime.network.thresholds()
        before = {"score": holder.score_thresh, "iou": holder.nms_thresh}
        self.runtime.set_thresholds(score=self.conf, iou=self.iou)
        try:
            return self.runtime.run(batch)
        finally:
            self.runtime.set_thresholds(**before)


def save_more(result: Detections, drawing: Path) -> None:
    """Nothing but the drawing is written for boxes; masks are in the JSON."""


def _decode(
    found: Mapping[str, ArrayLike],
    names: Sequence[str],
    picture: str,
    size: tuple[int, int],
    shape: tuple[int, int],
    conf: float,
) -> Detections:
    boxes = np.asarray(found["boxes"], np.float64).reshape(-1, 4)
    scores, indices = np.asarray(found["scores"], np.float32), np.asarray(found["labels"], np.int64)
    given = None if found.get("masks") is None else np.asarray(found["masks"])
    who = picture or "a picture"
    if not len(boxes) == len(scores) == len(indices) or (given is not None and len(given) != len(boxes)):
        masks = "" if given is None else f", {len(given)} masks"
        raise ValueError(f"{who}: {len(boxes)} boxes, {len(scores)} scores, {len(indices)} labels{masks}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        bad = int((~np.isfinite(boxes).all(axis=1) | ~np.isfinite(scores)).sum())
        raise NotFinite(f"{who}: the network's output is not finite for {bad} of {len(boxes)} boxes")
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(names):
        wrong = indices.max() if indices.max() >= len(names) else indices.min()
        raise ValueError(f"{who}: class {wrong} in the output, expected 0 to {len(names) - 1}")

    width, height = size
    boxes *= (width / shape[1], height / shape[0]) * 2
    boxes = np.clip(boxes, 0, (width, height) * 2)
    order = np.argsort(-scores, kind="stable")
    seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (scores >= conf)
    order = order[seen[order]]
    return Detections(
        picture,
        (width, height),
        boxes[order].astype(np.float32),
        scores[order],
        [names[index] for index in indices[order]],
        indices[order],
        None if given is None else resized_masks(given[order], size),
    )


def resized_masks(masks: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(n, h, w), true where the object is -> bool (n, H, W): bilinear, then at least one half."""
    width, height = size
    full = np.zeros((len(masks), height, width), bool)
    for mask, target in zip(masks, full, strict=True):
        if mask.shape == target.shape:
            target[:] = mask
        else:
            grey = Image.fromarray(mask.astype(np.uint8) * 255)
            target[:] = np.asarray(grey.resize(size, Image.Resampling.BILINEAR)) >= 128
    return full


def truth_of(sample: BoxSample, names: Sequence[str]) -> Detections:
    """The truth of a picture as an answer with scores of 1, to be drawn beside one."""
    known = distinct(names)
    crowd = sample.crowd.tolist()
    labels = [
        f"{known[i]} (crowd)" if many else known[i] for i, many in zip(sample.labels, crowd, strict=True)
    ]
    scores = np.ones(len(sample.boxes), np.float32)
    masks = sample.masks() if sample.segmentations is not None and all(sample.segmentations) else None
    return Detections(
        str(sample.path), sample.size, sample.boxes, scores, labels, sample.labels.astype(np.int64), masks
    )


def run_lengths(masks: NDArray[np.bool_]) -> Codes:
    """bool (n, H, W) -> a run-length code each, packed into text."""
    from faster_coco_eval import mask as coco_mask

    codes = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return [{**code, "counts": _text(code["counts"])} for code in codes]


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def in_words(result: Detections) -> str:
    """ "3 person, 1 dog", the most frequent first."""
    counts = Counter(result.labels).most_common()
    return ", ".join(f"{count} {label}" for label, count in counts) or "nothing"


def answers_table(results: Sequence[Detections]) -> tuple[list[str], list[list[str]]]:
    """A row a picture: how many objects, of which classes, and the best score."""
    rows = []
    for result in results:
        best = f"{100 * float(result.scores.max()):.1f} %" if len(result) else "-"
        rows.append([result.picture, f"{len(result)}", in_words(result), best])
    return ["picture", ">objects", "found", ">best score"], rows


def to_coco(
    results: Sequence[Detections],
    category_ids: Sequence[int] | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> list[dict[str, Any]]:
    """COCO's results: one entry a box, with image_id, category_id, bbox (x, y, width, height) and score.

    `category_ids` by class, else the class's index plus 1; `image_ids` by result, else the file's name
    without its ending, as a number if it is one (000000000009.jpg is 9). Masks become "segmentation".
    """
    found = []
    for i, result in enumerate(results):
        image_id = image_id_of(result.picture) if image_ids is None else image_ids[i]
        codes = None if result.masks is None else run_lengths(result.masks)
        for row, (x1, y1, x2, y2) in enumerate(result.boxes.astype(np.float64)):
            index = int(result.indices[row])
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": index + 1 if category_ids is None else int(category_ids[index]),
                "bbox": [_rounded(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": _rounded(result.scores[row], 6),
            }
            found.append(entry if codes is None else {**entry, "segmentation": codes[row]})
    return found


def image_id_of(picture: str) -> int | str:
    stem = Path(picture).stem
    return int(stem) if stem.isdecimal() else stem


def json_text(results: Sequence[Detections], about: Mapping[str, Any]) -> str:
    """COCO's results, a list; of `about` only "category_ids" and "image_ids" are used, if they are there."""
    entries = to_coco(results, about.get("category_ids") or None, about.get("image_ids"))
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def csv_text(results: Sequence[Detections], failures: Sequence[tuple[str, str]]) -> str:
    """CSV: picture, label, score, x1, y1, x2, y2, error; one row a box, the (picture, error) ones last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "label", "score", "x1", "y1", "x2", "y2", "error"])
    for result in results:
        for label, score, box in zip(result.labels, result.scores, result.boxes, strict=True):
            writer.writerow([result.picture, label, f"{score:.6f}", *(f"{value:.2f}" for value in box), ""])
    writer.writerows([picture, *[""] * 6, error] for picture, error in failures)
    return text.getvalue()


def figures_line(figures: Mapping[str, Any]) -> str:
    """Those of HEADLINES that there are; below, COCO's other nine of boxes and of masks. "-" for a mean of
    nothing."""
    parts = [f"{label} {_percent(figures[key])}" for key, label, _, _ in HEADLINES if key in figures]
    lines = ["   ".join([*parts, f"{figures['pictures']:,} pictures"])]
    for title, prefix in (("", ""), ("Mask ", "mask_")):
        parts = [
            f"{title}{name} "
            + ", ".join(f"{label} {_percent(figures[prefix + key])}" for key, label in group)
            for name, group in NINE
            if all(prefix + key in figures for key, _ in group)
        ]
        if parts:
            lines.append("   ".join(parts))
    return "\n".join(lines)


def class_table(figures: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Lowest AP first; classes without a box in the truth come last."""

    def order(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
        ap = item[1]["ap"]
        return ap is None, ap or 0.0

    rows = []
    for name, entry in sorted(figures["per_class"].items(), key=order):
        shares = (entry[key] for key in ("ap", "ap50", "recall", "precision"))
        cells = [_number(None if share is None else 100 * share, 1) for share in shares]
        rows.append([name, f"{entry['support']:,}", *cells])
    columns = ["class", ">boxes", ">AP %", ">AP50 %", ">recall %", ">precision %"]
    return "Classes, lowest AP first", columns, rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _rounded(value: Any, digits: int) -> float:
    return round(float(value), digits)
