"""Every picture and every mask of a data set read once, before hours are spent on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from metamobile.data.box_sample import is_turned, picture_size
from metamobile.data.inspect import BAD_FILES, WAITING, Inspection, Problem, examine
from metamobile.data.layout import TRAIN, name_some
from metamobile.data.mask_classes import (
    CLASSES,
    IGNORED,
    LOSSY,
    UNKNOWN,
    Coding,
    Legend,
    check_count,
    count_values,
    name_colours,
    read_values,
    settle,
)
from metamobile.data.masks import ADVICE, MaskLayout, describe_unknown, find_masks
from metamobile.errors import DataError, PictureError

BAD_PAIRS = (
    "picture without mask",
    "mask without picture",
    "size differs",
    "lossy mask",
    "unusable mask",
    "unknown number",
    "unknown colour",
    "wholly ignored",
)
BAD_SETS = ("colours without names", "number of classes")
MOST_VALUES = 1000  # of one mask that are kept: more are those of a photo, and would fill memory
MOST_SHARES = 12  # classes whose shares one line tells


@dataclass
class MaskInspection(Inspection):
    """As `Inspection`, with kinds of BAD_FILES and BAD_PAIRS for files, of BAD_SETS for the whole.

    `classes` counts pixels of masks that can be used: {class: {split: pixels}}; `ignored` are those without a
    class. `splits` counts pictures. `unseen` are classes without a pixel to train on, `palettes` the masks
    with a palette, whose colours mean nothing: both are told and stop nothing.
    """

    splits: dict[str, int] = field(default_factory=dict)
    ignored: int = 0
    palettes: int = 0
    unseen: list[str] = field(default_factory=list)

    def files_to_drop(self) -> set[Path]:
        """The bad pictures, and the bad masks, with which `open_masks` leaves out their pictures."""
        return {problem.path for problem in self.problems if problem.kind not in BAD_SETS}

    def summary(self) -> str:
        """One line: pictures, classes, their shares of the pixels, how many problems of each kind."""
        parts = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        text = f"{self.root}: {self.pictures:,} pictures" + (f" ({parts})" if len(self.splits) > 1 else "")
        text += f" of {len(self.classes)} classes, by {self.lists}" + self._shares()
        text += f"; masks with a palette, read as numbers: {self.palettes:,}" if self.palettes else ""
        if self.unseen:
            text += f"; classes without a pixel to train on: {len(self.unseen)} ({name_some(self.unseen)})"
        kinds = Counter(problem.kind for problem in self.problems)
        named = [kind for kind in (*BAD_FILES, *BAD_PAIRS, *BAD_SETS) if kinds[kind]]
        found = ", ".join(f"{kinds[kind]:,} {kind}" for kind in named)
        return f"{text}; problems: {found}" if found else f"{text}; no problem found"

    def _shares(self) -> str:
        pixels = Counter({name: sum(counts.values()) for name, counts in self.classes.items()})
        total = pixels.total()
        if not total:
            return ""
        shares = [f"{name} {_percent(count / total)}" for name, count in pixels.most_common()]
        if len(shares) > MOST_SHARES:
            shares = [f"from {shares[0]} to {shares[-1]}"]
        text = f"; of the labelled pixels {', '.join(shares)}"
        ignored = self.ignored / (total + self.ignored)
        return text + (f"; ignored: {_percent(ignored)}" if ignored else "")


def _percent(share: float) -> str:
    """Two digits at least, and never "0.0%" for what is there."""
    return f"{share:.1%}" if share >= 0.001 or not share else f"{share * 100:.1g}%"


class _Look(NamedTuple):
    """What one reading of a picture and its mask tells; `pixels` by number or packed colour."""

    digest: bytes  # of the picture
    problems: list[Problem]
    pixels: dict[int, int]
    coloured: bool
    palette: bool


class _Pair(NamedTuple):
    picture: Path
    mask: Path
    split: str


def inspect_masks(
    data: str | Path,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    classes: Sequence[str] | None = None,
    ignore: int | None = None,
) -> MaskInspection:
    """Read every picture and mask of every split, with `workers` threads (0: one for each core).

    `classes` and `ignore` are those of `open_masks`. Of pictures with equal bytes the first is kept,
    validation before training, and each later one is a problem. `progress` gets (done, total). Errors: as
    `find_masks`; DataError for what is wrong in classes.txt.
    """
    layout = find_masks(data)
    legend = layout.legend(classes)
    found = MaskInspection(layout.root)
    pairs = _pair(layout, found)
    looks: list[_Look] = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:  # Pillow decodes without the GIL
        parts = (pairs[i : i + WAITING] for i in range(0, len(pairs), WAITING))
        for look in chain.from_iterable(pool.map(_look, part) for part in parts):
            looks.append(look)
            if progress is not None:
                progress(len(looks), len(pairs))
    _find_copies(pairs, looks, found)
    found.problems += [problem for look in looks for problem in look.problems]
    found.palettes = sum(look.palette for look in looks)

    if refused := _unnamed_colours(looks, legend, layout.root):
        found.lists = "nothing yet"
        found.problems.append(refused)
        return found
    legend = settle(legend, (set() if look.coloured else set(look.pixels) for look in looks), ignore)
    found.lists = legend.source
    try:
        check_count(legend, layout.root)
    except DataError as error:
        text = str(error).removeprefix(f"{layout.root}: ")
        found.problems.append(Problem(layout.root, "number of classes", text))
        return found
    _count_pixels(pairs, looks, legend, found)
    return found


def _pair(layout: MaskLayout, found: MaskInspection) -> list[_Pair]:
    """All pairs, those to train on last; what is left over becomes problems."""
    pairs: list[_Pair] = []
    for split, folders in sorted(layout.splits.items(), key=lambda item: item[0] == TRAIN):
        own = folders.pair()
        pairs += [_Pair(picture, mask, split) for picture, mask in own.matched]
        for path in own.bare:
            detail = f"no mask of the name {path.stem} in {folders.masks}"
            found.problems.append(Problem(path, "picture without mask", detail))
        for path in own.strays:
            detail = f"no picture in {folders.pictures} has its name, or only one that has another mask"
            found.problems.append(Problem(path, "mask without picture", detail))
        found.splits[split] = len(own.matched) + len(own.bare)
    found.splits = {split: found.splits[split] for split in layout.splits}
    found.pictures = sum(found.splits.values())
    return pairs


def _look(pair: _Pair) -> _Look:
    digest, problem = examine(pair.picture)
    problems = [problem] if problem else []
    try:
        values, coloured = read_values(pair.mask)
    except PictureError as error:
        _, why = examine(pair.mask)
        problems.append(why or Problem(pair.mask, "unreadable", str(error.__cause__)))
        return _Look(digest, problems, {}, False, False)
    except DataError as error:
        detail = str(error).removeprefix(f"{pair.mask}: ")
        kind = "lossy mask" if detail == LOSSY else "unusable mask"
        return _Look(digest, [*problems, Problem(pair.mask, kind, detail)], {}, False, False)
    if problem is None and (wrong := _compare_sizes(pair, (values.shape[1], values.shape[0]))):
        problems.append(wrong)
    with Image.open(pair.mask) as mask:
        palette = mask.mode in ("P", "PA")
    pixels = dict(Counter(count_values(values, coloured)).most_common(MOST_VALUES))
    return _Look(digest, problems, pixels, coloured, palette)


def _compare_sizes(pair: _Pair, size: tuple[int, int]) -> Problem | None:
    expected = picture_size(pair.picture)
    if size == expected:
        return None
    detail = f"{size[0]}x{size[1]}, its picture is {expected[0]}x{expected[1]}"
    if size == expected[::-1] and is_turned(pair.picture):
        detail += " by its EXIF rotation; turn the mask, or take the rotation out of the picture"
    return Problem(pair.mask, "size differs", detail)


def _find_copies(pairs: Sequence[_Pair], looks: Sequence[_Look], found: MaskInspection) -> None:
    first: dict[bytes, _Pair] = {}
    for pair, look in zip(pairs, looks, strict=True):
        if look.problems:
            continue
        if (earlier := first.setdefault(look.digest, pair)) is not pair:
            detail = f"duplicate of {earlier.picture}"
            if earlier.split != pair.split:
                detail += f"; in {pair.split} and {earlier.split}, it flatters the figures"
            found.problems.append(Problem(pair.picture, "duplicate", detail))


def _unnamed_colours(looks: Sequence[_Look], legend: Legend | None, root: Path) -> Problem | None:
    """One problem for masks that all are of colours, where no colour has a name."""
    usable = [look for look in looks if look.pixels]
    if (legend and legend.colours) or not usable or not all(look.coloured for look in usable):
        return None
    colours: Counter[int] = Counter()
    for look in usable:
        colours.update(look.pixels)
    detail = f"found {name_colours(colours)}; write {root / CLASSES} with a line 'name r g b' for each"
    return Problem(root, "colours without names", detail)


def _count_pixels(
    pairs: Sequence[_Pair], looks: Sequence[_Look], legend: Legend, found: MaskInspection
) -> None:
    """Pixels of each class and split; unknown values and masks that are wholly ignored become problems."""
    names = legend.classes
    coding = legend.coding(names)
    totals: dict[str, np.ndarray] = {split: np.zeros(IGNORED + 1, np.int64) for split in found.splits}
    for pair, look in zip(pairs, looks, strict=True):
        if not look.pixels:
            continue
        unknown, counts = _sort_out(look, coding)
        if unknown:
            kind = "unknown colour" if look.coloured else "unknown number"
            detail = f"{describe_unknown(unknown, look.coloured)} no class; {ADVICE[look.coloured]}"
            found.problems.append(Problem(pair.mask, kind, detail))
        elif not counts[:UNKNOWN].any():
            detail = "no pixel has a class, so nothing is learned from it"
            found.problems.append(Problem(pair.mask, "wholly ignored", detail))
        elif not look.problems:
            totals[pair.split] += counts
    found.ignored = sum(int(counts[IGNORED]) for counts in totals.values())
    for index, name in enumerate(names):
        found.classes[name] = {split: int(counts[index]) for split, counts in totals.items()}
    train = next((counts for split, counts in totals.items() if split != "val"), None)
    if train is not None:
        found.unseen = [name for index, name in enumerate(names) if not train[index]]


def _sort_out(look: _Look, coding: Coding) -> tuple[dict[int, int], np.ndarray]:
    """({unknown value: pixels}, pixels of each class index as an array of 256)."""
    values = np.fromiter(look.pixels, np.int64, len(look.pixels))
    pixels = np.fromiter(look.pixels.values(), np.int64, len(look.pixels))
    classes = coding.decode(values, look.coloured)
    counts = np.zeros(IGNORED + 1, np.int64)
    np.add.at(counts, classes, pixels)
    unknown = classes == UNKNOWN
    return dict(zip(values[unknown].tolist(), pixels[unknown].tolist(), strict=True)), counts
