"""A folder as a data set: which pictures, which class, which split.

Class folders or lists (`metamobile.data.lists`) tell the class, folders train/ and val/ or lists the split.
A file that is called as a list is read as one, and only what it names belongs to its split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metamobile.data.layout import (
    HELD_OUT,
    TRAIN,
    Split,
    check_unpacked,
    class_difference,
    class_folders,
    find_classes,
    find_splits,
    is_flat,
    name_some,
    picture_root,
    shorten,
    unused_lists,
)
from metamobile.data.lists import SYNSET, PictureList, read_list
from metamobile.data.pictures import pictures_in
from metamobile.errors import DataError, nearest


@dataclass(frozen=True, slots=True)  # of ImageNet there are 1.3 million
class Sample:
    """One picture and the index of its class."""

    path: Path
    target: int


@dataclass
class FolderData:
    """Classes sorted by their folders' names, the two splits, and in words how they came about (`split`).

    `own_split`: the data have a validation split, so that none was held out here."""

    root: Path
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    split: str
    own_split: bool = False


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


def open_folder(
    data: str | Path, *, val_fraction: float = 0.2, seed: int = 0, exclude: Collection[Path] = ()
) -> FolderData:
    """The data set in `data`: train/ and val/, or class folders that are split here, or what lists say.

    The split holds out `val_fraction` of each class, chosen by `seed` and each file's path below `data`, so
    that it stays as it is when the folder moves or files come and go. `exclude` leaves files out. Errors:
    ValueError for a folder that is missing or has fewer than two classes; DataError for a class without
    pictures, for class sets that differ between the splits, and for what is wrong in a list.
    """
    root = find_root(data)
    splits = find_splits(root)
    if set(splits) == {"val"}:
        name, train_folder = splits["val"].folder.name, picture_root(root) / TRAIN
        if train_folder.is_dir():
            find_classes(train_folder)  # says what it lacks
        raise ValueError(f"{root}: has {name}/ but no {TRAIN}/; expected both, or class folders alone")
    lists = read_lists(splits)
    classes = classes_of(splits, lists)
    if "val" in splits and "val" not in lists and (difference := class_difference(splits, classes)):
        raise DataError(f"{root}: {difference}")
    excluded = {Path(p) for p in exclude}
    read = {name: _read_split(split, classes, lists.get(name), excluded) for name, split in splits.items()}
    if "val" in splits:
        train, val = read[TRAIN], read["val"]
        if takes_the_rest(splits):
            held = {lists["val"].folder / row.path for row in lists["val"].rows}
            train = [sample for sample in train if sample.path not in held]
        _check_each_class(train, splits[TRAIN], classes)
        text, absent = describe(root, splits, lists), len(classes) - len({sample.target for sample in val})
        if absent:
            text += f"; no picture to validate on of {absent:,} of the {len(classes):,} classes"
        return FolderData(root, classes, train, val, text, own_split=True)

    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction {val_fraction} is not between 0 and 1; 0.2 holds out a fifth")
    ((name, whole),) = splits.items()
    _check_each_class(read[name], whole, classes)
    train, val = _hold_out(read[name], whole.folder, classes, val_fraction, seed)
    held_out = f"{val_fraction:.0%} of each class held out with seed {seed}"
    return FolderData(root, classes, train, val, describe(root, splits, lists, held_out))


def read_lists(splits: Mapping[str, Split]) -> dict[str, PictureList]:
    """The list of each split that has one. Errors: as `read_list`; DataError for a picture in both."""
    lists = {name: read_list(s.listing, s.folder) for name, s in splits.items() if s.listing}
    if len(lists) == 2 and splits[TRAIN].folder == splits["val"].folder:
        trained = {row.path for row in lists[TRAIN].rows}
        for row in lists["val"].rows:
            if row.path in trained:
                raise DataError(
                    f"{lists['val'].where(row)}: {row.path} is in {lists[TRAIN].path} too; expected it in one"
                )
    return lists


def classes_of(splits: Mapping[str, Split], lists: Mapping[str, PictureList]) -> list[str]:
    """The class folders of the training split, or of the only one; the classes of its list if it has none.

    Errors: as `find_classes` and `PictureList.classes`.
    """
    name = TRAIN if TRAIN in splits else next(iter(splits))
    folder = splits[name].folder
    if name in lists and not class_folders(folder):
        return lists[name].classes()
    packed = folder / TRAIN
    if TRAIN not in splits and packed.is_dir() and not is_flat(packed):
        check_unpacked(packed, [p.name for p in class_folders(packed)])
    return find_classes(folder)


def takes_the_rest(splits: Mapping[str, Split]) -> bool:
    """Whether only validation has a list, and training has all other pictures of the same folder."""
    return "val" in splits and TRAIN in splits and splits[TRAIN] == Split(splits["val"].folder)


def list_samples(pictures: PictureList, classes: Sequence[str], whose: str) -> list[Sample]:
    """Errors: as `PictureList.targets`."""
    folder, targets = pictures.folder, pictures.targets(classes, whose)
    return [Sample(folder / row.path, target) for row, target in zip(pictures.rows, targets, strict=True)]


def _read_split(
    split: Split, classes: Sequence[str], pictures: PictureList | None, excluded: Collection[Path]
) -> list[Sample]:
    """Errors: as `list_samples`; DataError for a class folder without pictures."""
    if pictures is not None:
        samples = list_samples(pictures, classes, f"of {TRAIN}ing")
        return [sample for sample in samples if sample.path not in excluded]
    samples = []
    for target, name in enumerate(classes):
        paths = pictures_in(split.folder / name)
        kept = [path for path in paths if path not in excluded] if excluded else paths
        if not kept:
            why = f"all {len(paths)} pictures are left out" if paths else "no picture inside"
            raise DataError(
                f"{split.folder / name}: {why}; add some, or remove the class folder from every split"
            )
        samples += [Sample(path, target) for path in kept]
    return samples


def _check_each_class(samples: Sequence[Sample], split: Split, classes: Sequence[str]) -> None:
    """Errors: DataError for classes that a list leaves without a picture to train on."""
    found = {sample.target for sample in samples}
    missing = [name for target, name in enumerate(classes) if target not in found]
    if missing:
        raise DataError(
            f"{split.listing or split.folder}: no picture to train on of {len(missing):,} of the "
            f"{len(classes):,} classes ({name_some(missing)}); list some of each"
        )


def _hold_out(
    samples: Sequence[Sample], whole: Path, classes: Sequence[str], val_fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(training, validation). Errors: DataError for a class with a single picture."""
    of_class: list[list[Sample]] = [[] for _ in classes]
    for sample in samples:
        of_class[sample.target].append(sample)
    train, val = [], []
    for name, own in zip(classes, of_class, strict=True):
        if len(own) < 2:
            raise DataError(f"{whole / name}: one picture; expected at least two, to hold one out")
        ranked = sorted(own, key=lambda s: rank(s.path.relative_to(whole), seed))
        held = min(max(1, round(len(own) * val_fraction)), len(own) - 1)
        val += sorted(ranked[:held], key=lambda s: s.path)
        train += sorted(ranked[held:], key=lambda s: s.path)
    return train, val


def rank(path: Path, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{path.as_posix()}".encode()).digest()


def describe(
    root: Path, splits: Mapping[str, Split], lists: Mapping[str, PictureList], held_out: str = ""
) -> str:
    """Folders and lists that the splits come from, or what is `held_out`; then lists that are not used."""
    if held_out:
        text = f"{held_out}, of {_source(root, TRAIN, splits, lists)}" if lists else held_out
    elif len(splits) == 2 and not lists:
        text = f"the folders {' and '.join(f'{split.folder.name}/' for split in splits.values())}"
    else:
        text = " and ".join(_source(root, name, splits, lists) for name in splits)
    unused = unused_lists(root, [split.listing for split in splits.values() if split.listing])
    others = [shorten(path, root) for path in unused]
    if set(splits) == {TRAIN}:  # a flat test/, whose classes are nobody's to know
        others += [f"{name}/ without classes" for name in HELD_OUT if is_flat(picture_root(root) / name)]
    return f"{text}; not used: {', '.join(others)}" if others else text


def _source(root: Path, name: str, splits: Mapping[str, Split], lists: Mapping[str, PictureList]) -> str:
    folder = f"{splits[name].folder.resolve().name}/"
    if name in lists:
        chosen, total = len(lists[name].rows), lists[name].total
        count = f"all {total:,}" if chosen == total else f"{chosen:,} of the {total:,}"
        return f"{shorten(lists[name].path, root)} ({count} pictures in {folder})"
    return f"all others in {folder}" if takes_the_rest(splits) else f"the folder {folder}"


def eval_samples(data: str | Path, classes: Sequence[str]) -> tuple[list[Sample], str]:
    """Pictures to measure a model with `classes` on, and where they come from in words.

    The validation split if there is one, else all. Classes are matched by name; numbers in a list count the
    class folders, or the model's sorted classes where there are none. Errors: ValueError for a class that the
    model does not know; DataError for what is wrong in a list.
    """
    root = find_root(data)
    splits = find_splits(root)
    name = "val" if "val" in splits else next(iter(splits))
    split = splits[name]
    index = {known: i for i, known in enumerate(classes)}
    if split.listing:
        pictures = read_list(split.listing, split.folder)
        own = [p.name for p in class_folders(splits.get(TRAIN, split).folder)] or sorted(classes)
        samples = list_samples(pictures, own, "of the data" if own != sorted(classes) else "of the model")
        for unknown in sorted({own[sample.target] for sample in samples} - set(index)):
            raise ValueError(f"{split.listing}: {unknown_class(unknown, classes)}")
        samples = [Sample(sample.path, index[own[sample.target]]) for sample in samples]
        return samples, describe(root, {name: split}, {name: pictures})
    samples = []
    for class_folder in class_folders(split.folder):
        if class_folder.name not in index:
            raise ValueError(f"{class_folder}: {unknown_class(class_folder.name, classes)}")
        samples += [Sample(path, index[class_folder.name]) for path in pictures_in(class_folder)]
    if not samples:
        raise ValueError(
            f"{split.folder}: no pictures in class folders; expected {split.folder.name}/<class>/*.jpg"
        )
    return samples, describe(
        root, {name: split}, {}, "" if name == "val" else "all, as no validation split is there"
    )


def unknown_class(name: str, classes: Sequence[str]) -> str:
    known = f"{', '.join(list(classes)[:12])}{', ...' if len(classes) > 12 else ''}"
    return f"the model has no class {name!r}; it knows {known}{nearest(name, classes)}"


def class_names(classes: Sequence[str]) -> list[str]:
    """Readable names: ImageNet's WordNet ids (n01440764) get their first word (tench), others stay.

    Where two would be called alike the id follows: "crane (n02012849)" is a bird, "crane (n03126707)" not.
    """
    if not classes or not all(SYNSET.fullmatch(c) for c in classes):
        return list(classes)
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())
    names = [info.label_name_to_description(c).split(",")[0].strip() if c in known else c for c in classes]
    counts = Counter(names)
    return [f"{name} ({c})" if counts[name] > 1 else name for name, c in zip(names, classes, strict=True)]
