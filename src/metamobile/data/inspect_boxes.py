"""Every picture and every box of a data set looked at once, before hours are spent on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from metamobile.data.box_sample import BoxSample, is_turned, picture_size
from metamobile.data.boxes import BoxLayout, class_difference, find_boxes, shared_pictures
from metamobile.data.inspect import BAD_FILES, WAITING, Inspection, Problem, examine
from metamobile.data.layout import TRAIN, name_some
from metamobile.errors import DataError

BAD_PICTURES = (*BAD_FILES, "missing picture", "size differs")
BAD_BOXES = (
    "empty box",
    "inverted box",
    "box outside",
    "box partly outside",
    "duplicate box",
    "unknown category",
    "unknown picture",
    "not numbers",
    "out of 0..1",
    "bad mask",
    "listed twice",
    "in both splits",
    "label without picture",
)
BAD_SETS = ("broken annotations", "class sets differ")


@dataclass
class BoxInspection(Inspection):
    """As `Inspection`, with kinds of BAD_PICTURES, BAD_BOXES and BAD_SETS; `classes` counts good boxes.

    Of all pictures, each once: `boxes`, those of them that are `crowd`, and `negatives`, the pictures without
    a box; `unseen` are classes without a box to train on; `maskless` boxes have no mask where others have.
    They are told and stop nothing.
    """

    boxes: int = 0
    crowd: int = 0
    negatives: int = 0
    maskless: int = 0
    unseen: list[str] = field(default_factory=list)

    def files_to_drop(self) -> set[Path]:
        """The bad pictures. Bad boxes are left out by `open_boxes(..., drop_bad=True)`."""
        return {problem.path for problem in self.problems if problem.kind in BAD_PICTURES}

    def summary(self) -> str:
        """One line: pictures, boxes, classes, where they are from, how many problems of each kind."""
        text = f"{self.root}: {self.pictures:,} pictures, {self.boxes:,} boxes of {len(self.classes)} classes"
        text += f", by {self.lists}" if self.lists else ""
        text += f"; pictures without a box: {self.negatives:,}" if self.negatives else ""
        text += f"; crowd boxes: {self.crowd:,}" if self.crowd else ""
        text += f"; boxes without a mask: {self.maskless:,}" if self.maskless else ""
        if self.unseen:
            text += f"; classes without a box to train on: {len(self.unseen)} ({name_some(self.unseen)})"
        kinds = Counter(problem.kind for problem in self.problems)
        named = [kind for kind in (*BAD_PICTURES, *BAD_BOXES, *BAD_SETS) if kinds[kind]]
        found = ", ".join(f"{kinds[kind]:,} {kind}" for kind in named)
        return f"{text}; problems: {found}" if found else f"{text}; no problem found"


def inspect_boxes(
    data: str | Path, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> BoxInspection:
    """Judge every box and read every picture of every split, with `workers` threads (0: one for each core).

    Equal bytes in training and validation are a problem, as they flatter the figures. `progress` gets
    (done, total). Errors: ValueError for a path that is missing or has no annotations.
    """
    layout = find_boxes(data)
    found = BoxInspection(layout.root, lists=" and ".join(map(layout.name, layout.splits)))
    read: dict[str, list[BoxSample]] = {}
    for name in sorted(layout.splits, key=lambda name: name == TRAIN):  # validation first, which keeps copies
        source = layout.source(name)
        try:
            part, strays = layout.read(name), layout.strays(name)
        except DataError as error:
            text = str(error).removeprefix(f"{source}: ")
            found.problems.append(Problem(source, "broken annotations", text))
        else:
            found.problems += [*part.problems, *strays]
            read[name] = part.samples
    _compare_splits(layout, read, found)
    _count_boxes(layout, read, found)
    _examine_pictures(read, found, workers, progress)
    return found


def _compare_splits(layout: BoxLayout, read: Mapping[str, list[BoxSample]], found: BoxInspection) -> None:
    if len(read) < 2:
        return
    if difference := class_difference(layout, layout.classes(TRAIN)[0]):
        found.problems.append(Problem(layout.source("val"), "class sets differ", difference))
    train, val = read[TRAIN], read["val"]
    if {sample.path for sample in train} != {sample.path for sample in val}:
        found.problems += shared_pictures(train, val, layout.source(TRAIN))


def _count_boxes(layout: BoxLayout, read: Mapping[str, list[BoxSample]], found: BoxInspection) -> None:
    for split in (name for name in layout.splits if name in read):
        names, _ = layout.classes(split)
        counts = Counter(label for sample in read[split] for label in sample.labels.tolist())
        for label, name in enumerate(names):
            found.classes.setdefault(name, {})[split] = counts[label]
        if split != "val":
            found.unseen = [name for label, name in enumerate(names) if not counts[label]]
    samples = {sample.path: sample for own in read.values() for sample in own}.values()
    found.boxes = sum(len(sample.boxes) for sample in samples)
    found.crowd = sum(int(sample.crowd.sum()) for sample in samples)
    found.negatives = sum(not len(sample.boxes) for sample in samples)
    found.maskless = sum(not mask for sample in samples for mask in sample.segmentations or ())


def _examine_pictures(
    read: Mapping[str, list[BoxSample]],
    found: BoxInspection,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode each picture once."""
    split_of: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int] | None] = {}
    for split, samples in read.items():
        for sample in samples:
            split_of.setdefault(sample.path, split)
            sizes[sample.path] = sample.size
    headless = {problem.path: problem for problem in found.problems if problem.kind == "unreadable"}
    found.problems = [problem for problem in found.problems if problem.kind != "unreadable"]
    sizes |= dict.fromkeys(headless)  # decoding tells better what is wrong with them
    paths = list(sizes)
    found.pictures = len(paths)

    first: dict[bytes, Path] = {}
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:  # Pillow decodes without the GIL
        parts = (paths[i : i + WAITING] for i in range(0, len(paths), WAITING))
        answers = chain.from_iterable(pool.map(_look, part, map(sizes.get, part)) for part in parts)
        for done, (path, (digest, problem)) in enumerate(zip(paths, answers, strict=True), start=1):
            problem = problem or headless.get(path)
            if problem is not None:
                found.problems.append(problem)
            elif split_of[earlier := first.setdefault(digest, path)] != split_of[path]:
                detail = f"duplicate of {earlier}; in {TRAIN} and val, it flatters the figures"
                found.problems.append(Problem(path, "duplicate", detail))
            if progress is not None:
                progress(done, len(paths))


def _look(path: Path, size: tuple[int, int] | None) -> tuple[bytes, Problem | None]:
    """(hash of the content, what is wrong); `size` is what the annotations say, None where nothing does."""
    digest, problem = examine(path)
    if problem is not None or size is None:
        return digest, problem
    if not digest:
        return digest, Problem(path, "unreadable", "no picture by its name; save it as JPEG or PNG")
    actual = picture_size(path)
    if actual == size:
        return digest, None
    detail = f"{actual[0]}x{actual[1]}, its annotations say {size[0]}x{size[1]}"
    if actual == size[::-1] and is_turned(path):
        detail += ", as it lies before its EXIF rotation; turn the boxes, or take the rotation out"
    return digest, Problem(path, "size differs", detail)
