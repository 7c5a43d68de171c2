"""What a segmenter answers: decoded, drawn, told. Without torch.

B batch, K classes, h and w of the logits, H and W of the picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter

from metamobile.data.masks import IGNORED
from metamobile.errors import NotFinite
from metamobile.files import aside, free_name
from metamobile.tasks.drawing import Colour, colour, enlarged, with_legend
from metamobile.tasks.names import distinct

if TYPE_CHECKING:
    from metamobile.data.masks import MaskSample
    from metamobile.deploy.runtimes import Runtime

HEADLINES = [
    ("miou", "mIoU", "%", "overlap with the truth, mean of the classes"),
    ("macc", "mAcc", "%", "pixels of a class that were named right, mean of the classes"),
    ("aacc", "aAcc", "%", "of all labelled pixels were named right"),
]
CLASS_COLUMNS = [
    ("support", "Pixels", "labelled pixels of this class"),
    ("iou", "IoU %", "pixels named right, of those that are of this class or were named so"),
    ("accuracy", "Accuracy %", "share of this class's pixels that were named right"),
    ("precision", "Precision %", "share of the pixels named so that are of this class"),
]
OPTIONS = MEASURED = ("slide",)
BATCH_SIZE = 4  # ADE20K at 512x2048 px: 0.6 GB of logits each
SCORE_NOTE = "mean IoU of the classes in the picture"
NOT_LABELLED = "not labelled"
OPACITY = 0.55
STRIP = 64  # rows of the picture that are decoded at once
LEGEND = 12  # classes in a legend


@dataclass(eq=False)
class Segmentation:
    """The class of each pixel of one picture, at its own size.

    size: (width, height). mask: integers (H, W), indices of `labels`; any other index is a pixel without a
    label, which occurs in a truth only. mask_file: where `mask_png` has written it.
    """

    picture: str
    size: tuple[int, int]
    mask: NDArray[np.integer]
    labels: list[str]
    mask_file: str = ""

    def shares(self) -> list[tuple[int, float]]:
        """(class index, share of the picture's pixels from 0 to 1) of the classes present, largest first."""
        inside = self.mask[~self.unlabelled()]
        counts = np.bincount(inside.astype(np.intp), minlength=len(self.labels))
        order = np.argsort(-counts, kind="stable")
        return [(int(i), int(counts[i]) / self.mask.size) for i in order if counts[i]]

    def unlabelled(self) -> NDArray[np.bool_]:
        """(H, W), true where a pixel has no class."""
        return (self.mask < 0) | (self.mask >= len(self.labels))

    def to_dict(self) -> dict[str, Any]:
        """Without the mask itself: its file, and the share of each class present."""
        found = {"picture": self.picture, "size": list(self.size)}
        if self.mask_file:
            found["mask"] = self.mask_file
        return {**found, "shares": {self.labels[i]: share for i, share in self.shares()}}


def decode(
    outputs: ArrayLike | Sequence[ArrayLike],
    names: Sequence[str],
    pictures: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    shapes: Sequence[tuple[int, int]] = (),
    *,
    slide: int | None = None,
) -> list[Segmentation]:
    """Logits (B, K, h, w), or B arrays (K, h, w) -> the best class of each pixel at each picture's own size.

    `sizes` are (width, height). The logits are taken to cover the whole picture; they are resized, and then
    the class is chosen. `slide` is for `configure` alone. Errors: NotFinite; ValueError where the logits do
    not fit pictures and classes.
    """
    maps = [np.asarray(one) for one in outputs]  # type: ignore[union-attr]
    labels = distinct(names)
    if len(maps) != len(pictures) or any(one.ndim != 3 or len(one) != len(labels) for one in maps):
        given = ", ".join(sorted({str(one.shape) for one in maps}))
        expected = f"{len(pictures)} pictures and {len(labels)} classes"
        raise ValueError(f"{len(maps)} logits of shape {given} do not fit {expected}")
    bad = sum(not np.isfinite(one).all() for one in maps)
    if bad:
        raise NotFinite(f"the network's output is not finite for {bad} of {len(maps)} pictures")
    return [
        Segmentation(picture, (size[0], size[1]), best_class(logits, size), labels)
        for logits, picture, size in zip(maps, pictures, sizes, strict=True)
    ]


answers = decode  # what the metric takes


def configure(runtime: Runtime, *, slide: int | None = None) -> Runtime:
    """The runtime, in overlapping windows of `slide` pixels if that is given.

    They are pixels of the resized picture. Errors: ValueError for none, and for a window that holds it whole.
    """
    if slide is None:
        return runtime
    if getattr(runtime, "takes_pictures", False):
        raise ValueError(
            f"slide {slide}: a file that preprocesses by itself resizes each picture whole; expected a run "
            "folder or a file written without --with-preprocessing"
        )
    height, width = runtime.card.preprocess.size
    if not 1 <= slide < max(height, width):
        raise ValueError(
            f"slide {slide}: expected the side of a window in pixels, less than {max(height, width)}, as "
            f"this model's pictures are resized to {height}x{width}"
        )
    if not getattr(runtime, "any_size", False):
        raise ValueError(
            f"slide {slide}: a {runtime.name} file of one size cannot take windows, its pictures are "
            f"{height}x{width}; expected a run folder or a file of `metamobile export --size any`"
        )
    from metamobile.tasks.segment.slide import Sliding

    return Sliding(runtime, slide)


def best_class(logits: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.integer]:
    """Logits (K, h, w) -> the largest one's index (H, W), of equal ones the first.

    uint8 for at most 255 classes, so that 255 stays free for "not labelled"; else int32.
    """
    mask = np.zeros(size[::-1], np.uint8 if len(logits) <= IGNORED else np.int32)
    for rows, channels in resized(logits, size):
        highest = next(channels).copy()
        for index, channel in enumerate(channels, 1):
            better = channel > highest
            np.copyto(highest, channel, where=better)
            mask[rows][better] = index
    return mask


def resized(
    logits: NDArray[np.floating], size: tuple[int, int]
) -> Iterator[tuple[slice, Iterator[NDArray[np.floating]]]]:
    """Logits (K, h, w) at a size (width, height), a strip of rows and a class at a time, so that (K, H, W)
    never is in memory: (rows, K arrays (rows, W)).

    Bilinear between half-pixel centres, as torch's F.interpolate without align_corners: each pixel mixes two
    rows and two columns, also where the size shrinks.
    """
    width, height = size
    if logits.shape[1:] == (height, width):
        for start in range(0, height, STRIP):
            yield slice(start, start + STRIP), iter(logits[:, start : start + STRIP])
        return
    left, right, across = _taps(logits.shape[2], width)
    above, below, down = _taps(logits.shape[1], height)
    logits = logits.astype(np.float32, copy=False)
    for start in range(0, height, STRIP):
        rows = slice(start, start + STRIP)
        first, last = above[rows][0], below[rows][-1]
        source = logits[:, first : last + 1]  # (K, the few rows that this strip needs, w)
        wide = source[:, :, left] * (1 - across) + source[:, :, right] * across
        # rows mix by a small matrix (rows of the strip, rows of the source)
        mix = np.zeros((len(above[rows]), last - first + 1), np.float32)
        each = np.arange(len(mix))
        mix[each, above[rows] - first] = 1 - down[rows]
        mix[each, below[rows] - first] += down[rows]
        yield rows, (mix @ channel for channel in wide)


def _taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of `target` places: the two of `source` places beside it, and the second one's weight."""
    places = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    lower = np.floor(places).astype(np.intp)
    return lower, np.minimum(lower + 1, source - 1), (places - lower).astype(np.float32)


def truth_of(sample: MaskSample, names: Sequence[str]) -> Segmentation:
    """The truth of a picture as an answer, to be drawn beside one. Its pixels of 255 have no label."""
    truth = sample.read_mask()
    if len(names) <= IGNORED:
        mask: NDArray[np.integer] = truth.astype(np.uint8)
    else:
        mask = np.where(truth == IGNORED, -1, truth.astype(np.int32))
    height, width = mask.shape
    return Segmentation(str(sample.path), (width, height), mask, distinct(names))


def draw(picture: Image.Image, result: Segmentation) -> Image.Image:
    """The picture under the colours of its classes, thin lines between them, and a legend with their shares.

    A pixel without a label is hatched in black. A small picture is enlarged in whole steps. Errors:
    ValueError for a picture of another size.
    """
    if picture.size != result.size:
        given, expected = (" x ".join(map(str, size)) for size in (picture.size, result.size))
        raise ValueError(
            f"{result.picture}: the picture is {given} pixels, expected {expected} as its mask has"
        )
    sheet = enlarged(picture)
    scale = sheet.width // picture.width
    mask = result.mask.repeat(scale, axis=0).repeat(scale, axis=1)
    unlabelled = result.unlabelled().repeat(scale, axis=0).repeat(scale, axis=1)
    thick = max(1, round(max(sheet.size) / 600))

    colours = np.array([colour(i) for i in range(len(result.labels))] + [(0, 0, 0)], np.uint8)
    paint = colours[np.where(unlabelled, len(result.labels), mask)]  # (H, W, 3)
    paint[unlabelled & _hatch(mask.shape, 4 * thick)] = 90
    sheet = Image.blend(sheet, Image.fromarray(paint), OPACITY)
    sheet.paste((255, 255, 255), mask=_contours(mask, thick))
    return with_legend(sheet, _legend(result))


def _hatch(shape: tuple[int, ...], step: int) -> NDArray[np.bool_]:
    """(H, W), true on diagonal stripes of `step` pixels, three times as far apart."""
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1])) // step % 4 == 0


def _contours(mask: NDArray[np.integer], thick: int) -> Image.Image:
    """White, and half transparent, where a pixel's class is not that of its right or lower neighbour."""
    edges = np.zeros(mask.shape, np.uint8)
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edges[:-1] |= mask[:-1] != mask[1:]
    lines = Image.fromarray(edges * 170)
    return lines.filter(ImageFilter.MaxFilter(thick // 2 * 2 + 1)) if thick > 1 else lines


def _legend(result: Segmentation) -> list[tuple[str, Colour | None]]:
    shares = result.shares()
    # one more class takes no more room than the words "and 1 more"
    shown = shares if len(shares) <= LEGEND + 1 else shares[:LEGEND]
    entries: list[tuple[str, Colour | None]] = [
        (f"{result.labels[i]} {_percent(share)}", colour(i)) for i, share in shown
    ]
    if len(shares) > len(shown):
        entries.append((f"and {len(shares) - len(shown)} more", None))
    rest = float(result.unlabelled().mean())
    return entries + ([(f"{NOT_LABELLED} {_percent(rest)}", (0, 0, 0))] if rest else [])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def mask_png(result: Segmentation, path: str | Path) -> None:
    """Write class indices as a PNG with the classes' colours as its palette; 255 has no label.

    With more than 256 classes a grey PNG of 16 bits, where 65535 has none. Sets the result's `mask_file`.
    """
    if len(result.labels) <= 256:
        picture = Image.fromarray(result.mask.astype(np.uint8))
        shades = [colour(i) for i in range(len(result.labels))] + [(0, 0, 0)] * 256
        picture.putpalette([part for shade in shades[:256] for part in shade])
    else:
        picture = Image.fromarray(result.mask.astype(np.uint16))
    with aside(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    result.mask_file = str(path)


def save_more(result: Segmentation, drawing: Path) -> None:
    """Write the classes beside the drawing, as name_mask.png, the name that data sets of masks have.

    With the first number from 2 that no file there has, if that is there already.
    """
    mask_png(result, free_name(drawing.with_name(f"{drawing.stem}_mask.png")))


def in_words(result: Segmentation, most: int = 4) -> str:
    """ "road 42.1 %, sky 20.0 %": the largest classes and their shares of the picture."""
    return ", ".join(f"{result.labels[i]} {_percent(share)}" for i, share in result.shares()[:most])


def answers_table(results: Sequence[Segmentation]) -> tuple[list[str], list[list[str]]]:
    """A row a picture: the largest class with its share, then the others that reach one percent."""
    rows = []
    for result in results:
        shares = result.shares()
        (largest, share), rest = shares[0], shares[1:]
        others = ", ".join(f"{result.labels[i]} {_percent(part)}" for i, part in rest if part >= 0.01)
        rows.append([result.picture, result.labels[largest], _percent(share), others])
    return ["picture", "largest", ">of the picture", "then"], rows


def json_text(results: Sequence[Segmentation], about: Mapping[str, Any]) -> str:
    """`about`, then the results."""
    found = {**about, "results": [result.to_dict() for result in results]}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def csv_text(results: Sequence[Segmentation], failures: Sequence[tuple[str, str]]) -> str:
    """CSV: picture, class, share, error; one row a class present, the (picture, error) ones last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "class", "share", "error"])
    for result in results:
        writer.writerows(
            [result.picture, result.labels[i], f"{share:.6f}", ""] for i, share in result.shares()
        )
    writer.writerows([picture, "", "", error] for picture, error in failures)
    return text.getvalue()


def figures_line(figures: Mapping[str, Any]) -> str:
    shares = "   ".join(f"{label} {figures[key]:.2f} {unit}" for key, label, unit, _ in HEADLINES)
    return f"{shares}   {figures['pictures']:,} pictures"


def class_table(figures: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Lowest IoU first; classes that occur neither in truth nor answers come last."""

    def order(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
        iou = item[1]["iou"]
        return iou is None, iou or 0.0

    rows = []
    for name, entry in sorted(figures["per_class"].items(), key=order):
        parts = (entry[key] for key in ("iou", "accuracy", "precision"))
        cells = ["-" if part is None else f"{100 * part:.1f}" for part in parts]
        rows.append([name, f"{entry['support']:,}", *cells])
    columns = ["class", ">pixels", ">IoU %", ">accuracy %", ">precision %"]
    return "Classes, lowest IoU first", columns, rows
