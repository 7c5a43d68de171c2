"""Found objects drawn into their picture: boxes, tags that can be read, masks, a legend. Without torch.

n boxes of a picture, x1 y1 x2 y2 in pixels; H and W its height and width.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from metamobile.tasks.drawing import (
    SHADE,
    Colour,
    colour,
    enlarged,
    fit,
    font,
    ink_on,
    text_size,
    with_legend,
)

if TYPE_CHECKING:
    from metamobile.tasks.detect.results import Detections

LEGEND = 24  # classes in a legend
OPACITY = 0.5  # of a mask
Place = tuple[int, int, int, int]  # x1 y1 x2 y2


def draw(picture: Image.Image, result: Detections) -> Image.Image:
    """The picture with boxes and their tags, masks half transparent, and a legend with the classes' counts.

    Scores are left out where all are 1, as in a truth. A small picture is enlarged in whole steps. Errors:
    ValueError for a picture of another size.
    """
    if picture.size != tuple(result.size):
        given, expected = (" x ".join(map(str, size)) for size in (picture.size, result.size))
        raise ValueError(f"{result.picture}: the picture is {given} pixels, expected {expected}")
    sheet = enlarged(picture)
    boxes = result.boxes * (sheet.width / picture.width)
    text = max(11, round(text_size(sheet) * (0.7 if len(result) <= 20 else 0.55)))
    letters, thick = font(text), max(2, round(text / 8))
    shades = [colour(int(index)) for index in result.indices]

    worst_first = range(len(result) - 1, -1, -1)
    for i in worst_first if result.masks is not None else ():
        _draw_mask(sheet, result.masks[i], shades[i], thick)  # type: ignore[index]
    pen = ImageDraw.Draw(sheet)
    for i in worst_first:
        _draw_box(pen, boxes[i], shades[i], thick)
    for i, label, place in _placed(result, boxes, letters, sheet.size):
        pen.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=shades[i], outline=SHADE)
        middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        pen.text(middle, label, ink_on(shades[i]), letters, anchor="mm")
    return with_legend(sheet, _legend(result))


def _draw_mask(sheet: Image.Image, mask: NDArray[np.bool_], shade: Colour, thick: int) -> None:
    """Fill and outline it. Only the part of the sheet where the mask is, is touched."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = sheet.width // mask.shape[1]
    part = np.pad(part.repeat(scale, axis=0).repeat(scale, axis=1), thick)
    place = (int(columns[0]) * scale - thick, int(rows[0]) * scale - thick)
    whole = Image.fromarray(part.astype(np.uint8) * 255)
    # a blurred mask is still 255 where no edge is near; MinFilter would say the same, far slower
    inner = whole.filter(ImageFilter.BoxBlur(thick // 2))
    alpha = np.where(np.asarray(inner) == 255, round(255 * OPACITY), np.asarray(whole))
    sheet.paste(shade, place, Image.fromarray(alpha.astype(np.uint8)))


def _draw_box(pen: ImageDraw.ImageDraw, box: NDArray[np.floating], shade: Colour, thick: int) -> None:
    """With a thin dark line on both sides, so that it is seen on any ground."""
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    x2, y2 = max(x1 + 1, x2) - 1, max(y1 + 1, y2) - 1  # the last pixels inside
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=SHADE, width=thick + 2)
    pen.rectangle((x1, y1, x2, y2), outline=shade, width=thick)


def _placed(
    result: Detections, boxes: NDArray[np.floating], letters: ImageFont.FreeTypeFont, size: tuple[int, int]
) -> list[tuple[int, str, Place]]:
    """(row, text, x1 y1 x2 y2) of the tags: inside the picture, and none hides another.

    The best score chooses first. Of free places it takes the one that hides the least of small boxes. Where
    no place is free the tag is cut to its score; where that fits nowhere either, the box has none: its colour
    tells the class.
    """
    scored = bool((result.scores < 1).any())
    pad, height = round(letters.size * 0.25), round(letters.size * 1.35)
    sides = boxes[:, 2:] - boxes[:, :2]
    small = boxes[sides.prod(axis=1) < 30 * height**2]
    found: list[tuple[int, str, Place]] = []
    for i, label in enumerate(result.labels):
        score = f"{100 * result.scores[i]:.0f} %" if scored else ""
        room = size[0] - 2 * pad - letters.getlength(f" {score}")
        taken = np.array([place for _, _, place in found]).reshape(-1, 4)
        for text in (f"{fit(label, letters, room)} {score}".strip(), score.removesuffix(" %")):
            width = round(letters.getlength(text)) + 2 * pad
            places = [place for place in _places(boxes[i], width, height, size) if not _shared(place, taken)]
            if text and places:
                found.append((i, text, min(places, key=lambda place: _shared(place, small))))
                break
    return found


def _places(box: NDArray[np.floating], width: int, height: int, size: tuple[int, int]) -> list[Place]:
    """Where the tag of a box may be, the best place first: above it, in it, under it, beside it."""
    if width > size[0] or height > size[1]:
        return []
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    corners = [
        *((x1, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height)),
        *((x2 - width, y1 - height), (x2 - width, y1), (x2 - width, y2), (x2 - width, y2 - height)),
        *((x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)),
    ]
    inside = [(min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)) for x, y in corners]
    return [(x, y, x + width, y + height) for x, y in inside]


def _shared(place: Place, taken: NDArray[Any]) -> float:
    """How many pixels of a place lie in these rectangles (m, 4)."""
    low, high = np.maximum(taken[:, :2], place[:2]), np.minimum(taken[:, 2:], place[2:])
    return float(np.clip(high - low, 0, None).prod(axis=1).sum())


def _legend(result: Detections) -> list[tuple[str, Colour | None]]:
    """Each class with its count, the most frequent first."""
    counts = Counter(zip(result.labels, map(int, result.indices), strict=True)).most_common()
    if not counts:
        return [("nothing found", None)]
    shown = counts if len(counts) <= LEGEND + 1 else counts[:LEGEND]
    entries: list[tuple[str, Colour | None]] = [
        (f"{label} × {count}", colour(index)) for (label, index), count in shown
    ]
    return entries + ([(f"and {len(counts) - len(shown)} more", None)] if len(counts) > len(shown) else [])
