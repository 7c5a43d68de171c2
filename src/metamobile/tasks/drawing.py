"""What the drawings of all tasks share: colours of classes, text, legends. Without torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
SHADE, EDGE, INK = (17, 20, 26), (110, 118, 130), (255, 255, 255)  # of a legend: ground, swatch's edge, text
PALETTE: list[Colour] = [
    (46, 134, 255),  # blue
    (255, 133, 27),  # orange
    (46, 184, 80),  # green
    (226, 41, 58),  # red
    (158, 84, 226),  # purple
    (255, 220, 40),  # yellow
    (30, 212, 236),  # cyan
    (242, 74, 196),  # magenta
    (170, 232, 40),  # lime
    (158, 98, 50),  # brown
    (16, 150, 140),  # teal
    (255, 166, 190),  # pink
    (136, 134, 26),  # olive
    (190, 172, 255),  # lavender
    (176, 26, 112),  # raspberry
    (150, 246, 196),  # mint
    (255, 200, 140),  # apricot
    (88, 84, 190),  # indigo
    (164, 170, 178),  # grey
    (246, 242, 200),  # cream
]


def colour(index: int) -> Colour:
    """The colour of a class (R, G, B): the same in every picture and every run.

    After twenty picked by eye each is the one farthest from all before it, some 3,400 in all; then they
    repeat. None is dark, so that all can be told from a legend's ground.
    """
    if index < len(PALETTE):
        return PALETTE[index]
    colours = _generated(1 << max(7, index.bit_length()))
    return colours[index % len(colours)]


@functools.cache
def _generated(most: int) -> list[Colour]:
    """The palette, continued to `most` colours, or as many as the grid of candidates has."""
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    luma = grid @ (0.299, 0.587, 0.114)
    candidates = grid[(luma > 70) & (luma < 235)]
    colours = np.array(PALETTE)
    distance = np.min([_distance(candidates, one) for one in colours], axis=0)
    chosen = list(PALETTE)
    while len(chosen) < most and distance.max() > 0:
        best = candidates[distance.argmax()]
        chosen.append((int(best[0]), int(best[1]), int(best[2])))
        distance = np.minimum(distance, _distance(candidates, best))
    return chosen


def _distance(colours: np.ndarray, one: np.ndarray) -> np.ndarray:
    """How different colours (N, 3) look from one (3,), squared: RGB weighted by the mean of the reds."""
    red = (colours[:, 0] + one[0]) / 2
    parts = (colours - one).astype(np.float64) ** 2
    return (2 + red / 256) * parts[:, 0] + 4 * parts[:, 1] + (2 + (255 - red) / 256) * parts[:, 2]


def ink_on(ground: Colour) -> Colour:
    """Black or white, whichever can be read better on this colour.

    Source: the contrast ratio of WCAG 2.1, which is equal for both at a relative luminance of 0.179.
    """
    shares = np.array(ground) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return (0, 0, 0) if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else (255, 255, 255)


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib: PIL's own font knows Latin letters only."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


def text_size(picture: Image.Image) -> int:
    """Pixels of text beside this picture: a share of its width up to a large picture's height, so that a
    panorama's text does not bury it.
    """
    return max(14, round(min(max(picture.width, 256), 1.5 * max(picture.height, 256)) / 32))


def fit(label: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The label, cut with an ellipsis to `room` pixels."""
    if font.getlength(label) <= room:
        return label
    while label and font.getlength(label + "…") > room:
        label = label[:-1]
    return label.rstrip() + "…"


def enlarged(picture: Image.Image, least: int = 256) -> Image.Image:
    """In RGB; a longer side below `least` grows by the largest whole step that stays within `least`."""
    scale = max(1, least // max(picture.size))
    size = (picture.width * scale, picture.height * scale)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour | None]]) -> Image.Image:
    """The picture above a strip of (text, colour) entries, in as many rows as they need; None has no swatch.

    The sheet is at least 256 pixels wide, with the picture in the middle. Without entries there is no strip.
    """
    if not entries:
        return picture
    width, text = max(picture.width, 256), text_size(picture)
    letters = font(text)
    gap, side, row = round(text * 0.5), round(text * 0.85), round(text * 1.5)

    placed = []  # (x, row number, text, colour)
    x, number = gap, 0
    for label, shade in entries:
        indent = 0 if shade is None else side + gap
        label = fit(label, letters, width - 2 * gap - indent)
        reach = indent + round(letters.getlength(label))
        if x > gap and x + reach > width - gap:
            x, number = gap, number + 1
        placed.append((x, number, label, shade))
        x += reach + 2 * gap

    sheet = Image.new("RGB", (width, picture.height + 2 * gap + (number + 1) * row), SHADE)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for x, number, label, shade in placed:
        middle = picture.height + gap + number * row + row / 2
        if shade is not None:
            box = (x, round(middle - side / 2), x + side, round(middle + side / 2))
            pen.rounded_rectangle(box, round(side * 0.2), fill=shade, outline=EDGE)
            x += side + gap
        pen.text((x, middle), label, INK, letters, anchor="lm")
    return sheet
