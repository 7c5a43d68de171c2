"""Every file of a data set read once, before hours are spent on it; each bad one is named."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from metamobile.data.folder import classes_of, describe, find_root, list_samples, read_lists, takes_the_rest
from metamobile.data.layout import TRAIN, Split, class_difference, class_folders, find_splits
from metamobile.data.lists import PictureList
from metamobile.data.pictures import PICTURE_SUFFIXES, files_in, is_picture, read_picture
from metamobile.errors import PictureError

BAD_FILES = ("empty file", "unreadable", "truncated", "wrong extension", "duplicate")
BAD_FOLDERS = ("empty class", "class sets differ")
WAITING = 4096  # files given to the pool at a time: a million would fill memory with answers to come
CUT = ("truncated", "unexpected end", "premature", "not enough", "too short")  # in a decoder's words


@dataclass(frozen=True)
class Problem:
    """What is wrong with `path`: a file for a `kind` in BAD_FILES, a folder for one in BAD_FOLDERS."""

    path: Path
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind} ({self.detail})"


@dataclass
class Inspection:
    """What was found. `classes` counts pictures by name, bad ones included: {class: {split: count}}.

    `lists` tells which lists were read and which were not. `passed_over`: files in class folders that are no
    pictures by name nor content; they stop nothing.
    """

    root: Path
    pictures: int = 0
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)
    lists: str = ""

    @property
    def ok(self) -> bool:
        return not self.problems

    def files_to_drop(self) -> set[Path]:
        """The bad files; of equal ones, all but the first."""
        return {p.path for p in self.problems if p.kind in BAD_FILES}

    def summary(self) -> str:
        """One line: pictures, classes, splits, how many problems of each kind."""
        splits: Counter[str] = Counter()
        for counts in self.classes.values():
            splits.update(counts)
        parts = f" ({', '.join(f'{k} {v:,}' for k, v in splits.items())})" if len(splits) > 1 else ""
        parts += f", by {self.lists}" if self.lists else ""
        kinds = Counter(p.kind for p in self.problems)
        found = ", ".join(f"{kinds[kind]} {kind}" for kind in (*BAD_FILES, *BAD_FOLDERS) if kinds[kind])
        text = f"{self.root}: {self.pictures:,} pictures of {len(self.classes)} classes{parts}; "
        text += f"problems: {found}" if found else "no problem found"
        if self.passed_over:
            text += f"; other files passed over: {len(self.passed_over)}, such as {self.passed_over[0]}"
        return text


class _Place(NamedTuple):
    path: Path
    name: str  # of the class
    split: str


def inspect_folder(
    data: str | Path, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Read every picture of every split, with `workers` threads (0: one for each core).

    Of files with equal bytes the first is kept, validation before training, and each later one is a problem:
    between splits it flatters the figures, between classes one label is wrong. `progress` gets (done, total).
    A list that names pictures decides which are read. Errors: ValueError for a folder that is missing or has
    fewer than two classes, DataError for what is wrong in a list.
    """
    root = find_root(data)
    splits = dict(sorted(find_splits(root).items(), key=lambda item: item[0] == TRAIN))  # train last
    lists = read_lists(splits)
    classes = classes_of(splits, lists)
    text = describe(root, splits, lists)
    found = Inspection(root, lists=text if lists or "not used" in text else "")
    if len(splits) == 2 and "val" not in lists and (difference := class_difference(splits, classes)):
        found.problems.append(Problem(root, "class sets differ", difference))

    places: list[_Place] = []
    for split in splits:
        for name, folder, files in _files_of(split, splits, lists, classes):
            places += [_Place(path, name, split) for path in files]
            count = sum(map(is_picture, files))
            found.classes.setdefault(name, {})[split] = count
            found.pictures += count
            if not count and (split == TRAIN or split not in lists):
                detail = f"no picture of {name}" if split in lists else "no picture inside"
                found.problems.append(Problem(folder, "empty class", detail))

    first: dict[bytes, _Place] = {}
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:  # Pillow decodes without the GIL
        parts = (places[i : i + WAITING] for i in range(0, len(places), WAITING))
        answers = chain.from_iterable(pool.map(examine, [place.path for place in part]) for part in parts)
        for done, (place, (digest, problem)) in enumerate(zip(places, answers, strict=True), start=1):
            if problem is not None:
                found.problems.append(problem)
            elif not digest:
                found.passed_over.append(place.path)
            elif (earlier := first.setdefault(digest, place)) is not place:
                found.problems.append(Problem(place.path, "duplicate", _describe_copy(place, earlier)))
            if progress is not None:
                progress(done, len(places))
    return found


def _files_of(
    name: str, splits: Mapping[str, Split], lists: Mapping[str, PictureList], classes: Sequence[str]
) -> Iterator[tuple[str, Path, list[Path]]]:
    """Each class of the split `name`: the folder or list that tells its pictures, and these."""
    split = splits[name]
    if name in lists:
        files: list[list[Path]] = [[] for _ in classes]
        for sample in list_samples(lists[name], classes, "of training"):
            files[sample.target].append(sample.path)
        for class_name, named in zip(classes, files, strict=True):
            yield class_name, lists[name].path, named
        return
    others = {split.folder / row.path for row in lists["val"].rows} if takes_the_rest(splits) else set()
    for folder in class_folders(split.folder):
        yield folder.name, folder, [path for path in files_in(folder) if path not in others]


def examine(path: Path) -> tuple[bytes, Problem | None]:
    """(hash of the content, what is wrong); an empty hash for what is no picture and does not say so."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return b"", Problem(path, "unreadable", f"cannot be opened: {error.strerror}")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    kind = _format_of(content)
    expected = Image.registered_extensions().get(path.suffix.lower())
    if not is_picture(path):
        if kind in (None, expected):  # icon.ico holds a picture, but nobody takes it for data
            return b"", None
        return digest, Problem(
            path, "wrong extension", f"holds {kind}, unseen so; {_advice(path, str(kind))}"
        )
    if not content:
        return digest, Problem(path, "empty file", "0 bytes")
    if kind is None:
        return digest, Problem(path, "unreadable", "in no known picture format")
    try:
        read_picture(content)
    except PictureError as error:
        reason = str(error.__cause__)
        cut = any(word in reason.lower() for word in CUT)
        return digest, Problem(path, "truncated" if cut else "unreadable", reason)
    if kind != expected:
        return digest, Problem(path, "wrong extension", f"holds {kind}; {_advice(path, kind)}")
    return digest, None


def _format_of(content: bytes) -> str | None:
    """Pillow's name of the format; None for what is in none, or too damaged to tell."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = picture.format
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError):
        return None
    return "JPEG" if kind == "MPO" else kind  # a phone's JPEG with more pictures behind it


def _advice(path: Path, kind: str) -> str:
    suffix = {"JPEG": ".jpg", "TIFF": ".tif"}.get(kind, f".{kind.lower()}")
    return f"rename it to {path.stem}{suffix}" if suffix in PICTURE_SUFFIXES else "save it as JPEG or PNG"


def _describe_copy(place: _Place, earlier: _Place) -> str:
    """What a copy spoils depends on where the first one lies."""
    text = f"duplicate of {earlier.path}"
    if place.split != earlier.split:
        text += f"; in {place.split} and {earlier.split}, it flatters the figures"
    if place.name != earlier.name:
        text += f"; labelled {place.name} and {earlier.name}, which contradict each other"
    return text
