"""Pictures drawn by code, with class, boxes and masks known: data for the demonstration and for tests.

One shape of six in any colour, place, size and turn, lighter or darker than a textured ground, among stray
strokes: no pixel tells anything by itself, so a linear classifier fails where a small network does not.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from metamobile.files import cache_folder

SHAPE_CLASSES = ["circle", "cross", "ring", "square", "star", "triangle"]
OVERSAMPLING = 4  # drawn that many times larger, then averaged: smooth edges
CONTRAST = 0.5  # least distance in RGB (0..1) between a shape's colour and the ground's


@dataclass
class Scene:
    """A picture and its truth: `label` is the first object's; N objects, (H, W) pixels.

    `boxes` (N, 4) are x0, y0, x1, y1 in pixels around the visible part, `labels` (N,) index `SHAPE_CLASSES`,
    `masks` (N, H, W) are true where the object is seen: a later object hides an earlier one.
    """

    image: Image.Image
    label: int
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def draw_scene(rng: np.random.Generator, size: int = 64, objects: int = 1, label: int | None = None) -> Scene:
    """A scene of `objects` shapes on `size` x `size` pixels; `label` sets the first one's class."""
    ground_colour = rng.random(3)
    pixels = _ground(rng, size, ground_colour)
    for _ in range(rng.integers(1, 4)):
        pixels = _blend(pixels, _stroke(rng, size), rng.random(3))
    labels: list[int] = []
    masks: list[np.ndarray] = []
    circles: list[tuple[float, float, float]] = []
    for index in range(objects):
        chosen = label if index == 0 and label is not None else int(rng.integers(len(SHAPE_CLASSES)))
        x, y, radius = _free_place(rng, size, objects, circles)
        circles.append((x, y, radius))
        cover = _cover(_outline(rng, SHAPE_CLASSES[chosen], x, y, radius), size)
        pixels = _blend(pixels, cover, _other_colour(rng, ground_colour))
        seen = cover > 0.5
        masks = [mask & ~seen for mask in masks] + [seen]
        labels.append(chosen)
    pixels = pixels + rng.normal(0, 0.03, pixels.shape)
    image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    boxes = np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    return Scene(image, labels[0], boxes, np.array(labels), np.array(masks))


def _ground(rng: np.random.Generator, size: int, colour: np.ndarray) -> np.ndarray:
    """(size, size, 3) around `colour`: waves in a random direction and soft blobs."""
    y, x = np.mgrid[:size, :size] / size
    angle, frequency, phase = rng.random(3) * (2 * math.pi, 6.0, 2 * math.pi)
    waves = np.sin(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    coarse = Image.fromarray(rng.random((5, 5)).astype(np.float32))
    blobs = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) - 0.5
    texture = 0.07 * waves[..., None] * rng.random(3) + 0.3 * blobs[..., None] * rng.random(3)
    return colour + texture


def _stroke(rng: np.random.Generator, size: int) -> np.ndarray:
    """Cover of a thin line of two to four points, or of an arc."""
    canvas = Image.new("L", (size * OVERSAMPLING,) * 2)
    pen, width = ImageDraw.Draw(canvas), int(rng.integers(1, 3) * OVERSAMPLING * size / 64)
    points = rng.random((int(rng.integers(2, 5)), 2)) * canvas.width
    pen.line([tuple(point) for point in points], fill=255, width=max(1, width))
    return _shrink(canvas)


def _free_place(
    rng: np.random.Generator, size: int, objects: int, circles: list[tuple[float, float, float]]
) -> tuple[float, float, float]:
    """Centre and radius of the next shape, inside the picture and mostly clear of the earlier ones."""
    low, high = (0.2, 0.38) if objects == 1 else (0.09, 0.2)
    radius = rng.uniform(low, high) * size
    for _ in range(100):
        x, y = rng.uniform(radius, size - radius, 2)
        if all(math.hypot(x - cx, y - cy) > 0.8 * (radius + r) for cx, cy, r in circles):
            break
        radius = max(radius * 0.95, low * size)
    return x, y, radius


def _outline(rng: np.random.Generator, name: str, x: float, y: float, radius: float) -> list[np.ndarray]:
    """Polygons of (P, 2) points, the second cut out of the first; turned at random, a little squeezed."""
    if name in ("circle", "ring"):
        polygons = [_regular(48, 1.0)] + ([_regular(48, rng.uniform(0.45, 0.65))] if name == "ring" else [])
    elif name == "square":
        polygons = [_regular(4, 1.0)]
    elif name == "triangle":
        polygons = [_regular(3, 1.0)]
    elif name == "star":
        star = _regular(10, 1.0)
        star[1::2] *= 0.42
        polygons = [star]
    else:
        arm = rng.uniform(0.24, 0.34)  # half the width of the cross's arms
        corner = np.array([[1, -arm], [1, arm], [arm, arm]])
        quarter = np.array([[0, -1], [1, 0]])
        polygons = [np.concatenate([corner @ np.linalg.matrix_power(quarter.T, k) for k in range(4)])]
    angle, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [polygon * (1, squeeze) @ turn * radius + (x, y) for polygon in polygons]


def _regular(corners: int, radius: float) -> np.ndarray:
    angles = np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius


def _cover(polygons: list[np.ndarray], size: int) -> np.ndarray:
    """(size, size) share of each pixel that lies in the first polygon and not in the others."""
    canvas = Image.new("L", (size * OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for polygon, fill in zip(polygons, (255, 0), strict=False):
        pen.polygon([tuple(point) for point in polygon * OVERSAMPLING], fill=fill)
    return _shrink(canvas)


def _shrink(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.reduce(OVERSAMPLING), np.float64) / 255


def _blend(pixels: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return pixels + cover[..., None] * (colour - pixels)


def _other_colour(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    while True:  # at least half of all colours are far enough from any ground
        colour = rng.random(3)
        if np.linalg.norm(colour - ground) > CONTRAST:
            return colour


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 with x1 and y1 just outside; zeros for a mask that is hidden wholly."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def write_folder(out: str | Path, train: int = 2000, val: int = 500, size: int = 64, seed: int = 0) -> Path:
    """`train` and `val` pictures in all, classes in turn: out/train/<class>/*.png and out/val/<class>/*.png.

    Picture i of a split depends on (seed, split, i) alone. At least one of each class is drawn.
    """
    out = Path(out)
    for split, count in enumerate((train, val)):
        for index in range(max(count, len(SHAPE_CLASSES))):
            label = index % len(SHAPE_CLASSES)
            scene = draw_scene(np.random.default_rng([seed, split, index]), size, label=label)
            path = out / ("train", "val")[split] / SHAPE_CLASSES[label] / f"{index:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene.image.save(path)
    return out


def folder() -> Path:
    """The data set "shapes", drawn at first use (seconds) into $METAMOBILE_CACHE or ~/.cache/metamobile."""
    return drawn_once("shapes-v1", write_folder)


def drawn_once(name: str, write: Callable[[Path], object]) -> Path:
    """The folder `name` of the cache; where it is missing, `write` fills it aside, then it is renamed."""
    cache = cache_folder()
    final = cache / name
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    try:
        write(aside)
        aside.chmod(0o755)  # mkdtemp's own is for one user
        aside.rename(final)
    except OSError:
        if not final.is_dir():  # another process was first: its folder is the same
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final
