"""Lists: files beside the pictures that say which belong to a split, and of which class each one is.

A line is `path class` or `path`. The path lies below the split's folder. It may lack the suffix, and a bare
name the class folder. The class is a class folder's name, or its place among the sorted names, from 0; where
it is left out, the class folder that the picture lies in. ImageNet's own forms are read too:

- `LOC_val_solution.csv`: `ImageId,PredictionString`, which starts with the class
- a file of synsets alone: those of the pictures, in the order of their names
- `train_cls.txt` and the lists in `ImageSets/CLS-LOC`: what follows the path is a running number, no class
- the annotations in `Annotations/CLS-LOC/val`: an XML file a picture
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from metamobile.data.pictures import PICTURE_SUFFIXES, is_picture, names_in
from metamobile.errors import DataError, nearest

SYNSET = re.compile(r"n\d{8}")  # a WordNet id, ImageNet's name for a class


def has_synsets_alone(path: Path) -> bool:
    return path.name.endswith("synset_labels.txt")


def has_running_numbers(path: Path) -> bool:
    return path.name == "train_cls.txt" or path.parts[-3:-1] == ("ImageSets", "CLS-LOC")


class Row(NamedTuple):
    """One picture of a list: its line, its path below the folder, and its class as written, or ""."""

    line: int
    path: str
    label: str


@dataclass
class PictureList:
    """The pictures in `folder` that the list at `path` names; `total` is how many the folder holds."""

    path: Path
    folder: Path
    rows: list[Row]
    total: int

    def where(self, row: Row) -> str:
        if self.path.is_dir():
            return f"{self.path / Path(row.path).stem}.xml"
        return f"{self.path}, line {row.line}"

    def classes(self) -> list[str]:
        """The sorted names that the list gives its pictures, for a folder without class folders.

        Errors: DataError for a picture without a class, for a number, which counts nothing there, and for one
        class alone.
        """
        for row in self.rows:
            if not row.label:
                raise DataError(f"{self.where(row)}: {_no_class(row)}")
            if re.fullmatch(r"-?\d+", row.label):
                raise DataError(
                    f"{self.where(row)}: class {row.label} is a number, but {self.folder} has no class "
                    "folders to count; expected names of classes, or class folders"
                )
        names = sorted({row.label for row in self.rows})
        if len(names) < 2:
            raise DataError(f"{self.path}: only the class {names[0]!r}; expected at least two")
        return names

    def targets(self, classes: Sequence[str], whose: str) -> list[int]:
        """The index in `classes` of each row; `whose` they are completes "none of the 10 classes ...".

        Errors: DataError for a class that is unknown, out of range, missing, or not that of the class folder
        the picture lies in.
        """
        place = {name: i for i, name in enumerate(classes)}
        numbers_are_names = any(name.isdecimal() for name in classes)
        known: dict[str, int] = {}
        targets = []
        for row in self.rows:
            own = row.path.split("/", 1)[0] if "/" in row.path else ""
            label = row.label or own
            if not label:
                raise DataError(f"{self.where(row)}: {_no_class(row)}")
            if label not in known:
                try:
                    known[label] = _index(label, place, numbers_are_names, whose)
                except ValueError as error:
                    raise DataError(f"{self.where(row)}: {error}") from error
            if own in place and place[own] != known[label]:
                number = "" if label in place else f", class {label}"
                raise DataError(
                    f"{self.where(row)}: {row.path} lies in the class folder {own!r}, but is listed as "
                    f"{classes[known[label]]!r}{number}; classes count from 0 in the order of their names"
                )
            targets.append(known[label])
        return targets


def _index(label: str, place: dict[str, int], numbers_are_names: bool, whose: str) -> int:
    """Errors: ValueError, to be completed with the line, for a class that is unknown or out of range."""
    if label in place:
        return place[label]
    if re.fullmatch(r"-?\d+", label) and not numbers_are_names:
        if 0 <= int(label) < len(place):
            return int(label)
        raise ValueError(
            f"class {label} is out of range; the {len(place):,} classes {whose} count from 0 to "
            f"{len(place) - 1:,}, in the order of their names"
        )
    raise ValueError(f"class {label!r} is none of the {len(place):,} classes {whose}{nearest(label, place)}")


def _no_class(row: Row) -> str:
    return f"{row.path} has no class; expected 'path class', as it lies in no class folder"


def read_list(path: Path, folder: Path) -> PictureList:
    """What the list at `path` (a file, or a folder of annotations) names in `folder`.

    Errors: DataError for a list that is empty or not text, a line that names no picture or one that was named
    before, or that is malformed.
    """
    names = [name for name in names_in(folder) if is_picture(name)]
    if path.is_dir():
        return PictureList(path, folder, [_annotated(path, name) for name in names], len(names))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8; expected a line for each picture") from error
    numbered = [(i, line.strip()) for i, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix.lower() == ".csv" and numbered and numbered[0][1].startswith("ImageId"):
        numbered = numbered[1:]
    if not numbered:
        raise DataError(f"{path}: an empty list; {_expected(names)}")
    if all(SYNSET.fullmatch(line) for _, line in numbered):
        rows = _in_order(path, folder, numbered, names)
    else:
        split = _columns if path.suffix.lower() == ".csv" else _cuts
        rows = _find_rows(path, folder, numbered, names, split)
    if has_running_numbers(path):
        rows = [row._replace(label="") for row in rows]
    first: dict[str, int] = {}
    for row in rows:
        if (line := first.setdefault(row.path, row.line)) != row.line:
            raise DataError(f"{path}, line {row.line}: {row.path} again, after line {line}; name it once")
    return PictureList(path, folder, rows, len(names))


def _in_order(path: Path, folder: Path, lines: list[tuple[int, str]], names: list[str]) -> list[Row]:
    """A synset a line."""
    if len(lines) != len(names):
        raise DataError(
            f"{path}: {len(lines):,} classes for the {len(names):,} pictures in {folder}; expected one for "
            "each, in the order of the pictures' names"
        )
    return [Row(line, name, label) for (line, label), name in zip(lines, names, strict=True)]


def _cuts(line: str) -> Iterator[tuple[str, str]]:
    """All ways to read a line as a path and a class; both may hold spaces."""
    yield line, ""
    for gap in reversed(list(re.finditer(r"\s+", line))):
        yield line[: gap.start()], line[gap.end() :]


def _columns(line: str) -> Iterator[tuple[str, str]]:
    """`ImageId,PredictionString`: the picture, and boxes, each after its class, which is the same in all."""
    name, _, boxes = line.partition(",")
    if boxes.strip():
        yield name, boxes.split()[0]


def _find_rows(
    path: Path,
    folder: Path,
    lines: list[tuple[int, str]],
    names: list[str],
    split: Callable[[str], Iterator[tuple[str, str]]],
) -> list[Row]:
    finder = _Finder(folder, names)
    rows, lost = [], []
    for line, text in lines:
        # the class may hold a space, and so may the path: files that are there decide
        cuts = list(split(text))
        tries = chain(((finder.exactly(p), c) for p, c in cuts), ((finder.loosely(p), c) for p, c in cuts))
        found, label = next(((p, c) for p, c in tries if p), ("", ""))
        if found:
            rows.append(Row(line, found, sys.intern(label)))
        else:
            lost.append((line, text))
    if lost:
        line, text = lost[0]
        more = f" (nor do others, {len(lost):,} of {len(lines):,} lines in all)" if len(lost) > 1 else ""
        raise DataError(
            f"{path}, line {line}: {text!r} names no single picture in {folder}{more}; {_expected(names)}"
            + ("" if rows else "; if this file is no list of pictures, rename it")
        )
    return rows


class _Finder:
    """Pictures in a folder by what a list calls them; "" for none, and for more than one."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.names = names
        self.known = frozenset(names)
        self.prefix = f"{Path(os.path.abspath(folder)).name}/"  # for paths from the folder above

    def exactly(self, given: str) -> str:
        for name in (given, given.removeprefix("./"), given.removeprefix("./").removeprefix(self.prefix)):
            if name in self.known:
                return name
        return ""

    def loosely(self, given: str) -> str:
        """Without the suffix, or without the class folder, or both."""
        given = given.removeprefix("./")
        found = self._stems.get(given) or self._stems.get(given.removeprefix(self.prefix))
        return found or ("" if "/" in given else self._bare.get(given, ""))

    @cached_property
    def _stems(self) -> dict[str, str]:
        return _unique((os.path.splitext(name)[0], name) for name in self.names)

    @cached_property
    def _bare(self) -> dict[str, str]:
        return _unique(
            (key, name)
            for name in self.names
            for key in (name.rsplit("/", 1)[-1], os.path.splitext(name.rsplit("/", 1)[-1])[0])
        )


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{key: name}, with "" for a key of several names."""
    found: dict[str, str] = {}
    for key, name in pairs:
        found[key] = name if found.get(key, name) == name else ""
    return found


def _annotated(folder: Path, name: str) -> Row:
    """The class of a picture from its annotation. Errors: DataError for none, or for several classes."""
    path = folder / f"{Path(name).stem}.xml"
    try:
        found = {tag.text or "" for tag in ElementTree.parse(path).iterfind("object/name")}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected an annotation for each picture in val/") from error
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not XML ({error}); expected an annotation of {name}") from error
    if len(found) != 1:
        raise DataError(f"{path}: {len(found)} classes; expected one, in <object><name>")
    return Row(0, name, sys.intern(found.pop()))


def _expected(names: Sequence[str]) -> str:
    example = names[0] if names else f"NAME{min(PICTURE_SUFFIXES)}"
    return f"expected lines such as '{example} CLASS', the path below the folder, a class's name or number"
