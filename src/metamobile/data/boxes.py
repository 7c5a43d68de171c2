"""Pictures with boxes as a data set: which pictures, which classes, which split.

Annotations in COCO's json (`metamobile.data.coco`) or YOLO's text files (`metamobile.data.yolo`) are found by
looking. All boxes come out alike, as `BoxSample`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from metamobile.data.box_sample import BoxSample, BoxSplit
from metamobile.data.coco import find_coco, open_json
from metamobile.data.folder import rank, unknown_class
from metamobile.data.inspect import Problem
from metamobile.data.layout import BY_HEART, TRAIN, name_some
from metamobile.data.yolo import find_yolo, open_yaml
from metamobile.errors import DataError, nearest

__all__ = ["BoxData", "BoxLayout", "BoxSample", "eval_boxes", "find_boxes", "open_boxes"]

FORMS = "expected COCO's annotations/*.json or YOLO's data.yaml, or images/ and labels/"
MOST_NAMED = 3  # problems in one message
DROP = "mend them, or leave out exactly these with --drop-bad"
MEND = "mend them; `metamobile check` names all"


@dataclass
class BoxData:
    """Classes in the data's order, the two splits, and in words how they came about (`split`).

    `category_ids` are the data's own numbers of the classes; `own_split`: none was held out here.
    """

    root: Path
    classes: list[str]
    category_ids: list[int]
    train: list[BoxSample]
    val: list[BoxSample]
    split: str
    own_split: bool = False


class BoxLayout(Protocol):
    """Where the annotations of each split lie ("train", "val", or "all" for what is not divided)."""

    root: Path

    @property
    def splits(self) -> list[str]: ...
    def source(self, split: str) -> Path: ...
    def name(self, split: str) -> str: ...
    def classes(self, split: str) -> tuple[list[str], list[int]]: ...
    def read(self, split: str, excluded: Collection[Path] = ()) -> BoxSplit: ...
    def strays(self, split: str) -> list[Problem]: ...


def find_boxes(data: str | Path) -> BoxLayout:
    """The annotations in a folder, or the json or yaml that `data` is; "shapes" is drawn at first use.

    Errors: ValueError for a path that does not exist, with the nearest name, or without annotations.
    """
    if str(data) == "shapes":
        from metamobile.data.shape_scenes import boxes_folder

        data = boxes_folder()
    root = Path(data)
    if root.is_dir():
        layout: BoxLayout | None = find_coco(root)
        if not _has_training(layout):
            other = find_yolo(root)
            layout = other if layout is None or _has_training(other) else layout
        if layout is None:
            raise ValueError(f"{root}: no boxes found; {FORMS}")
        return layout
    openers: dict[str, Callable[[Path], BoxLayout]] = {
        ".json": open_json,
        ".yaml": open_yaml,
        ".yml": open_yaml,
    }
    if root.is_file() and root.suffix.lower() in openers:
        return openers[root.suffix.lower()](root)
    if root.exists():
        raise ValueError(f"{root}: neither a folder nor a .json or .yaml; {FORMS}")
    names = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
    hint = nearest(root.name, [*names, "shapes"])
    raise ValueError(f"{root}: no such folder or file; {FORMS}, or 'shapes'{hint}")


def _has_training(layout: BoxLayout | None) -> bool:
    return layout is not None and bool({TRAIN, "all"} & set(layout.splits))


def open_boxes(
    data: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    exclude: Collection[Path] = (),
    drop_bad: bool = False,
) -> BoxData:
    """The data set in `data`, with its own splits, or split here by `seed` and each picture's path.

    Pictures without a box stay. `exclude` leaves pictures out; `drop_bad` leaves out bad boxes and missing
    pictures. Errors: ValueError as `find_boxes` and for a `val_fraction` not in 0..1; DataError that names
    the first bad boxes, for annotations that are broken, and for classes that differ between the splits.
    """
    layout = find_boxes(data)
    excluded = {Path(path) for path in exclude}
    if layout.splits == ["val"]:
        raise ValueError(f"{layout.root}: has {layout.name('val')} but nothing to train on; expected both")
    first = layout.splits[0]
    classes, category_ids = layout.classes(first)
    train = _read(layout, first, classes, excluded, drop_bad)
    _check_boxes(train, layout.source(first), "to train on")
    if "val" in layout.splits:
        if difference := class_difference(layout, classes):
            raise DataError(f"{layout.source('val')}: {difference}")
        val = _read(layout, "val", classes, excluded, drop_bad)
        _check_boxes(val, layout.source("val"), "to validate on")
        text = f"{layout.name(TRAIN)} and {layout.name('val')}"
        held = {sample.path for sample in val}
        if held == {sample.path for sample in train}:
            text += ", which name the very same pictures: figures show what was learned by heart"
        elif problems := shared_pictures(train, val, layout.source(TRAIN)):
            _refuse(problems, drop_bad)
            train = [sample for sample in train if sample.path not in held]
        return BoxData(layout.root, classes, category_ids, train, val, text, own_split=True)

    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction {val_fraction} is not between 0 and 1; 0.2 holds out a fifth")
    if val_fraction == 0:
        return BoxData(layout.root, classes, category_ids, train, train, f"{layout.name(first)}; {BY_HEART}")
    train, val = _hold_out(train, layout, val_fraction, seed)
    text = f"{val_fraction:.0%} of the pictures held out with seed {seed}, of {layout.name(first)}"
    return BoxData(layout.root, classes, category_ids, train, val, text)


def eval_boxes(
    data: str | Path, classes: Sequence[str], *, exclude: Collection[Path] = (), drop_bad: bool = False
) -> tuple[list[BoxSample], str]:
    """Pictures to measure a model with `classes` on, and where they come from in words.

    The validation split if there is one, else all. Classes are matched by name. Errors: as `open_boxes`, and
    ValueError for a box of a class that the model does not know.
    """
    layout = find_boxes(data)
    name = "val" if "val" in layout.splits else layout.splits[0]
    samples = _read(layout, name, classes, {Path(path) for path in exclude}, drop_bad, MEND)
    _check_boxes(samples, layout.source(name), "to measure on")
    text = layout.name(name)
    return samples, text if name == "val" else f"{text}: all, as no validation split is there"


def class_difference(layout: BoxLayout, classes: Sequence[str]) -> str:
    """What differs between the class sets of train and val, or an empty string."""
    held_out = layout.classes("val")[0]
    missing = [name for name in classes if name not in held_out]
    extra = [name for name in held_out if name not in classes]
    if not missing and not extra:
        return ""
    parts = [f"only in {layout.name(TRAIN)}: {name_some(missing)}"] * bool(missing)
    parts += [f"only in {layout.name('val')}: {name_some(extra)}"] * bool(extra)
    return f"class sets differ ({'; '.join(parts)})"


def shared_pictures(train: Sequence[BoxSample], val: Sequence[BoxSample], source: Path) -> list[Problem]:
    """Pictures in both splits, which flatter the figures."""
    held = {sample.path for sample in val}
    shared = [sample.path for sample in train if sample.path in held]
    return [Problem(source, "in both splits", f"{path}; it flatters the figures") for path in shared]


def _read(
    layout: BoxLayout,
    split: str,
    classes: Sequence[str],
    excluded: Collection[Path],
    drop_bad: bool,
    advice: str = DROP,
) -> list[BoxSample]:
    """With labels that are places in `classes`.

    Errors: DataError for bad boxes unless they are dropped; ValueError for a box of an unknown class.
    """
    found = layout.read(split, excluded)
    _refuse(found.problems, drop_bad, advice)
    own, _ = layout.classes(split)
    if own == list(classes):
        return found.samples
    index = {name: label for label, name in enumerate(classes)}
    place = np.array([index.get(name, -1) for name in own], np.int64)
    for sample in found.samples:
        unknown = sample.labels[place[sample.labels] < 0]
        if len(unknown):
            raise ValueError(f"{sample.path}: {unknown_class(own[unknown[0]], classes)}")
    return [replace(sample, labels=place[sample.labels]) for sample in found.samples]


def _refuse(problems: Sequence[Problem], drop_bad: bool, advice: str = DROP) -> None:
    if problems and not drop_bad:
        named = "; ".join(str(problem) for problem in problems[:MOST_NAMED])
        more = len(problems) - MOST_NAMED
        raise DataError(f"{named}{f'; and {more:,} more' if more > 0 else ''}; {advice}")


def _check_boxes(samples: Sequence[BoxSample], source: Path, purpose: str) -> None:
    if not any(len(sample.boxes) for sample in samples):
        raise DataError(f"{source}: no box {purpose} in {len(samples):,} pictures; expected some")


def _hold_out(
    samples: Sequence[BoxSample], layout: BoxLayout, val_fraction: float, seed: int
) -> tuple[list[BoxSample], list[BoxSample]]:
    """(training, validation), in the data's order. Errors: DataError for fewer than two pictures."""
    if len(samples) < 2:
        raise DataError(f"{layout.root}: one picture; expected at least two, to hold one out")
    root = layout.root
    places = [s.path.relative_to(root) if s.path.is_relative_to(root) else s.path for s in samples]
    ranked = sorted(range(len(samples)), key=lambda i: rank(places[i], seed))
    held = set(ranked[: min(max(1, round(len(samples) * val_fraction)), len(samples) - 1)])
    train = [sample for i, sample in enumerate(samples) if i not in held]
    val = [sample for i, sample in enumerate(samples) if i in held]
    for part, purpose in ((train, "to train on"), (val, "to validate on")):
        _check_boxes(part, layout.root, purpose)
    return train, val
