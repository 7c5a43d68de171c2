"""A look at every file of a data set before hours are spent on it; each bad one is named."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from metamobile.data.folder import (
    TRAIN,
    class_difference,
    class_folders,
    find_classes,
    find_root,
    find_splits,
)
from metamobile.data.pictures import files_in, is_picture, read_picture
from metamobile.errors import PictureError

# A problem's kinds. The first group are files, which can be left out; the second is the folder's own.
UNREADABLE, TRUNCATED, WRONG_EXTENSION = "unreadable", "truncated", "wrong extension"
EMPTY_FILE, DUPLICATE = "empty file", "duplicate"
EMPTY_CLASS, CLASS_SETS = "empty class", "class sets differ"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file or, for "empty class" and "class sets differ", with a folder."""

    path: Path
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind} ({self.detail})"


@dataclass
class Inspection:
    """What was found. `classes` counts pictures: {class: {split: count}}, bad ones included.

    `passed_over` are files in class folders that are no pictures by name and content; they do no harm.
    """

    root: Path
    pictures: int = 0
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def files_to_drop(self) -> set[Path]:
        """The bad files: without them nothing is wrong but what is wrong with a folder."""
        return {p.path for p in self.problems if p.kind not in (EMPTY_CLASS, CLASS_SETS)}

    def summary(self) -> str:
        splits: Counter[str] = Counter()
        for counts in self.classes.values():
            splits.update(counts)
        shares = ", ".join(f"{name} {count:,}" for name, count in splits.items())
        text = f"{self.root}: {self.pictures:,} pictures of {len(self.classes)} classes"
        text += f" ({shares}); " if len(splits) > 1 else "; "
        kinds = Counter(p.kind for p in self.problems)
        total = f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}: "
        text += total + ", ".join(f"{n} {kind}" for kind, n in kinds.items()) if kinds else "no problem found"
        if self.passed_over:
            text += f"; {len(self.passed_over)} other files passed over, such as {self.passed_over[0]}"
        return text


def inspect_folder(
    data: str | Path, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Read every picture of every split; `workers` threads (0: one for each core), as decoding leaves Python.

    Of equal files the first is kept, validation before training, and each later one is a problem: between splits
    it lets the answers leak, between classes one label is wrong. `progress` is called with (done, total).
    Errors: ValueError for a folder that is missing or has fewer than two classes.
    """
    root = find_root(data)
    splits = dict(sorted(find_splits(root).items(), key=lambda item: item[0] == TRAIN))  # train last
    classes = find_classes(root, splits.get(TRAIN) or next(iter(splits.values())))
    found = Inspection(root)
    if {TRAIN, "val"} <= set(splits) and (difference := class_difference(splits, classes)):
        found.problems.append(Problem(root, CLASS_SETS, difference))

    places: list[tuple[Path, str, str]] = []  # (file, class, split)
    for split, folder in splits.items():
        for class_folder in class_folders(folder):
            files = files_in(class_folder)
            places += [(path, class_folder.name, split) for path in files]
            count = sum(is_picture(path) for path in files)
            found.classes.setdefault(class_folder.name, {})[split] = count
            found.pictures += count
            if not count:
                found.problems.append(Problem(class_folder, EMPTY_CLASS, "no picture inside"))

    first: dict[bytes, tuple[Path, str, str]] = {}
    for done, (place, (digest, problem)) in enumerate(zip(places, _examine_all(places, workers)), 1):
        if problem is not None:
            found.problems.append(problem)
        elif digest is None:
            found.passed_over.append(place[0])
        elif digest in first:
            found.problems.append(Problem(place[0], DUPLICATE, _describe_duplicate(place, first[digest])))
        else:
            first[digest] = place
        if progress is not None:
            progress(done, len(places))
    return found


def _examine_all(places: list[tuple[Path, str, str]], workers: int) -> Iterator[tuple]:
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        yield from pool.map(_examine, [path for path, _, _ in places])


def _examine(path: Path) -> tuple[bytes | None, Problem | None]:
    """(hash of the content, what is wrong); (None, None) for a file that is no picture and does not say so."""
    content = path.read_bytes()
    digest = hashlib.blake2b(content, digest_size=16).digest()
    if not is_picture(path):
        kind = _format_of(content)
        if kind is None:
            return None, None
        detail = f"a {kind} file, passed over under this name; rename it to {path.stem}{_suffix_of(kind)}"
        return digest, Problem(path, WRONG_EXTENSION, detail)
    if not content:
        return digest, Problem(path, EMPTY_FILE, "0 bytes")
    try:
        read_picture(content)
    except PictureError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            return digest, Problem(path, UNREADABLE, "no known picture format")
        return digest, Problem(path, TRUNCATED, str(error.__cause__))
    kind = _format_of(content)
    if kind != Image.registered_extensions().get(path.suffix.lower()):
        detail = f"a {kind} file; rename it to {path.stem}{_suffix_of(kind)}"
        return digest, Problem(path, WRONG_EXTENSION, detail)
    return digest, None


def _format_of(content: bytes) -> str | None:
    """Pillow's name of the format, from the content; None for what is no picture."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = picture.format
    except (OSError, Image.DecompressionBombError):
        return None
    return "JPEG" if kind == "MPO" else kind  # a phone's JPEG with a second picture inside


def _suffix_of(kind: str | None) -> str:
    return {"JPEG": ".jpg", "TIFF": ".tif"}.get(kind or "", f".{(kind or '').lower()}")


def _describe_duplicate(place: tuple[Path, str, str], first: tuple[Path, str, str]) -> str:
    detail = f"of {first[0]}"
    if place[2] != first[2]:
        detail += ", in another split"
    if place[1] != first[1]:
        detail += ", in another class"
    return detail
