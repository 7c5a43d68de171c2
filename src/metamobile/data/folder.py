"""A folder of class folders as a data set: which pictures, which class, which split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from metamobile.data.pictures import pictures_in
from metamobile.errors import DataError, nearest

TRAIN = "train"
HELD_OUT = ("val", "valid", "validation", "test")  # the first that exists is used


@dataclass(frozen=True)
class Sample:
    """One picture and the index of its class."""

    path: Path
    target: int


@dataclass
class FolderData:
    """Classes in order of their folders' names, the two splits, and `split`: how they came about."""

    root: Path
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    split: str


def find_root(data: str | Path) -> Path:
    """The folder that a DATA argument means; "shapes" is drawn at first use.

    Errors: ValueError for a missing folder, with the nearest name.
    """
    if str(data) == "shapes":
        from metamobile.data.shapes import folder

        return folder()
    root = Path(data)
    if root.is_dir():
        return root
    if root.exists():
        raise ValueError(f"{root}: a file; expected a folder of class folders, or 'shapes'")
    names = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
    hint = nearest(root.name, [*names, "shapes"])
    raise ValueError(f"{root}: no such folder; expected a folder of class folders, or 'shapes'{hint}")


def class_folders(split: Path) -> list[Path]:
    """Sorted by name; hidden ones left out."""
    return sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))


def find_splits(root: Path) -> dict[str, Path]:
    """{"train": ..., "val": ...}, either of them alone, or {"all": root} for plain class folders."""

    def is_split(folder: Path) -> bool:  # and not a class of that name, which holds pictures
        return folder.is_dir() and bool(class_folders(folder))

    train = {TRAIN: root / TRAIN} if is_split(root / TRAIN) else {}
    held_out = [root / name for name in HELD_OUT if is_split(root / name)]
    return train | ({"val": held_out[0]} if held_out else {}) or {"all": root}


def find_classes(root: Path, split: Path) -> list[str]:
    """Names of the class folders. Errors: ValueError for fewer than two."""
    classes = [p.name for p in class_folders(split)]
    if len(classes) > 1 and set(classes) <= {TRAIN, *HELD_OUT}:
        raise ValueError(
            f"{root}: no class folders in {', '.join(classes)}; expected {classes[0]}/<class>/*.jpg"
        )
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folders"
        raise ValueError(
            f"{root}: {found}; expected at least two, such as {root.name}/cats/ and {root.name}/dogs/"
        )
    return classes


def open_folder(
    data: str | Path, *, val_fraction: float = 0.2, seed: int = 0, exclude: Collection[Path] = ()
) -> FolderData:
    """The data set in `data`: train/ and val/ of class folders, or class folders that are split here.

    The split holds out `val_fraction` of each class, chosen by `seed` and each file's path below `data`, so
    that it stays as it is when the folder moves or files come and go. `exclude` leaves files out. Errors:
    ValueError for a folder that is missing or has fewer than two classes; DataError for a class without
    pictures and for class sets that differ between the splits.
    """
    root = find_root(data)
    splits = find_splits(root)
    if set(splits) == {"val"}:
        name = splits["val"].name
        raise ValueError(f"{root}: has {name}/ but no train/; expected both, or class folders alone")
    classes = find_classes(root, splits.get(TRAIN) or splits["all"])
    excluded = {Path(p) for p in exclude}
    if "val" in splits:
        difference = class_difference(splits, classes)
        if difference:
            raise DataError(f"{root}: {difference}")
        train = _read_split(splits[TRAIN], classes, excluded)
        val = _read_split(splits["val"], classes, excluded)
        return FolderData(root, classes, train, val, f"the folders {TRAIN}/ and {splits['val'].name}/")

    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction {val_fraction} is not between 0 and 1; 0.2 holds out a fifth")
    train, val = [], []
    (whole,) = splits.values()
    for target in range(len(classes)):
        samples = [s for s in _read_split(whole, classes, excluded) if s.target == target]
        if len(samples) < 2:
            raise DataError(f"{whole / classes[target]}: one picture; expected at least two, to hold one out")
        ranked = sorted(samples, key=lambda s: _rank(s.path.relative_to(whole), seed))
        held = min(max(1, round(len(samples) * val_fraction)), len(samples) - 1)
        val += sorted(ranked[:held], key=lambda s: s.path)
        train += sorted(ranked[held:], key=lambda s: s.path)
    return FolderData(
        root, classes, train, val, f"{val_fraction:.0%} of each class held out with seed {seed}"
    )


def _rank(path: Path, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{path.as_posix()}".encode()).digest()


def _read_split(split: Path, classes: Sequence[str], excluded: Collection[Path]) -> list[Sample]:
    """Errors: DataError for a class without pictures."""
    samples = []
    for target, name in enumerate(classes):
        paths = pictures_in(split / name)
        kept = [path for path in paths if path not in excluded]
        if not kept:
            why = f"all {len(paths)} pictures are left out" if paths else "no picture inside"
            raise DataError(f"{split / name}: {why}; add some, or remove the class folder from every split")
        samples += [Sample(path, target) for path in kept]
    return samples


def class_difference(splits: dict[str, Path], classes: Sequence[str]) -> str:
    """What differs between the class sets of train and `val`, or an empty string."""
    held_out = [p.name for p in class_folders(splits["val"])]
    missing = sorted(set(classes) - set(held_out))
    extra = sorted(set(held_out) - set(classes))
    if not missing and not extra:
        return ""
    val = splits["val"].name
    parts = [f"only in {TRAIN}/: {', '.join(missing)}"] * bool(missing)
    parts += [f"only in {val}/: {', '.join(extra)}"] * bool(extra)
    return f"class sets differ between {TRAIN}/ and {val}/ ({'; '.join(parts)})"


def eval_samples(data: str | Path, classes: Sequence[str]) -> list[Sample]:
    """Pictures to measure a model with `classes` on: the validation split if there is one, else all.

    Classes are matched by folder name. Errors: ValueError for a class folder that the model does not know.
    """
    splits = find_splits(find_root(data))
    folder = splits.get("val") or next(iter(splits.values()))
    index = {name: i for i, name in enumerate(classes)}
    samples = []
    for class_folder in class_folders(folder):
        name = class_folder.name
        if name not in index:
            known = f"{', '.join(list(classes)[:12])}{', ...' if len(classes) > 12 else ''}"
            raise ValueError(
                f"{class_folder}: the model has no class {name!r}; it knows {known}{nearest(name, classes)}"
            )
        samples += [Sample(path, index[name]) for path in pictures_in(class_folder)]
    if not samples:
        raise ValueError(f"{folder}: no pictures in class folders; expected {folder.name}/<class>/*.jpg")
    return samples


def class_names(classes: Sequence[str]) -> list[str]:
    """Readable names: ImageNet's WordNet ids (n01440764) get their first word (tench), others stay."""
    if not classes or not all(re.fullmatch(r"n\d{8}", c) for c in classes):
        return list(classes)
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())
    return [info.label_name_to_description(c).split(",")[0].strip() if c in known else c for c in classes]
