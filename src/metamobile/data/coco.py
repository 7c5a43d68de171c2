"""Boxes and masks in COCO's json: where it lies, where its pictures lie, what it says."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from metamobile.data.box_sample import BoxGatherer, BoxSplit, is_number, read_size
from metamobile.data.inspect import Problem
from metamobile.data.layout import HELD_OUT, TRAIN, name_some, shorten
from metamobile.errors import DataError

ROBOFLOW = "_annotations.coco.json"
# COCO's other annotations, which lie beside those of boxes
OTHERS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info", "sentences", "lvis_image")
_SPLIT = re.compile(r"(?:^|[^a-z])((train|valid|validation|val|test)(?:[^a-z].*)?)$")
LOOKED_AT = 200  # pictures that decide in which folder a json's pictures lie


@dataclass
class CocoLayout:
    """A json for each split; a split is "train", "val", or "all" for one that is not divided."""

    root: Path
    files: dict[str, Path]
    loaded: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def splits(self) -> list[str]:
        return list(self.files)

    def source(self, split: str) -> Path:
        return self.files[split]

    def name(self, split: str) -> str:
        return shorten(self.files[split], self.root)

    def classes(self, split: str) -> tuple[list[str], list[int]]:
        """(names, ids) in the order of the json's ids. Errors: DataError for names or ids that are double.

        Roboflow writes the project's name as category 0, above all others: no class unless it has boxes.
        """
        path, content = self.files[split], self._load(split)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        above = {str(category.get("supercategory")) for category in categories}
        used = {str(row.get("category_id")) for row in content["annotations"]}
        ids = [
            c["id"]
            for c in categories
            if str(c["id"]) in used or c.get("supercategory") != "none" or str(c["name"]) not in above
        ]
        names = [str(category["name"]) for category in categories if category["id"] in set(ids)]
        for what, values in (("id", [category["id"] for category in categories]), ("name", names)):
            double = [str(value) for value, count in Counter(values).items() if count > 1]
            if double:
                raise DataError(
                    f"{path}: categories of the same {what} ({name_some(double)}); give each its own"
                )
        if not names:
            raise DataError(f"{path}: no categories; expected at least one, with id and name")
        return names, ids

    def read(self, split: str, excluded: Collection[Path] = ()) -> BoxSplit:
        """Labels are places in the split's own `classes`. Errors: DataError for a json that is broken, or
        none of whose pictures is found.
        """
        path, content = self.files[split], self._load(split)
        label_of = {number: label for label, number in enumerate(self.classes(split)[1])}
        rows: dict[int | None, list[dict]] = defaultdict(list)
        for row in content["annotations"]:
            number = row.get("image_id")
            rows[number if isinstance(number, int) else None].append(row)
        with_masks = any(row.get("segmentation") for row in content["annotations"])
        folders = self._folders(split)
        names = [str(picture["file_name"]).replace("\\", "/") for picture in content["images"]]
        if not names:
            raise DataError(f"{path}: names no pictures; expected some in 'images'")
        home = _home(names, folders)
        if home is None:
            places = ", ".join(f"{shorten(folder, self.root)}/" for folder in folders)
            raise DataError(
                f"{path}: none of its {len(names):,} pictures is found, such as {names[0]}; looked in "
                f"{self.root} ({places})"
            )
        found = BoxSplit()
        seen: dict[Path, Any] = {}
        for picture, name in zip(content["images"], names, strict=True):
            own = rows.pop(picture["id"], [])
            place = next((f / name for f in (home, *folders) if (f / name).is_file()), home / name)
            if place in excluded:
                continue
            number = picture["id"]
            if (earlier := seen.setdefault(place, number)) != number:
                found.problems.append(Problem(place, "listed twice", f"as image {earlier} and {number}"))
            elif (size := _size(picture, place, found.problems)) is not None:
                gatherer = BoxGatherer(place, size, number, path, found.problems)
                for row in own:
                    _add(gatherer, row, label_of)
                found.samples.append(gatherer.sample(with_masks))
        for row in chain.from_iterable(rows.values()):
            detail = f"annotation {row.get('id')}: image_id {row.get('image_id')!r}"
            found.problems.append(Problem(path, "unknown picture", detail))
        return found

    def strays(self, split: str) -> list[Problem]:
        return []  # one json has all annotations: those without a picture are problems of reading it

    def _load(self, split: str) -> dict[str, Any]:
        if split not in self.loaded:
            self.loaded[split] = load_coco(self.files[split])
        return self.loaded[split]

    def _folders(self, split: str) -> list[Path]:
        """Where the pictures may lie, the likeliest first."""
        path = self.files[split]
        found = _SPLIT.search(path.stem.lower())
        names = [path.stem[found.start(1) :], found[2]] if found else []
        names += {TRAIN: [TRAIN], "val": list(HELD_OUT)}.get(split, [])
        inner = [p for name in names for p in (Path(name), Path("images", name), Path(name, "images"))]
        near = [path.parent, path.parent / "images", path.parent / "data"]
        places = [self.root / p for p in inner] + near + [self.root, self.root / "images"]
        return [place for place in dict.fromkeys(places) if place.is_dir()]


def load_coco(path: Path) -> dict[str, Any]:
    """Errors: DataError for what is not json, or not COCO's form."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of which bad json and bad text are kinds
        raise DataError(f"{path}: broken json ({error}); write it anew") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); expected a json") from error
    parts = ("images", "annotations", "categories")
    lacking = [k for k in parts if not isinstance(content, dict) or not isinstance(content.get(k), list)]
    if lacking:
        raise DataError(f"{path}: not COCO's form, without {', '.join(lacking)}; expected {', '.join(parts)}")
    for part, name in (("images", "file_name"), ("categories", "name"), ("annotations", "")):
        for row in content[part]:
            if not isinstance(row, dict) or (name and not {"id", name} <= set(row)):
                expected = f"id and {name} in each" if name else "objects"
                raise DataError(f"{path}: {part} has {str(row)[:80]}; expected {expected}")
            if name and not isinstance(row["id"], int):
                raise DataError(f"{path}: {part} has the id {row['id']!r}; expected a whole number")
    double = [str(k) for k, n in Counter(row["id"] for row in content["images"]).items() if n > 1]
    if double:
        raise DataError(f"{path}: images of the same id ({name_some(double)}); give each its own")
    return content


def find_coco(root: Path) -> CocoLayout | None:
    """The json of each split in a folder, by names; None where there is none.

    Errors: ValueError for several that no name tells apart.
    """
    files: dict[str, Path] = {}
    for split, names in (
        (TRAIN, (TRAIN,)),
        ("val", HELD_OUT),
    ):  # a json in each split's folder, Roboflow's way
        exported = [path for name in names for path in _jsons_in(root / name)]
        if exported and len(_jsons_in(exported[0].parent)) > 1:
            raise ValueError(f"{exported[0].parent}: several json of boxes; leave one, or name one as DATA")
        files |= {split: exported[0]} if exported else {}
    if files:
        return CocoLayout(root, files)
    for folder in (root / "annotations", root):
        if jsons := _jsons_in(folder):
            return CocoLayout(root, _by_split(folder, jsons))
    return None


def _jsons_in(folder: Path) -> list[Path]:
    """COCO's, of boxes: settings and results may lie beside them."""
    if (folder / ROBOFLOW).is_file():
        return [folder / ROBOFLOW]
    jsons = [p for p in sorted(folder.glob("*.json")) if not p.name.startswith((".", *OTHERS))]
    jsons = [p for p in jsons if p.name.startswith("instances")] or jsons
    return [p for p in jsons if folder.name == "annotations" or looks_like_coco(p)]


def open_json(path: Path) -> CocoLayout:
    """One json that is named itself."""
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    return CocoLayout(root, {"all": path})


def _by_split(folder: Path, jsons: Sequence[Path]) -> dict[str, Path]:
    splits = {path: found[2] for path in jsons if (found := _SPLIT.search(path.stem.lower()))}
    files: dict[str, Path] = {}
    for split, names in ((TRAIN, (TRAIN,)), ("val", HELD_OUT)):
        named = [path for name in names for path, own in splits.items() if own == name]
        same = [path for path in named if splits[path] == splits[named[0]]]
        if len(same) > 1:
            raise ValueError(
                f"{folder}: {name_some([p.name for p in same])} are all of the split {splits[same[0]]!r}; "
                "leave one, or name one as DATA"
            )
        files |= {split: named[0]} if named else {}
    if files or len(jsons) == 1:
        return files or {"all": jsons[0]}
    raise ValueError(
        f"{folder}: {name_some([p.name for p in jsons])}: which is for training? name one as DATA, or call "
        "them instances_train.json and instances_val.json"
    )


def looks_like_coco(path: Path) -> bool:
    """By its text: a broken one is still one."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        text = head + file.read()
    return sum(word in text for word in (b'"images"', b'"annotations"', b'"categories"')) > 1


def _home(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The folder with the most of the pictures; None for none."""
    step = max(1, len(names) // LOOKED_AT)
    some = names[::step]
    counts = [sum((folder / name).is_file() for name in some) for folder in folders]
    best = max(counts, default=0)
    return folders[counts.index(best)] if best else None


def _size(picture: dict, path: Path, problems: list[Problem]) -> tuple[int, int] | None:
    """From the json, else from the picture; None for a picture that is missing or unreadable."""
    if not path.is_file():
        problems.append(Problem(path, "missing picture", f"image {picture['id']} of the json"))
        return None
    width, height = picture.get("width"), picture.get("height")
    if is_number(width) and is_number(height) and width > 0 and height > 0:
        return int(width), int(height)
    return read_size(path, problems)


def _add(gatherer: BoxGatherer, row: dict, label_of: dict[int, int]) -> None:
    where = f"annotation {row.get('id')} of {gatherer.path.name}"
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        return gatherer.refuse(where, "not numbers", f"bbox {box}, expected x, y, width, height")
    category = row.get("category_id")
    label = label_of.get(category) if isinstance(category, int) else None
    if label is None:
        return gatherer.refuse(where, "unknown category", f"category_id {category!r}")
    area = row.get("area")
    gatherer.add(
        where,
        box,
        label,
        crowd=bool(row.get("iscrowd")),
        area=float(area) if is_number(area) else None,
        segmentation=row.get("segmentation") or None,
    )
