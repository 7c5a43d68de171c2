"""Pictures with masks as a data set: which pictures, which classes, which split.

A mask is a picture with a number, or a colour, for the class of each pixel. Folders alone decide the layout;
a mask belongs to the picture of the same name below its folder, whatever their suffixes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metamobile.data import ade20k
from metamobile.data.folder import rank, unknown_class
from metamobile.data.layout import BY_HEART, HELD_OUT, TRAIN, name_some
from metamobile.data.mask_classes import (
    CLASSES,
    IGNORED,
    PLAIN,
    UNKNOWN,
    Coding,
    Legend,
    check_count,
    count_values,
    given_legend,
    model_legend,
    name_colour,
    read_classes,
    read_values,
    refuse_colours,
    settle,
)
from metamobile.data.pictures import is_picture, names_in, pictures_in
from metamobile.errors import DataError, nearest

__all__ = ["IGNORED", "MaskData", "MaskSample", "eval_masks", "find_masks", "open_masks"]

PICTURES, MASKS = "images", ("masks", "annotations", "labels")
TRAINS = (TRAIN, "training")
ENDINGS = ("_mask", "-mask", "_masks", "_labelids", "_label", "_labels", "_gt", "_seg", "_l")
LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".gif")  # taken before others of the same name
FORMS = (
    "expected images/{train,val} and masks/{train,val} (or annotations/, labels/), "
    "{train,val}/{images,masks}, or images/ and masks/"
)
_ADE = re.compile(r"(^|[^a-z])ade(20k|challenge|[^a-z]|$)")  # and not "facades"


@dataclass(frozen=True, slots=True)
class MaskSample:
    """A picture and the mask that tells the class of each of its pixels."""

    path: Path
    mask: Path
    coding: Coding = field(default=PLAIN, repr=False)

    def read_mask(self) -> NDArray[np.uint8]:
        """(H, W) class indices from 0, IGNORED for pixels that count for nothing; as it lies in the file.

        Errors: as `read_values`; DataError for a value that no class has.
        """
        values, coloured = read_values(self.mask)
        classes = self.coding.decode(values, coloured)
        unknown = classes == UNKNOWN
        if unknown.any():
            found = count_values(values[unknown], coloured)
            raise DataError(f"{self.mask}: {describe_unknown(found, coloured)} no class; {ADVICE[coloured]}")
        return classes


ADVICE = (
    f"name it in {CLASSES} or data.classes, or give it as data.ignore",  # of numbers
    f"add it to {CLASSES} as 'name r g b'",  # of colours
)


def describe_unknown(found: dict[int, int], coloured: bool) -> str:
    """{value: pixels} in words, those of most pixels first: "number 7 (12 pixels), 9 (1 pixel) have"."""
    ranked = sorted(found.items(), key=lambda item: -item[1])
    named = [
        f"{name_colour(value) if coloured else value} ({n:,} pixel{'s' if n > 1 else ''})"
        for value, n in ranked
    ]
    what = "colour" if coloured else "number"
    return f"{what}{'s' if len(found) > 1 else ''} {name_some(named)} {'have' if len(found) > 1 else 'has'}"


@dataclass
class MaskData:
    """Classes in the order of their numbers, the two splits, and in words how they came about (`split`)."""

    root: Path
    classes: list[str]
    train: list[MaskSample]
    val: list[MaskSample]
    split: str
    own_split: bool = False


@dataclass
class Pairs:
    """Pictures with their masks, and those of either that are left over."""

    matched: list[tuple[Path, Path]]
    bare: list[Path]
    strays: list[Path]


@dataclass(frozen=True)
class MaskFolders:
    """The folders of a split's pictures and of its masks."""

    pictures: Path
    masks: Path

    def pair(self) -> Pairs:
        """A mask has its picture's name, or that name and one of ENDINGS."""
        exact: dict[str, Path] = {}
        ended: dict[str, Path] = {}
        masks = sorted(pictures_in(self.masks), key=lambda path: path.suffix.lower() not in LOSSLESS)
        for mask in masks:
            exact.setdefault(_name_below(mask, self.masks), mask)
        pictures = {picture: _name_below(picture, self.pictures) for picture in pictures_in(self.pictures)}
        for name in sorted(set(exact) - set(pictures.values())):  # "left_L" may be a picture's own name
            for ending in ENDINGS:
                if name.lower().endswith(ending):
                    ended.setdefault(name[: -len(ending)], exact[name])
        pairs = Pairs([], [], [])
        for picture, name in pictures.items():
            own = exact.get(name) or ended.get(name)
            if own is not None:
                pairs.matched.append((picture, own))
            else:
                pairs.bare.append(picture)
        used = {mask for _, mask in pairs.matched}
        pairs.strays = sorted(mask for mask in masks if mask not in used)
        return pairs


def _name_below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


@dataclass(frozen=True)
class MaskLayout:
    """`splits` has "train" and "val", either of them, or "all" for what is not divided."""

    root: Path
    splits: dict[str, MaskFolders]
    is_ade: bool
    unused: tuple[str, ...] = ()  # folders of pictures without masks

    def describe(self) -> str:
        """The folders of the splits in words."""
        parts = [f"{folders.pictures.relative_to(self.root)}/" for folders in self.splits.values()]
        text = f"the folder{'s' if len(parts) > 1 else ''} {' and '.join(parts)}"
        return f"{text}; not used: {', '.join(self.unused)}" if self.unused else text

    def legend(self, classes: Sequence[str] | None = None) -> Legend | None:
        """What names the classes: classes.txt, else `classes`, else ADE20K's own; None where nothing does.

        Errors: as `read_classes` and `given_legend`; ValueError for `classes` that classes.txt contradicts.
        """
        given = given_legend(classes) if classes else None
        if (path := self.root / CLASSES).is_file():
            legend = read_classes(path)
            if given and given.classes != legend.classes:
                raise ValueError(
                    f"{path}: names {name_some(legend.classes)}, data.classes {name_some(given.classes)}; "
                    "expected the same, or one of them alone"
                )
            return legend
        if given or not self.is_ade:
            return given
        names = ade20k.read_names(self.root)
        return Legend({0: None, **names}, f"ADE20K ({len(names)} names, 0 ignored)")


def find_masks(data: str | Path) -> MaskLayout:
    """The pictures and masks in a folder; "shapes" is drawn at first use.

    Errors: ValueError for a folder that is missing, with the nearest name, or without masks; DataError for
    a validation folder without masks.
    """
    if str(data) == "shapes":
        from metamobile.data.shape_scenes import masks_folder

        data = masks_folder()
    root = Path(data)
    if not root.is_dir():
        if root.exists():
            raise ValueError(f"{root}: a file; {FORMS}, or 'shapes'")
        names = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        raise ValueError(
            f"{root}: no such folder; {FORMS}, or 'shapes'{nearest(root.name, [*names, 'shapes'])}"
        )
    splits: dict[str, MaskFolders] = {}
    unused = []
    for split, called in ((TRAIN, TRAINS), ("val", HELD_OUT)):
        for name in called:
            pictures, masks = _folders_of(root, name)
            if pictures and masks and split not in splits:
                splits[split] = MaskFolders(pictures, masks)
            elif pictures and not masks and name != "test":
                raise DataError(f"{pictures}: its pictures have no masks; {FORMS}")
            elif pictures:
                unused.append(f"{pictures.relative_to(root)}/")
    if not splits:
        whole = root / PICTURES
        masks = next((root / name for name in MASKS if _has_pictures(root / name)), None)
        if masks is None or not _has_pictures(whole):
            raise ValueError(f"{root}: no masks found; {FORMS}")
        splits["all"] = MaskFolders(whole, masks)
    return MaskLayout(root, splits, _is_ade(root, splits), tuple(unused))


def _folders_of(root: Path, split: str) -> tuple[Path | None, Path | None]:
    """The folders of a split's pictures and of its masks; None for what is not there or empty."""
    for pictures, masks in (
        (root / PICTURES / split, [root / name / split for name in MASKS]),
        (root / split / PICTURES, [root / split / name for name in MASKS]),
    ):
        if _has_pictures(pictures):
            return pictures, next(filter(_has_pictures, masks), None)
    return None, None


def _has_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(map(is_picture, names_in(folder)))


def _is_ade(root: Path, splits: dict[str, MaskFolders]) -> bool:
    if (root / ade20k.INFORMATION).is_file() or _ADE.search(root.resolve().name.lower()):
        return True
    own = {(folders.pictures, folders.masks) for folders in splits.values()}
    places = [(root / "images" / name, root / "annotations" / name) for name in ("training", "validation")]
    return own == set(places)


def open_masks(
    data: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    exclude: Collection[Path] = (),
    classes: Sequence[str] | None = None,
    ignore: int | None = None,
) -> MaskData:
    """The data set in `data`, with its own splits, or split here by `seed` and each picture's path.

    `classes` names the numbers from 0 where no classes.txt does; without either, each number found is a
    class. Pixels of 255, and of `ignore`, are ignored. `exclude` leaves out pictures, or masks with their
    pictures. Errors: ValueError as `find_masks` and for a `val_fraction` not in 0..1; DataError for pictures
    without masks, for what is wrong in classes.txt, and for fewer than two classes.
    """
    layout = find_masks(data)
    root, excluded = layout.root, {Path(path) for path in exclude}
    if list(layout.splits) == ["val"]:
        folder = layout.splits["val"].pictures.relative_to(root)
        raise ValueError(f"{root}: has {folder}/ but nothing to train on; expected both")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction {val_fraction} is not between 0 and 1; 0.2 holds out a fifth")
    pairs = {name: _pairs_of(folders, excluded) for name, folders in layout.splits.items()}
    legend = _legend_of(layout.legend(classes), pairs, root, ignore)
    names = legend.classes
    coding = legend.coding(names)
    samples = {name: [MaskSample(*pair, coding) for pair in own] for name, own in pairs.items()}
    text, named = layout.describe(), f"classes by {legend.source}"
    if "val" in samples:
        return MaskData(root, names, samples[TRAIN], samples["val"], f"{text}; {named}", own_split=True)
    (whole,) = samples.values()
    if val_fraction == 0:
        return MaskData(root, names, whole, whole, f"{BY_HEART}; {text}; {named}")
    train, val = _hold_out(whole, next(iter(layout.splits.values())), val_fraction, seed)
    held_out = f"{val_fraction:.0%} of the pictures held out with seed {seed}, of {text}"
    return MaskData(root, names, train, val, f"{held_out}; {named}")


def eval_masks(
    data: str | Path, classes: Sequence[str], ignore: int | None = None
) -> tuple[list[MaskSample], str]:
    """Pictures to measure a model with `classes` on, and where they come from in words.

    The validation split if there is one, else all. Classes are matched by name; where the data names none,
    the numbers are those of the model's classes. Errors: as `open_masks`; ValueError for a class that the
    model does not know.
    """
    layout = find_masks(data)
    name = "val" if "val" in layout.splits else next(iter(layout.splits))
    legend = layout.legend() or model_legend(classes, ignore)
    pairs = {split: _pairs_of(folders, set(), "add them") for split, folders in layout.splits.items()}
    legend = _legend_of(legend, pairs, layout.root, ignore)
    for unknown in legend.classes:
        if unknown not in classes:
            raise ValueError(f"{layout.root}: {unknown_class(unknown, classes)}")
    coding = legend.coding(classes)
    samples = [MaskSample(*pair, coding) for pair in pairs[name]]
    text = "all, as no validation split is there"
    if name == "val":
        text = f"the folder {layout.splits[name].pictures.relative_to(layout.root)}/"
    return samples, f"{text}; classes by {legend.source}"


def _pairs_of(
    folders: MaskFolders, excluded: set[Path], advice: str = "add them, or leave such out with --drop-bad"
) -> list[tuple[Path, Path]]:
    """Pictures and masks, sorted. Errors: DataError for pictures without a mask, or when none is left."""
    pairs = folders.pair()
    bare = [path.name for path in pairs.bare if path not in excluded]
    if bare:
        raise DataError(
            f"{folders.pictures}: {len(bare):,} of the {len(bare) + len(pairs.matched):,} pictures have no "
            f"mask in {folders.masks} ({name_some(bare)}); {advice}"
        )
    kept = [pair for pair in pairs.matched if not excluded.intersection(pair)]
    if not kept:
        raise DataError(f"{folders.pictures}: all pictures with a mask are left out; expected some")
    return kept


def _legend_of(
    legend: Legend | None, pairs: dict[str, list[tuple[Path, Path]]], root: Path, ignore: int | None
) -> Legend:
    """Errors: DataError for masks of colours that nobody has named, and for too few classes."""
    masks = [mask for own in pairs.values() for _, mask in own]
    if legend is None or not legend.colours:
        for own in pairs.values():
            if is_coloured(own[0][1]):
                refuse_colours([mask for _, mask in own], root)
    by_colour = legend is not None and legend.colours and is_coloured(masks[0])
    settled = settle(legend, () if by_colour else _numbers_in(masks), ignore)
    check_count(settled, root)
    return settled


def is_coloured(mask: Path) -> bool:
    """By the header alone; false for what cannot be read."""
    try:
        with Image.open(mask) as picture:
            return picture.mode in ("RGB", "RGBA", "RGBX") and picture.format != "JPEG"
    except (OSError, SyntaxError, ValueError, RuntimeError):  # reading it will tell
        return False


def _numbers_in(masks: Sequence[Path]) -> Iterator[set[int]]:
    for mask in masks:
        values, coloured = read_values(mask)
        yield set() if coloured else set(count_values(values, coloured))


def _hold_out(
    samples: Sequence[MaskSample], folders: MaskFolders, val_fraction: float, seed: int
) -> tuple[list[MaskSample], list[MaskSample]]:
    """(training, validation), in the data's order. Errors: DataError for fewer than two pictures."""
    if len(samples) < 2:
        raise DataError(f"{folders.pictures}: one picture; expected at least two, to hold one out")
    order = sorted(
        range(len(samples)), key=lambda i: rank(samples[i].path.relative_to(folders.pictures), seed)
    )
    held = set(order[: min(max(1, round(len(samples) * val_fraction)), len(samples) - 1)])
    train = [sample for i, sample in enumerate(samples) if i not in held]
    return train, [sample for i, sample in enumerate(samples) if i in held]
