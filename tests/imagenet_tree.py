"""ImageNet's layouts on a small scale, with real synsets; and other small data sets for tests of lists.

The pictures of a class have its colour, so that a sample's class is checked against what the picture shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamobile.data.folder import FolderData, Sample, open_folder
from metamobile.data.inspect import inspect_folder

SYNSETS = ["n01440764", "n01443537", "n02012849", "n03126707"]  # tench, goldfish, crane, crane
COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30]])
VAL_CLASSES = [2, 0, 3, 1, 0, 2, 1, 3]  # of ILSVRC2012_val_00000001 and so on
TREE = "ILSVRC/Data/CLS-LOC"


def paint(path: Path, colour: int, number: int) -> None:
    """16x16 pixels of the class's colour, no two pictures alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((16, 16, 3), COLOURS[colour], np.uint8)
    pixels[:8] += np.uint8(number)
    Image.fromarray(pixels).save(path, "JPEG", quality=95)


def shown(path: Path) -> int:
    """The class whose colour a picture has."""
    with Image.open(path) as picture:
        colour = np.asarray(picture.convert("RGB"), float).mean((0, 1))
    return int(np.abs(COLOURS - colour).sum(1).argmin())


def val_name(index: int) -> str:
    return f"ILSVRC2012_val_{index + 1:08}.JPEG"


def fill(base: Path, flat: bool = True, train: int = 3) -> Path:
    """train/<synset>/ with pictures, and val/, flat or of class folders."""
    for target, synset in enumerate(SYNSETS):
        for i in range(train):
            paint(base / f"train/{synset}/{synset}_{10 * i}.JPEG", target, i)
    for i, target in enumerate(VAL_CLASSES):
        folder = base / "val" if flat else base / "val" / SYNSETS[target]
        paint(folder / val_name(i), target, 10 + i)
    return base


def write(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def caffe_lines(separator: str = " ") -> list[str]:
    return [f"{val_name(i)}{separator}{target}" for i, target in enumerate(VAL_CLASSES)]


def solution_lines() -> list[str]:
    """Kaggle's, which are in no order and tell boxes too."""
    lines = [f"{Path(val_name(i)).stem},{SYNSETS[t]} 10 20 110 120 " for i, t in enumerate(VAL_CLASSES)]
    lines[1] += f"{SYNSETS[VAL_CLASSES[1]]} 1 2 3 4 "
    return ["ImageId,PredictionString", *reversed(lines)]


def kaggle(root: Path) -> Path:
    base = fill(root / TREE)
    paint(base / "test/ILSVRC2012_test_00000001.JPEG", 0, 30)
    sets = root / "ILSVRC/ImageSets/CLS-LOC"
    stems = [f"{s}/{s}_{10 * i}" for s in SYNSETS for i in range(3)]
    write(sets / "train_cls.txt", [f"{stem} {i}" for i, stem in enumerate(stems, start=1)])
    write(sets / "val.txt", [f"{Path(val_name(i)).stem} {i + 1}" for i in range(len(VAL_CLASSES))])
    write(sets / "test.txt", ["ILSVRC2012_test_00000001 1"])
    return base


def assert_shown(data: FolderData | list[Sample], classes: Sequence[str] = SYNSETS) -> None:
    samples = data if isinstance(data, list) else data.train + data.val
    assert samples
    for sample in samples:
        assert classes[sample.target] == SYNSETS[shown(sample.path)], sample.path


# ways to lay out the same data; each returns the split in words


def sorted_folders(root: Path) -> str:
    fill(root, flat=False)
    return "the folders train/ and val/"


def sorted_folders_and_a_list_of_the_flat_ones(root: Path) -> str:
    fill(root, flat=False)
    write(root / "val.txt", caffe_lines())
    return "the folder train/ and val.txt (all 8 pictures in val/)"


def caffe(root: Path) -> str:
    fill(root)
    write(root / "val.txt", caffe_lines())
    return "the folder train/ and val.txt (all 8 pictures in val/)"


def tabs(root: Path) -> str:
    fill(root)
    write(root / "val_map.txt", caffe_lines("\t"))
    return "the folder train/ and val_map.txt (all 8 pictures in val/)"


def both_lists_in_meta(root: Path) -> str:
    fill(root)
    write(root / "meta/val.txt", caffe_lines())
    write(
        root / "meta/train.txt", [f"{s}/{s}_{i}.JPEG {t}" for t, s in enumerate(SYNSETS) for i in (0, 10, 20)]
    )
    return "meta/train.txt (all 12 pictures in train/) and meta/val.txt (all 8 pictures in val/)"


def names_for_numbers_and_paths_from_above(root: Path) -> str:
    fill(root)
    write(root / "val.txt", [f"val/{val_name(i)} {SYNSETS[t]}" for i, t in enumerate(VAL_CLASSES)])
    return "the folder train/ and val.txt (all 8 pictures in val/)"


def solution(root: Path) -> str:
    fill(root)
    write(root / "LOC_val_solution.csv", solution_lines())
    write(root / "LOC_train_solution.csv", ["ImageId,PredictionString"])
    words = "the folder train/ and LOC_val_solution.csv (all 8 pictures in val/)"
    return f"{words}; not used: LOC_train_solution.csv"


def synsets_alone(root: Path) -> str:
    fill(root)
    write(root / "imagenet_2012_validation_synset_labels.txt", [SYNSETS[t] for t in VAL_CLASSES])
    return "the folder train/ and imagenet_2012_validation_synset_labels.txt (all 8 pictures in val/)"


def own_tree_with_solution(root: Path) -> str:
    kaggle(root)
    write(root / "LOC_val_solution.csv", solution_lines())
    sets = "ILSVRC/ImageSets/CLS-LOC"
    return (
        f"{sets}/train_cls.txt (all 12 pictures in train/) and LOC_val_solution.csv (all 8 pictures in val/)"
        f"; not used: {sets}/test.txt, {sets}/val.txt"
    )


def own_tree_with_annotations(root: Path) -> str:
    kaggle(root)
    for i, target in enumerate(VAL_CLASSES):
        objects = f"<object><name>{SYNSETS[target]}</name><pose>x</pose></object>" * (1 + i % 2)
        path = root / "ILSVRC/Annotations/CLS-LOC/val" / f"{Path(val_name(i)).stem}.xml"
        write(path, [f"<annotation><folder>val</folder>{objects}</annotation>"])
    sets = "ILSVRC/ImageSets/CLS-LOC"
    return (
        f"{sets}/train_cls.txt (all 12 pictures in train/) and ILSVRC/Annotations/CLS-LOC/val "
        f"(all 8 pictures in val/); not used: {sets}/test.txt, {sets}/val.txt"
    )


def own_tree_sorted(root: Path) -> str:
    base = kaggle(root)
    for i, target in enumerate(VAL_CLASSES):
        (base / "val" / SYNSETS[target]).mkdir(exist_ok=True)
        (base / "val" / val_name(i)).rename(base / "val" / SYNSETS[target] / val_name(i))
    sets = "ILSVRC/ImageSets/CLS-LOC"
    return (
        f"{sets}/train_cls.txt (all 12 pictures in train/) and {sets}/val.txt (all 8 pictures in val/); "
        f"not used: {sets}/test.txt"
    )


LAYOUTS: list[Callable[[Path], str]] = [
    sorted_folders,
    sorted_folders_and_a_list_of_the_flat_ones,
    caffe,
    tabs,
    both_lists_in_meta,
    names_for_numbers_and_paths_from_above,
    solution,
    synsets_alone,
    own_tree_with_solution,
    own_tree_with_annotations,
    own_tree_sorted,
]


def pets(root: Path) -> Path:
    """cats/ and dogs/, four pictures each, without train/ and val/."""
    for target, name in enumerate(("cats", "dogs")):
        for i in range(4):
            paint(root / f"pets/{name}/{name[:3]} {i}.jpg", target, i)
    return root / "pets"


def paths(samples: Sequence[Sample], root: Path) -> list[str]:
    return [s.path.relative_to(root).as_posix() for s in samples]


def error(root: Path) -> str:
    """What opening says, in one line; inspection says the same."""
    with pytest.raises(ValueError) as caught:
        open_folder(root)
    text = str(caught.value)
    assert "\n" not in text
    with pytest.raises(ValueError) as again:
        inspect_folder(root)
    assert str(again.value) == text
    return text
