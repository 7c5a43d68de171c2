"""Where things lie in a data set's folder: the splits' folders, class folders, lists, ImageNet's own tree.

Names alone decide: the pictures are not looked at, and a list is not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metamobile.data.lists import SYNSET, has_running_numbers, has_synsets_alone
from metamobile.data.pictures import is_junk, is_picture
from metamobile.errors import DataError

TRAIN = "train"
HELD_OUT = ("val", "valid", "validation", "test")  # the first with a folder or a list is used
# what a split of training pictures alone is called
BY_HEART = "the training pictures themselves, as val_fraction is 0: figures show what was learned by heart"
META = "meta"  # a folder for lists
MOST_NAMED = 8  # classes in one message
CLS_LOC = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # in ImageNet's own tree, from above it or inside
SOLUTION = "LOC_val_solution.csv"
_LISTLIKE = re.compile(
    r"(^|[^a-z])(train|val|trainval|valid|validation|test)([^a-z].*)?\.(txt|csv)$|synset_labels\.txt$"
)


@dataclass(frozen=True)
class Split:
    """The folder below which a split's pictures lie, and the list that names them (None: class folders)."""

    folder: Path
    listing: Path | None = None


def class_folders(split: Path) -> list[Path]:
    """Sorted by name; without junk, and without meta/ that holds lists."""
    with os.scandir(split) as entries:  # tells folders from files without asking for each
        names = sorted(entry.name for entry in entries if not is_junk(entry.name) and entry.is_dir())
    if META in names and any((split / META / f"{name}.txt").is_file() for name in (TRAIN, *HELD_OUT)):
        names.remove(META)
    return [split / name for name in names]


def find_splits(root: Path) -> dict[str, Split]:
    """{"train": ..., "val": ...}, either of them alone, or {"all": root} for plain class folders.

    A list without a folder of its split's name is about the folder with the training pictures.

    Errors: DataError for a validation folder that has neither class folders nor a list with classes.
    """
    base = picture_root(root)
    train, train_lists = base / TRAIN, find_lists(root, TRAIN)
    own_train = _is_divided(train) or (bool(train_lists) and is_flat(train))
    whole = train if own_train else base
    splits = {}
    if own_train or train_lists:
        splits[TRAIN] = Split(whole, train_lists[0] if train_lists else None)
    for name in HELD_OUT:
        folder, lists = base / name, find_lists(root, name)
        if _is_divided(folder):
            chosen = [path for path in lists if not has_synsets_alone(path)]
            return splits | {"val": Split(folder, chosen[0] if chosen else None)}
        secret = name == "test" and not lists  # nobody's to know
        if is_flat(folder) and (own_train or lists) and not secret:
            return splits | {"val": Split(folder, _labels_of(root, folder, lists))}
        if lists:
            return {TRAIN: Split(whole)} | splits | {"val": Split(whole, lists[0])}
    return splits or {"all": Split(base)}


def _is_divided(folder: Path) -> bool:  # and not a class of that name, which holds pictures
    return folder.is_dir() and bool(class_folders(folder))


def is_flat(folder: Path) -> bool:
    """Whether it holds pictures without class folders."""
    if not folder.is_dir() or _is_divided(folder):
        return False
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) for entry in entries)


def _labels_of(root: Path, folder: Path, lists: Sequence[Path]) -> Path:
    """The list, or the folder of annotations, with the classes of pictures that lie in no class folder."""
    listed = next((path for path in lists if not has_running_numbers(path)), None)
    if found := listed or find_annotations(root):
        return found
    others = ", ".join(shorten(path, root) for path in unused_lists(root, ()))
    raise DataError(
        f"{folder}: pictures without class folders, and no list tells their classes"
        + (f" (not {others})" if others else "")
        + f"; expected {folder.name}/<class>/*.jpg, or a list {folder.name}.txt with lines 'path class'"
        + (f", or {SOLUTION}" if folder.name == "val" else "")
    )


def find_classes(split: Path) -> list[str]:
    """Names of the class folders.

    Errors: ValueError for fewer than two, DataError for a class of ImageNet's that is still an archive.
    """
    classes = [p.name for p in class_folders(split)]
    check_unpacked(split, classes)
    if len(classes) > 1 and set(classes) <= {TRAIN, *HELD_OUT}:
        raise ValueError(
            f"{split}: no class folders in {', '.join(classes)}; expected {classes[0]}/<class>/*.jpg"
        )
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folders"
        raise ValueError(
            f"{split}: {found}; expected at least two, such as {split.name}/cats/ and {split.name}/dogs/"
        )
    return classes


def check_unpacked(split: Path, classes: Sequence[str]) -> None:
    """ImageNet's training archive holds one for each class. Errors: DataError for one without a folder."""
    archives = sorted(path for path in split.glob("*.tar") if path.stem not in classes)
    packed = [path for path in archives if SYNSET.fullmatch(path.stem) or not classes]
    if packed:
        first = packed[0]
        more = f" and {len(packed) - 1:,} more archives are" if len(packed) > 1 else " is"
        raise DataError(
            f"{split}: {first.name}{more} not unpacked; unpack each into a folder of its name: "
            f"mkdir {first.stem} && tar -xf {first.name} -C {first.stem}"
        )


def class_difference(splits: Mapping[str, Split], classes: Sequence[str]) -> str:
    """What differs between the class sets of train and `val`, or an empty string."""
    held_out = [p.name for p in class_folders(splits["val"].folder)]
    missing = sorted(set(classes) - set(held_out))
    extra = sorted(set(held_out) - set(classes))
    if not missing and not extra:
        return ""
    val = splits["val"].folder.name
    parts = [f"only in {TRAIN}/: {name_some(missing)}"] * bool(missing)
    parts += [f"only in {val}/: {name_some(extra)}"] * bool(extra)
    return f"class sets differ between {TRAIN}/ and {val}/ ({'; '.join(parts)})"


def name_some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def shorten(path: Path, root: Path) -> str:
    """The path below `root`; the whole path for what lies elsewhere."""
    inner, outer = os.path.abspath(path), os.path.abspath(root)
    return os.path.relpath(inner, outer) if Path(inner).is_relative_to(outer) else inner


def picture_root(root: Path) -> Path:
    """`root`, or the folder of ImageNet's own tree below it that holds train/ and val/."""
    inner = [root / place for place in CLS_LOC if (root / place).is_dir()]
    return inner[0] if inner and not (root / TRAIN).is_dir() else root


def find_lists(root: Path, split: str) -> list[Path]:
    """The lists of `split` ("train", "val", ...) by name, first the one to prefer."""
    names = [f"{split}.txt", f"{split}_map.txt"]
    near, above, sets = _places(root)
    found = [place / name for place in near for name in names]
    if split == TRAIN:
        found += [place / "train_cls.txt" for place in (*near, *sets)]
    if split == "val":
        found += [place / SOLUTION for place in (*near, *above)]
        found += [path for place in near for path in sorted(place.glob("*synset_labels.txt"))]
    found += [place / f"{split}.txt" for place in sets if split != TRAIN]
    return [path for path in found if path.is_file()]


def find_annotations(root: Path) -> Path | None:
    """The folder with an XML file for each picture in val/, of ImageNet's own tree."""
    places = [place.parents[1] / "Annotations/CLS-LOC/val" for place in _places(root)[2]]
    return next((place for place in places if place.is_dir()), None)


def unused_lists(root: Path, used: Iterable[Path]) -> list[Path]:
    """Files that are called as lists are, and are none of those in use."""
    near, above, sets = _places(root)
    found = [path for place in (*near, *sets) if place.is_dir() for path in sorted(place.iterdir())]
    found += [place / SOLUTION for place in above if (place / SOLUTION).is_file()]
    told = {os.path.realpath(path) for path in used}
    others = []
    for path in found:
        listlike = _LISTLIKE.search(path.name.lower()) and not is_junk(path.name)
        if listlike and (real := os.path.realpath(path)) not in told:
            told.add(real)
            others.append(path)
    return others


def _places(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Folders with lists: near the pictures; above ImageNet's own tree, for its solution; its image sets."""
    base = picture_root(root)
    near = [root, root / META] + ([base, base / META] if base != root else [])
    seen = [Path(os.path.abspath(base)), base.resolve()]  # through links, and as it is
    trees = [place.parents[1] for place in dict.fromkeys(seen) if place.parts[-2:] == ("Data", "CLS-LOC")]
    above = [place for tree in trees for place in (tree, tree.parent)]
    return near, above, [tree / "ImageSets/CLS-LOC" for tree in trees]
