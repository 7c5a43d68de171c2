"""Annotations are found in the trees that people have, and what is wrong with a tree is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from box_trees import (
    CAT_AND_DOG,
    coco,
    coco_split,
    data_yaml,
    image,
    names,
    opened,
    picture,
    text,
    yolo_split,
)
from metamobile.data.boxes import eval_boxes, open_boxes

CLASSES = ["cat", "dog"]


COCO_TREES: dict[str, Callable[[Path], object]] = {
    "official": lambda r: (
        [
            coco_split(r / f"annotations/instances_{s}2017.json", r / f"{s}2017", [f"{s}1.jpg", f"{s}2.jpg"])
            for s in ("train", "val")
        ]
        + [text(r / "annotations/captions_train2017.json", "[]")]
    ),
    "below images/": lambda r: [
        coco_split(r / f"annotations/instances_{s}2017.json", r / f"images/{s}2017", [f"{s}1.jpg"])
        for s in ("train", "val")
    ],
    "beside": lambda r: [coco_split(r / f"{s}.json", r, [f"{s}1.jpg"]) for s in ("train", "validation")],
    "folders in names": lambda r: [
        coco_split(r / f"annotations/{s}.json", r / f"pics/{s}", [f"{s}1.jpg"], f"pics/{s}/")
        for s in ("train", "val")
    ],
    "Windows": lambda r: [
        coco_split(r / f"annotations/{s}.json", r / f"pics/{s}", [f"{s}1.jpg"], f"pics\\{s}\\")
        for s in ("train", "val")
    ],
    "Roboflow": lambda r: [
        coco_split(r / f"{s}/_annotations.coco.json", r / s, [f"{s}1.jpg"])
        for s in ("train", "valid", "test")
    ],
    "FiftyOne": lambda r: [
        coco_split(r / f"{s}/labels.json", r / f"{s}/data", [f"{s}1.jpg"]) for s in ("train", "val")
    ],
}


@pytest.mark.parametrize("tree", COCO_TREES)
def test_coco_trees(tmp_path: Path, tree: str) -> None:
    COCO_TREES[tree](tmp_path)
    data = opened(tmp_path)
    assert data.classes == CLASSES and data.category_ids == [1, 2]
    assert data.train and {name[:5] for name in names(data.train)} == {"train"}
    assert data.val and {name[:3] for name in names(data.val)} == {"val"}
    for sample in data.train + data.val:
        assert sample.path.is_file()
        np.testing.assert_array_equal(sample.boxes, CAT_AND_DOG)
    assert " and " in data.split and data.split.count(".json") == 2


def _yaml_tree(**content: object) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        for split in ("train", "val"):
            yolo_split(root / f"images/{split}", root / f"labels/{split}", [f"{split}1.jpg"])
        data_yaml(root / "data.yaml", **({"names": CLASSES} | content))

    return write


def _more_folders(root: Path) -> None:
    for split in ("train", "train_more", "val"):
        yolo_split(root / f"a/images/{split}", root / f"a/labels/{split}", [f"{split}1.jpg"])
    folders = ["images/train", "images/train_more"]
    data_yaml(root / "pets.yml", path="a", train=folders, val="images/val", names=dict(enumerate(CLASSES)))


def _lists(root: Path) -> None:
    for split in ("train", "val"):
        yolo_split(root / "images", root / "labels", [f"{split}1.jpg", f"{split}2.jpg"])
    text(root / "train.txt", "./images/train1.jpg", str(root / "images/train2.jpg"))
    text(root / "val.txt", "images/val1.jpg", "/gone/images/val2.jpg")
    data_yaml(root / "data.yaml", train="train.txt", val="val.txt", nc=2, names=CLASSES)


def _roboflow(root: Path) -> None:
    for split in ("train", "valid"):
        yolo_split(root / f"{split}/images", root / f"{split}/labels", [f"{split}1.jpg"])
    data_yaml(root / "data.yaml", train="../train/images", val="../valid/images", nc=2, names=CLASSES)


def _plain(root: Path) -> None:
    for split in ("train2017", "val2017"):
        yolo_split(root / f"images/{split}", root / f"labels/{split}", [f"{split}1.jpg"])
    text(root / "classes.txt", *CLASSES)


def _plain_inside_out(root: Path) -> None:
    _roboflow(root)
    (root / "data.yaml").unlink()
    text(root / "train/labels/classes.txt", *CLASSES)


YOLO_TREES: dict[str, Callable[[Path], object]] = {
    "yaml": _yaml_tree(train="images/train", val="images/val"),
    "test alone": _yaml_tree(train="images/train", test="images/val"),
    "path gone": _yaml_tree(path="/gone/pets", train="images/train", val="images/val"),
    "path relative and gone": _yaml_tree(path="../data/pets", train="images/train/", val="images/val/"),
    "absolute and moved": _yaml_tree(train="/gone/pets/images/train", val="/gone/pets/images/val"),
    "folders": _more_folders,
    "lists": _lists,
    "Roboflow": _roboflow,
    "plain": _plain,
    "plain inside out": _plain_inside_out,
}


@pytest.mark.parametrize("tree", YOLO_TREES)
def test_yolo_trees(tmp_path: Path, tree: str) -> None:
    YOLO_TREES[tree](tmp_path)
    data = opened(tmp_path)
    assert data.classes == CLASSES and data.category_ids == [0, 1]
    assert data.train and {name[:5] for name in names(data.train)} == {"train"}
    assert data.val and {name[:3] for name in names(data.val)} == {"val"}
    for sample in data.train + data.val:
        np.testing.assert_allclose(sample.boxes, CAT_AND_DOG, rtol=1e-6)
        assert sample.labels.tolist() == [0, 1]
    for path in tmp_path.glob("*.y*ml"):
        assert names(opened(path).val) == names(data.val) and path.name in data.split


def test_both_forms(tmp_path: Path) -> None:
    """Ultralytics keeps COCO's json of the validation pictures beside its own labels of all."""
    _plain(tmp_path)
    folders = [tmp_path / f"images/{split}2017" for split in ("train", "val")]
    coco_split(tmp_path / "annotations/instances_val2017.json", folders[1], ["val2017.jpg"])
    assert opened(tmp_path).split == "images/train2017/ and images/val2017/"
    coco_split(tmp_path / "annotations/instances_train2017.json", folders[0], ["train2017.jpg"])
    assert "instances_train2017.json and " in opened(tmp_path).split, "with both, COCO's is the fuller one"


def test_cocos_validation_alone(tmp_path: Path) -> None:
    """images/val2017/ without labels is no data set of YOLO's."""
    coco_split(tmp_path / "annotations/instances_val2017.json", tmp_path / "images/val2017", ["val1.jpg"])
    samples, where = eval_boxes(tmp_path, CLASSES)
    assert names(samples) == ["val1.jpg"] and "instances_val2017.json" in where
    with pytest.raises(ValueError, match="has .*instances_val2017.json but nothing to train on"):
        opened(tmp_path)


ONE = [image(0, "a.jpg")]
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda r: picture(r / "a.jpg"), "no boxes found; expected COCO's annotations"),
    "broken json": (
        lambda r: text(r / "annotations/train.json", "{"),
        r"train.json: broken json \(.*\); write",
    ),
    "not COCO": (
        lambda r: text(r / "annotations/train.json", '{"images": []}'),
        "not COCO's form, without annotations, categories; expected images, annotations, categories",
    ),
    "no id": (
        lambda r: coco(r / "a.json", [{"file_name": "a.jpg"}], []),
        "expected id and file_name in each",
    ),
    "ids twice": (lambda r: coco(r / "a.json", ONE * 2, []), r"images of the same id \(0\)"),
    "names twice": (
        lambda r: coco(r / "a.json", ONE, [], [(0, "cat"), (1, "cat")]),
        r"categories of the same name \(cat\)",
    ),
    "no categories": (lambda r: coco(r / "a.json", ONE, [], []), "no categories; expected at least one"),
    "no pictures": (lambda r: coco(r / "a.json", ONE, []), "none of its 1 pictures is found, such as a.jpg"),
    "no boxes": (
        lambda r: (picture(r / "a.jpg"), coco(r / "a.json", ONE, [])),
        "no box to train on in 1 pictures",
    ),
    "which json": (
        lambda r: (coco(r / "annotations/a.json", [], []), coco(r / "annotations/b.json", [], [])),
        "a.json, b.json: which is for training\\? name one as DATA",
    ),
    "two for training": (
        lambda r: [coco(r / f"annotations/instances_train{year}.json", [], []) for year in (2014, 2017)],
        "instances_train2014.json, instances_train2017.json are all of the split 'train'",
    ),
    "broken yaml": (lambda r: text(r / "data.yaml", "a: [", "b"), "data.yaml: broken yaml .*; mend it"),
    "empty yaml": (lambda r: text(r / "data.yaml", "nc: 1"), "data.yaml: names no pictures; expected train:"),
    "yaml of poses": (
        lambda r: data_yaml(r / "data.yaml", train="a", kpt_shape=[17, 3]),
        "has kpt_shape, so its labels are poses",
    ),
    "nc": (lambda r: data_yaml(r / "data.yaml", train=".", nc=3, names=CLASSES), "nc 3, but 2 names"),
    "place gone": (
        lambda r: data_yaml(r / "data.yaml", train="images/train", nc=1),
        "data.yaml: names .*images/train, which is not there",
    ),
    "no labels": (
        lambda r: picture(r / "images/train/a.jpg"),
        "none of its 1 pictures has labels; expected .*labels/train/a.txt for a.jpg",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_words_for_what_is_wrong(tmp_path: Path, wrong: str) -> None:
    write, expected = WRONG[wrong]
    write(tmp_path)
    with pytest.raises(ValueError, match=expected) as caught:
        open_boxes(tmp_path, val_fraction=0)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_words_for_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    with pytest.raises(ValueError, match="pest: no such folder or file; .*; did you mean 'pets'\\?"):
        open_boxes(tmp_path / "pest")
    with pytest.raises(ValueError, match="a.txt: neither a folder nor a .json or .yaml"):
        open_boxes(text(tmp_path / "a.txt"))
