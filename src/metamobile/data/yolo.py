"""Boxes and polygons in YOLO's text files: a row an object, a file a picture, numbers from 0 to 1.

A row is `class x y width height`, the box's centre and size, or `class x y x y x y ...`, a polygon. The file
of images/a/1.jpg is labels/a/1.txt, or lies beside the picture; a picture without one has no objects. Classes
stand in Ultralytics' data.yaml or in classes.txt.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metamobile.data.box_sample import ROUNDING, BoxGatherer, BoxSplit, is_number, read_size
from metamobile.data.inspect import Problem
from metamobile.data.layout import HELD_OUT, TRAIN, name_some, shorten
from metamobile.data.pictures import is_picture, names_in, pictures_in
from metamobile.errors import DataError

IMAGES, LABELS = "images", "labels"
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
ROW = "expected 'class x y width height', or a class and a polygon's x and y"


@dataclass
class YoloLayout:
    """`places` of each split ("train", "val", or "all"): folders of pictures, or text files of their paths.

    `names` are the classes by number, None where nothing tells them. `source_file` is the data.yaml, or the
    folder where there is none.
    """

    root: Path
    places: dict[str, list[Path]]
    names: dict[int, str] | None
    source_file: Path
    _pictures: dict[str, list[Path]] = field(default_factory=dict, repr=False)

    @property
    def splits(self) -> list[str]:
        return list(self.places)

    def source(self, split: str) -> Path:
        return self.places[split][0]

    def name(self, split: str) -> str:
        """In words: the folders or files of the split, and the yaml that names them."""
        names = [
            f"{p.resolve().name if p == self.root else shorten(p, self.root)}{'/' if p.is_dir() else ''}"
            for p in self.places[split]
        ]
        named = f" (of {self.source_file.name})" if self.source_file.is_file() else ""
        return f"{', '.join(names)}{named}"

    def classes(self, split: str) -> tuple[list[str], list[int]]:
        """(names, numbers); without names, as many as the labels of all splits count."""
        if self.names is None:
            highest = max((self._highest(name) for name in self.splits), default=-1)
            self.names = {number: f"class {number}" for number in range(highest + 1)}
        numbers = sorted(self.names)
        return [self.names[number] for number in numbers], numbers

    def pictures(self, split: str) -> list[Path]:
        """Errors: DataError for a place that is missing, and for a split without pictures."""
        if split not in self._pictures:
            found = [path for place in self.places[split] for path in self._pictures_of(place)]
            if not found:
                raise DataError(f"{self.source(split)}: no pictures; expected files such as *.jpg")
            self._pictures[split] = list(dict.fromkeys(found))
        return self._pictures[split]

    def read(self, split: str, excluded: Collection[Path] = ()) -> BoxSplit:
        """Labels are places in `classes`. Errors: DataError as `pictures`, or if no picture has labels."""
        pictures = self.pictures(split)
        if not any(label_file(path).is_file() for path in pictures):
            raise DataError(
                f"{self.source(split)}: none of its {len(pictures):,} pictures has labels; expected "
                f"{label_file(pictures[0])} for {pictures[0].name}"
            )
        label_of = {number: label for label, number in enumerate(self.classes(split)[1])}
        found, gathered, with_masks = BoxSplit(), [], False
        for number, path in enumerate(pictures, start=1):
            if path in excluded:
                continue
            if not path.is_file():
                found.problems.append(Problem(path, "missing picture", f"named by {self.source(split)}"))
            elif (size := read_size(path, found.problems)) is not None:
                gatherer = BoxGatherer(path, size, number, label_file(path), found.problems)
                for line, row in _rows(gatherer.source, found.problems):
                    with_masks |= len(row) > 5
                    _add(gatherer, f"line {line}", row, label_of)
                gathered.append(gatherer)
        found.samples = [gatherer.sample(with_masks) for gatherer in gathered]
        return found

    def strays(self, split: str) -> list[Problem]:
        """Label files of pictures that are not there, listed or not."""
        folders = [place for place in self.places[split] if place.is_dir()]
        if len(folders) < len(self.places[split]):
            folders += [path.parent for path in self.pictures(split)]
        problems = []
        for folder in dict.fromkeys(folders):
            labels = label_file(folder / "picture").parent
            if not folder.is_dir() or not labels.is_dir() or labels == folder:
                continue  # beside the pictures, any text may lie
            known = {os.path.splitext(name)[0] for name in names_in(folder) if is_picture(name)}
            for name in names_in(labels):
                stem, suffix = os.path.splitext(name)
                if suffix == ".txt" and stem not in known and Path(name).name not in NAME_FILES:
                    detail = f"no picture {folder / stem}.*"
                    problems.append(Problem(labels / name, "label without picture", detail))
        return problems

    def _pictures_of(self, place: Path) -> list[Path]:
        if place.is_dir():
            return pictures_in(place)
        if not place.is_file():
            raise DataError(
                f"{self.source_file}: names {place}, which is not there; expected a folder of pictures"
            )
        paths = []
        for line in _read_text(place).splitlines():
            if text := line.strip():
                near = place.parent / text
                paths.append(near if near.is_file() else _place(self.root, text))
        return paths

    def _highest(self, split: str) -> int:
        rows = (row for path in self.pictures(split) for _, row in _rows(label_file(path), []))
        return max((int(row[0]) for row in rows if row and row[0] == int(row[0])), default=-1)


def label_file(picture: Path) -> Path:
    """The last folder images/ becomes labels/; the file beside the picture where that is not there."""
    beside = picture.with_suffix(".txt")
    parts = list(beside.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == IMAGES:
            parts[place] = LABELS
            path = Path(*parts)
            return path if path.parent.is_dir() or not beside.is_file() else beside
    return beside


def find_yolo(root: Path) -> YoloLayout | None:
    """What a data.yaml says, or images/ and labels/ as they lie; None where there is neither.

    Errors: as `open_yaml`; ValueError for several yaml files that no name tells apart.
    """
    preferred = [root / name for name in (*YAMLS, f"{root.resolve().name}.yaml")]
    yamls = [path for path in preferred if path.is_file()][:1]
    if not yamls:
        yamls = yamls_of_pictures(root)
    if len(yamls) > 1:
        raise ValueError(f"{root}: {name_some([p.name for p in yamls])}: which? name one as DATA")
    if yamls:
        return open_yaml(yamls[0])
    places = _find_places(root)
    return YoloLayout(root, places, _find_names(root), root) if places else None


def yamls_of_pictures(root: Path) -> list[Path]:
    """Those in the folder that name pictures to train on or to validate on."""
    found = [path for path in sorted(root.glob("*.y*ml")) if not path.name.startswith(".")]
    return [path for path in found if _names_pictures(_read_text(path))]


def _names_pictures(text: str) -> bool:
    """train or val with a path or a list of them; settings may have such keys with something else inside."""
    if not re.search(r"(?m)^(train|val)\s*:", text):
        return False
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return True  # its reader says what is broken
    values = [content[key] for key in ("train", "val") if content.get(key)]
    return not values or any(isinstance(value, str | list) for value in values)


def open_yaml(path: Path) -> YoloLayout:
    """What Ultralytics' data.yaml says. Errors: DataError for what is broken or lacking in it."""
    try:
        content = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: broken yaml ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(content, dict) or not (content.get(TRAIN) or content.get("val")):
        raise DataError(f"{path}: names no pictures; expected train: images/train and val: images/val")
    if "kpt_shape" in content:
        raise DataError(f"{path}: has kpt_shape, so its labels are poses; expected boxes or polygons")
    base = path.parent
    if content.get("path") and (base / str(content["path"])).is_dir():
        base /= str(content["path"])  # an absolute one stands alone
    places = {}
    for split, names in ((TRAIN, (TRAIN,)), ("val", HELD_OUT)):
        entry = next((content[name] for name in names if content.get(name)), None)
        if entry:
            entries = entry if isinstance(entry, list) else [entry]
            places[split] = [_place(base, str(text)) for text in entries]
    return YoloLayout(base, places, _names_of(path, content), path)


def _place(base: Path, text: str) -> Path:
    """Roboflow writes ../train/images for what lies beside the yaml; an absolute path may have moved."""
    tries = [base / text, base / text.removeprefix("../")]
    parts = Path(text).parts
    tries += [base.joinpath(*parts[i:]) for i in range(1, len(parts))] if Path(text).is_absolute() else []
    return next((path for path in tries if path.exists()), tries[0])


def _names_of(path: Path, content: dict[str, Any]) -> dict[int, str] | None:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None and isinstance(count, int):
        names = {number: f"class {number}" for number in range(count)}
    if names is None:
        return None
    if not isinstance(names, dict) or not names or not all(isinstance(number, int) for number in names):
        raise DataError(f"{path}: names {str(names)[:80]}; expected a list, or numbers with names")
    if isinstance(count, int) and count != len(names):
        raise DataError(f"{path}: nc {count}, but {len(names)} names; expected one for each class")
    return _unlike({number: str(name) for number, name in names.items()}, path)


def _find_names(root: Path) -> dict[int, str] | None:
    folders = [root, root / LABELS, root / LABELS / TRAIN, root / TRAIN / LABELS, root / TRAIN]
    path = next((f / n for f in folders for n in NAME_FILES if (f / n).is_file()), None)
    if path is None:
        return None
    names = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: an empty list of classes; expected a name a line")
    return _unlike(dict(enumerate(names)), path)


def _unlike(names: dict[int, str], path: Path) -> dict[int, str]:
    double = [name for name, count in Counter(names.values()).items() if count > 1]
    if double:
        raise DataError(f"{path}: classes of the same name ({name_some(double)}); give each its own")
    return names


def _find_places(root: Path) -> dict[str, list[Path]]:
    """Without a yaml: images/train or train/images, images/ undivided, pictures with texts beside them."""
    for above, below in ((root / IMAGES, ""), (root, IMAGES)):
        places = {}
        for split, names in ((TRAIN, (TRAIN,)), ("val", HELD_OUT)):
            for name in names:
                folders = [f / below for f in sorted(above.glob(f"{name}*")) if _is_split(f, name)]
                if folders := [folder for folder in folders if folder.is_dir()]:
                    places[split] = folders
                    break
        if places:
            return places
    if (root / IMAGES).is_dir() and (root / LABELS).is_dir():
        return {"all": [root / IMAGES]}
    beside = any(is_picture(path) and path.with_suffix(".txt").is_file() for path in root.iterdir())
    return {"all": [root]} if beside else {}


def _is_split(folder: Path, name: str) -> bool:
    """train/, train2017/: a year may follow."""
    return folder.is_dir() and re.fullmatch(rf"{name}\d*", folder.name) is not None


def _read_text(path: Path) -> str:
    """Errors: DataError for what is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8; write it anew") from error


def _rows(path: Path, problems: list[Problem]) -> Iterator[tuple[int, list[float]]]:
    """(line, numbers) of each row; a row that is not numbers is a problem. Nothing for a missing file."""
    if not path.is_file():
        return
    try:
        lines = _read_text(path).splitlines()
    except DataError as error:
        problems.append(Problem(path, "not numbers", str(error).removeprefix(f"{path}: ")))
        return
    for line, text in enumerate(lines, start=1):
        try:
            row = [float(word) for word in text.split()]
        except ValueError:
            row = [float("nan")]
        if not all(map(is_number, row)):
            problems.append(Problem(path, "not numbers", f"line {line}: {text.strip()[:60]!r}; {ROW}"))
        elif row:
            yield line, row


def _add(gatherer: BoxGatherer, where: str, row: Sequence[float], label_of: dict[int, int]) -> None:
    values, size = row[1:], gatherer.size
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return gatherer.refuse(where, "not numbers", f"a row of {len(row)} numbers; {ROW}")
    if row[0] not in label_of:
        known = f"classes are {min(label_of)} to {max(label_of)}" if label_of else "there are no classes"
        return gatherer.refuse(where, "unknown category", f"class {row[0]:g}; {known}")
    label = label_of[int(row[0])]
    points = [value * size[i % 2] for i, value in enumerate(values)]
    if len(values) == 4:
        x, y, w, h = points
        if w < 0 or h < 0:
            return gatherer.refuse(where, "inverted box", f"width {values[2]:g}, height {values[3]:g}")
    beyond = [v for i, v in enumerate(values) if not -ROUNDING < v * size[i % 2] < size[i % 2] + ROUNDING]
    if beyond:
        return gatherer.refuse(where, "out of 0..1", f"{beyond[0]:g}; {ROW}, as shares of the picture")
    if len(values) == 4:
        return gatherer.add(where, (x - w / 2, y - h / 2, w, h), label)
    left, top = min(points[::2]), min(points[1::2])
    box = left, top, max(points[::2]) - left, max(points[1::2]) - top
    gatherer.add(where, box, label, segmentation=[points])
