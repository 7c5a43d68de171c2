"""One picture with its boxes, and the judgement of each box that COCO and YOLO readers share.

Shapes: n boxes of a picture, H and W its height and width. Boxes are x1, y1, x2, y2 in pixels, x to the
right and y down, with 0, 0 at the outer corner of the first pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import ExifTags, Image

from metamobile.data.inspect import Problem
from metamobile.errors import DataError

ROUNDING = 1.0  # pixels that a box may reach beyond the picture, as written numbers are rounded
ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap width and height

Segmentation = Any  # COCO's: a list of polygons [x, y, x, y, ...], or a run-length code {"size", "counts"}


@dataclass(frozen=True, eq=False)
class BoxSample:
    """A picture and its objects.

    `size` (width, height); `boxes` float32 (n, 4); `labels` int64 (n,) from 0; `crowd` bool (n,), true for a
    box around many objects, which is neither to be found nor an error to find; `areas` float64 (n,), of the
    mask where there is one, else of the box; `segmentations` one for each box, None for data without masks.
    """

    path: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    image_id: int
    segmentations: tuple[Segmentation, ...] | None = None

    def masks(self) -> np.ndarray:
        """bool (n, H, W). Errors: DataError for data without masks, or for a box without one."""
        if self.segmentations is None:
            raise DataError(f"{self.path}: its boxes have no masks; expected polygons or run-length codes")
        width, height = self.size
        masks = np.zeros((len(self.boxes), height, width), bool)
        for index, segmentation in enumerate(self.segmentations):
            if not segmentation:
                raise DataError(
                    f"{self.path}: box {index + 1} has no mask, others have; add it, or leave all masks out"
                )
            masks[index] = decode_mask(segmentation, self.size)
        return masks


@dataclass
class BoxSplit:
    """The samples of a split without what is bad, and each bad thing as a problem."""

    samples: list[BoxSample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class BoxGatherer:
    """Collects the boxes of one picture. A bad box becomes a problem of the file `source`."""

    def __init__(
        self, path: Path, size: tuple[int, int], image_id: int, source: Path, problems: list[Problem]
    ) -> None:
        self.path, self.size, self.image_id = path, size, image_id
        self.source, self.problems = source, problems
        self.boxes: list[tuple[float, ...]] = []
        self.labels: list[int] = []
        self.crowd: list[bool] = []
        self.areas: list[float] = []
        self.segmentations: list[Segmentation] = []
        self.first: dict[tuple, str] = {}

    def refuse(self, where: str, kind: str, detail: str) -> None:
        self.problems.append(Problem(self.source, kind, f"{where}: {detail}"))

    def add(
        self,
        where: str,
        box: Sequence[float],
        label: int,
        crowd: bool = False,
        area: float | None = None,
        segmentation: Segmentation = None,
    ) -> None:
        """`box` is x, y, width, height in pixels; `where` it is written opens the text of a problem."""
        kind, detail, corners = judge_box(box, self.size)
        if kind:
            return self.refuse(where, kind, detail)
        if segmentation and (wrong := judge_segmentation(segmentation, self.size)):
            return self.refuse(where, "bad mask", wrong)
        key = (label, crowd, *box)
        if key in self.first:
            return self.refuse(where, "duplicate box", f"class and box are those of {self.first[key]}")
        self.first[key] = where
        if area is None:
            area = segmentation_area(segmentation) if segmentation else box[2] * box[3]
        self.boxes.append(corners)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.areas.append(area)
        self.segmentations.append(segmentation)

    def sample(self, with_masks: bool) -> BoxSample:
        return BoxSample(
            self.path,
            self.size,
            np.asarray(self.boxes, np.float32).reshape(-1, 4),
            np.asarray(self.labels, np.int64),
            np.asarray(self.crowd, bool),
            np.asarray(self.areas, np.float64),
            self.image_id,
            tuple(self.segmentations) if with_masks else None,
        )


def judge_box(box: Sequence[float], size: tuple[int, int]) -> tuple[str, str, tuple[float, ...]]:
    """(kind of problem or "", its detail, x1 y1 x2 y2 within the picture) of x, y, width, height."""
    x, y, w, h = box
    width, height = size
    text = f"x {x:g}, y {y:g}, width {w:g}, height {h:g}"
    if w < 0 or h < 0:
        return "inverted box", text, ()
    if w == 0 or h == 0:
        return "empty box", text, ()
    corners = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    text += f"; the picture is {width}x{height}"
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return "box outside", text, ()
    if max(-x, -y, x + w - width, y + h - height) >= ROUNDING:
        return "box partly outside", text, ()
    return "", "", corners


def judge_segmentation(segmentation: Segmentation, size: tuple[int, int]) -> str:
    """What is wrong with a polygon or run-length code, or an empty string."""
    width, height = size
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            return f"run-length code of size {segmentation.get('size')}, expected [{height}, {width}]"
        counts = segmentation.get("counts")
        if isinstance(counts, list):
            if not all(isinstance(count, int) and count >= 0 for count in counts):
                return "run-length code with counts that are not numbers from 0"
            covered = sum(counts)
            return "" if covered == width * height else f"run-length code of {covered} pixels, not all"
        if not isinstance(counts, str):
            return "run-length code without counts"
        try:
            decode_mask(segmentation, size)
        except ValueError as error:
            return str(error)
        return ""
    for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
        if not isinstance(polygon, list) or not _are_numbers(polygon):
            return "expected polygons [[x, y, x, y, ...], ...] or a run-length code"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"polygon of {len(polygon)} numbers, expected x and y of at least three points"
    return ""


def is_number(value: object) -> TypeGuard[float]:
    """A finite one: neither text, nor true or false, nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: list) -> bool:
    """As `is_number` of each, by their sum: COCO's polygons hold tens of millions."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):  # text or lists among them
        return False


def segmentation_area(segmentation: Segmentation) -> float:
    """Pixels: of polygons the sum of their areas, as COCO's "area" is; of a run-length code its ones."""
    if isinstance(segmentation, dict):
        return float(_decode_run_lengths(segmentation).sum())
    area = 0.0
    for polygon in segmentation:
        x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area


def decode_mask(segmentation: Segmentation, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W), as COCO's own tools draw it: the union of the polygons, or the run-length code."""
    from faster_coco_eval.core import mask as coco_mask

    width, height = size
    if isinstance(segmentation, dict):
        return _decode_run_lengths(segmentation)
    codes = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def _decode_run_lengths(code: dict) -> np.ndarray:
    """bool (H, W). Errors: ValueError for a code that does not fit its size."""
    from faster_coco_eval.core import mask as coco_mask

    if isinstance(code["counts"], list):  # else packed into text
        code = coco_mask.frPyObjects(code, *code["size"])
    return coco_mask.decode(code).astype(bool)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) as `read_picture` gives it, from the header alone.

    Errors: OSError or what else Pillow raises for a file that is missing or no picture.
    """
    with Image.open(path) as picture:
        width, height = picture.size
        turned = _lies_on_its_side(picture)
    return (height, width) if turned else (width, height)


def read_size(path: Path, problems: list[Problem]) -> tuple[int, int] | None:
    """As `picture_size`; None, and a problem, for a picture without a header that can be read."""
    try:
        return picture_size(path)
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # as Pillow's decoders report damage
        problems.append(Problem(path, "unreadable", f"its size cannot be read: {error}"))
        return None


def is_turned(path: Path) -> bool:
    """Whether EXIF says to turn the picture by a quarter. Errors: as `picture_size`."""
    with Image.open(path) as picture:
        return _lies_on_its_side(picture)


def _lies_on_its_side(picture: Image.Image) -> bool:
    return picture.getexif().get(ExifTags.Base.Orientation) in ON_ITS_SIDE
