"""Which class a mask's numbers or colours mean: by classes.txt, by names that are given, or as found.

Shapes: H and W, a mask's height and width.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metamobile.errors import DataError, PictureError

IGNORED = 255  # the class index of pixels that count for nothing; as a number in a file it means the same
UNKNOWN = 254  # while decoding: a value that no class has
NUMBERS, COLOURS = 1 << 16, 1 << 24  # values that a mask of numbers, of colours can have
CLASSES = "classes.txt"
LOSSY = "a JPEG, whose losses mix the classes at every edge; save masks as PNG"
VOID = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored"})
TWO_VALUED = frozenset({0, 255})
MOST_LOOKED_AT, MOST_NAMED = 16, 12  # masks to gather colours from, and colours in one message
_COLOURED_LINE = re.compile(r"(.*\S)[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})")
_NUMBERED = re.compile(r"class (\d+)")  # as `found_legend` calls what nobody has named


@dataclass(frozen=True)
class Coding:
    """Pairs of (value in the mask, class index or IGNORED); colours are packed as 0xRRGGBB."""

    numbers: tuple[tuple[int, int], ...]
    colours: tuple[tuple[int, int], ...] = ()

    def decode(self, values: NDArray[np.integer], coloured: bool) -> NDArray[np.uint8]:
        """Numbers or packed colours of any shape -> class indices, IGNORED, or UNKNOWN."""
        return _table(self.colours, COLOURS)[values] if coloured else _table(self.numbers, NUMBERS)[values]


PLAIN = Coding(tuple((number, number) for number in (*range(UNKNOWN), IGNORED)))


@lru_cache(maxsize=4)  # of colours, 16 MB each; not kept with the samples, which workers get copies of
def _table(pairs: tuple[tuple[int, int], ...], size: int) -> NDArray[np.uint8]:
    table = np.full(size, UNKNOWN, np.uint8)
    for value, index in pairs:
        table[value] = index
    return table


@dataclass(frozen=True)
class Legend:
    """The class of each number in a mask, None for an ignored one; packed colours that stand for numbers.

    `source` tells in words where the names come from.
    """

    names: dict[int, str | None]
    source: str
    colours: dict[int, int] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """In the order of their numbers."""
        return [name for _, name in sorted(self.names.items()) if name is not None]

    def without(self, ignore: int | None) -> Legend:
        """With the number `ignore` ignored, whatever it was called, and 255 if it is no class."""
        names = self.names if ignore is None else {**self.names, ignore: None}
        return replace(self, names={IGNORED: None, **names})

    def coding(self, classes: Sequence[str]) -> Coding:
        """For class indices that are places in `classes`, which have all of these names."""
        index = {name: place for place, name in enumerate(classes)}
        place = {number: IGNORED if name is None else index[name] for number, name in self.names.items()}
        colours = tuple((colour, place[number]) for colour, number in self.colours.items())
        return Coding(tuple(place.items()), colours)


def read_classes(path: Path) -> Legend:
    """The classes of a file with a line "name", or "name r g b", for each number from 0.

    Errors: DataError for a line that is empty or twice there, and for colours that only some lines have.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as such"
        ) from None
    names: dict[int, str | None] = {}
    colours: dict[int, int] = {}
    for number, line in enumerate(map(str.strip, lines)):
        where = f"{path}:{number + 1}"
        if not line:
            raise DataError(f"{where}: an empty line; expected the name of the masks' number {number}")
        if match := _COLOURED_LINE.fullmatch(line):
            line, colour = match[1].rstrip(","), _packed(match.groups()[1:], where)
            if colour in colours:
                raise DataError(f"{where}: the colour of line {colours[colour] + 1} again; expected another")
            colours[colour] = number
        if line in names.values():
            raise DataError(f"{where}: {line!r} again; expected a name for each number")
        names[number] = None if line.lower() in VOID else line
    if colours and len(colours) != len(names):
        bare = min(set(names) - set(colours.values()))
        raise DataError(f"{path}:{bare + 1}: no colour, others have one; expected 'name r g b'")
    return Legend(names, CLASSES, colours)


def _packed(parts: Sequence[str], where: str) -> int:
    red, green, blue = map(int, parts)
    if max(red, green, blue) > 255:
        raise DataError(f"{where}: colour {' '.join(parts)}; expected red, green and blue from 0 to 255")
    return red << 16 | green << 8 | blue


def given_legend(classes: Sequence[str]) -> Legend:
    """Class i is number i. Errors: ValueError for names that are no classes', or twice there."""
    for number, name in enumerate(classes):
        if name.strip().lower() in VOID:
            raise ValueError(
                f"classes: {name!r} is no class; leave it out and ignore its number, {number}, or write "
                f"the names into {CLASSES}"
            )
    if len(set(classes)) < len(classes):
        twice = next(name for name, count in Counter(classes).items() if count > 1)
        raise ValueError(f"classes: {twice!r} is named twice; expected a name for each number")
    return Legend(dict(enumerate(classes)), "the names given")


def model_legend(classes: Sequence[str], ignore: int | None) -> Legend:
    """For masks that nobody names, measured with a model of `classes`: the numbers it was trained with."""
    numbered = [_NUMBERED.fullmatch(name) for name in classes]
    if all(numbered):
        return Legend({int(m[1]): m[0] for m in numbered if m}, "their numbers")
    numbers = [number for number in range(len(classes) + 1) if number != ignore]
    return Legend(dict(zip(numbers, classes, strict=False)), "the model, by number")


def settle(legend: Legend | None, seen: Iterable[set[int]], ignore: int | None) -> Legend:
    """The legend for masks in which the numbers `seen` occur, a set for each mask.

    Without one, each number found is a class, "class 7". Where 0 and 255 alone occur, and two classes are
    named or none, 255 is the second. Only as much of `seen` is read as this takes.
    """
    named = legend.without(ignore) if legend else None
    pair = [number for number, name in named.names.items() if name is not None] if named else []
    found: set[int] = set()
    if named is None or sorted(pair) == [0, 1]:
        for numbers in seen:
            found |= numbers
            if named is not None and not found <= TWO_VALUED:
                break
    if found == TWO_VALUED and ignore not in TWO_VALUED:
        named = named or Legend({0: "class 0", 1: "class 1"}, "their numbers")
        second = named.names[1]
        names = {number: name for number, name in named.names.items() if number != 1} | {IGNORED: second}
        colours = {c: IGNORED if number == 1 else number for c, number in named.colours.items()}
        return Legend(names, f"{named.source}, {IGNORED} meaning {second!r}", colours)
    if named is not None:
        return named
    return Legend({n: f"class {n}" for n in sorted(found - {IGNORED})}, "their numbers").without(ignore)


def check_count(legend: Legend, where: Path) -> None:
    """Errors: DataError for fewer than two classes, or more than a byte can number."""
    count = len(legend.classes)
    if not 2 <= count <= UNKNOWN:
        named = f" ({legend.classes[0]})" if count == 1 else ""
        raise DataError(
            f"{where}: {count} {'class' if count == 1 else 'classes'}{named} by {legend.source}; expected 2 "
            f"to {UNKNOWN}, the background included"
        )


def read_values(path: Path) -> tuple[NDArray[np.integer], bool]:
    """A mask's numbers, or its packed colours and True; (H, W), as they lie in the file.

    Of a palette picture these are the numbers, not the colours. Errors: PictureError for a file that cannot
    be read; DataError for one whose values are not exact.
    """
    try:
        with Image.open(path) as file:
            file.load()
            mask: Image.Image = file
            kind = file.format
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        RuntimeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(
            f"{path}: the mask cannot be read ({reason}); replace it or leave it out"
        ) from error
    if kind in ("JPEG", "MPO"):
        raise DataError(f"{path}: {LOSSY}")
    if mask.mode in ("LA", "PA"):
        mask = mask.getchannel(0)
    if mask.mode in ("RGB", "RGBA", "RGBX"):
        pixels = np.asarray(mask)
        packed = pixels[..., 0].astype(np.uint32)
        for channel in (1, 2):
            packed <<= 8
            packed |= pixels[..., channel]
        return packed, True
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise DataError(
            f"{path}: a mask of mode {mask.mode}; expected numbers of 8 or 16 bits, a palette, or RGB"
        )
    values = np.asarray(mask)
    if values.dtype == bool:
        return values.astype(np.uint8), False
    if values.dtype.itemsize > 2 and not 0 <= values.min() <= values.max() < NUMBERS:
        raise DataError(f"{path}: numbers from {values.min()} to {values.max()}; expected 0 to {NUMBERS - 1}")
    return values, False


def count_values(values: NDArray[np.integer], coloured: bool) -> dict[int, int]:
    """{number or packed colour: pixels}."""
    if coloured:
        found, counts = np.unique(values, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))
    bins = np.bincount(values.ravel())
    return {int(number): int(bins[number]) for number in np.flatnonzero(bins)}


def refuse_colours(masks: Sequence[Path], root: Path) -> None:
    """Errors: DataError that lists the colours of the masks, of which nobody tells the classes."""
    colours: Counter[int] = Counter()
    for mask in masks[:MOST_LOOKED_AT]:
        values, coloured = read_values(mask)
        if coloured:
            colours.update(count_values(values, coloured))
    raise DataError(
        f"{masks[0]}: a mask of colours, found {name_colours(colours)}; write {root / CLASSES} with a line "
        "'name r g b' for each, such as 'road 128 64 128'"
    )


def name_colours(colours: Counter[int]) -> str:
    """Such as "0 0 0, 128 64 128 and 3 more", those of most pixels first."""
    named = ", ".join(name_colour(colour) for colour, _ in colours.most_common(MOST_NAMED))
    return named + (f" and {len(colours) - MOST_NAMED:,} more" if len(colours) > MOST_NAMED else "")


def name_colour(packed: int) -> str:
    return f"{packed >> 16} {packed >> 8 & 255} {packed & 255}"
