"""Boxes are read as they stand in COCO's json and in YOLO's files, wherever these lie."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from box_trees import (
    annotation,
    coco,
    coco_split,
    data_yaml,
    image,
    names,
    opened,
    picture,
    text,
    yolo_row,
    yolo_split,
)
from metamobile.data.boxes import eval_boxes, open_boxes
from metamobile.data.pictures import read_picture
from metamobile.errors import DataError

TRIANGLE = [2.0, 2.0, 12.0, 2.0, 2.0, 22.0]
CLASSES = ["cat", "dog"]


def test_coco_by_hand(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "images/b.jpg", (20, 50))
    rows = [
        annotation(7, 10, 9, [1.5, 2, 10, 12.25], area=33.0),
        annotation(8, 10, 4, [0, 0, 40, 30], iscrowd=1),
        annotation(9, 10, 17, [39.5, -0.75, 1.25, 10.5]),
    ]
    images = [image(10, "a.jpg"), image(3, "b.jpg", (20, 50))]
    coco(tmp_path / "boxes.json", images, rows, [(17, "dog"), (4, "crowd"), (9, "cat")])
    data = opened(tmp_path)
    assert data.classes == ["crowd", "cat", "dog"] and data.category_ids == [4, 9, 17]
    first, second = data.train
    assert first.boxes.dtype == np.float32 and first.labels.dtype == np.int64
    expected = [[1.5, 2, 11.5, 14.25], [0, 0, 40, 30], [39.5, 0, 40, 9.75]]  # the last is clipped
    np.testing.assert_array_equal(first.boxes, expected)
    assert first.labels.tolist() == [1, 0, 2] and first.crowd.tolist() == [False, True, False]
    assert first.areas.tolist() == [33.0, 1200.0, 13.125] and first.image_id == 10
    assert first.path == tmp_path / "images/a.jpg" and first.size == (40, 30)
    assert first.segmentations is None
    assert second.boxes.shape == (0, 4) and second.size == (20, 50), "a picture without a box stays"
    with pytest.raises(DataError, match="a.jpg: its boxes have no masks"):
        first.masks()


def test_one_json(tmp_path: Path) -> None:
    """As the only one in a folder, and named itself, for training and for measuring."""
    path = coco_split(tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017", ["a.jpg"])
    by_folder, by_file = opened(tmp_path), opened(path)
    assert names(by_folder.train) == names(by_file.train) == ["a.jpg"]
    assert by_file.split.startswith("annotations/instances_train2017.json; the training pictures themselves")
    samples, where = eval_boxes(path, CLASSES)
    assert names(samples) == ["a.jpg"] and where.endswith("all, as no validation split is there")


def test_category_of_all(tmp_path: Path) -> None:
    """Roboflow's category 0 is the project's name."""
    coco_split(tmp_path / "train/_annotations.coco.json", tmp_path / "train", ["a.jpg"])
    path = tmp_path / "train/_annotations.coco.json"
    content = path.read_text()
    above = '"categories": [{"id": 0, "name": "pets", "supercategory": "none"}, '
    content = content.replace('"categories": [', above)
    content = content.replace('"name": "cat"', '"name": "cat", "supercategory": "pets"')
    path.write_text(content)
    data = opened(tmp_path)
    assert data.classes == CLASSES and data.category_ids == [1, 2]
    path.write_text(content.replace('"category_id": 1', '"category_id": 0'))
    assert opened(tmp_path).classes == ["pets", *CLASSES], "with boxes it is a class"


def test_yolo_by_hand(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg", (200, 100))
    picture(tmp_path / "images/b.jpg")
    text(tmp_path / "labels/a.txt", "2 0.5 0.5 0.25 0.5", "", "0 .1 .1 .3 .1 .1 .5", "2.0 0.999 0.5 0.01 0.1")
    data = opened(tmp_path)
    assert data.classes == ["class 0", "class 1", "class 2"] and data.category_ids == [0, 1, 2]
    first, second = data.train
    expected = [[75, 25, 125, 75], [20, 10, 60, 50], [198.8, 45, 200, 55]]  # the last is clipped
    np.testing.assert_allclose(first.boxes, expected, rtol=1e-6)
    assert first.labels.tolist() == [2, 0, 2] and not first.crowd.any() and first.size == (200, 100)
    np.testing.assert_allclose(first.areas, [2500, 800, 20])  # the triangle's is half its box's
    assert first.segmentations is not None and first.segmentations[::2] == (None, None)
    np.testing.assert_allclose(first.segmentations[1], [[20, 10, 60, 10, 20, 50]])
    assert not len(second.boxes), "a picture without a label file has no objects"


def test_yolo_beside_and_numbers(tmp_path: Path) -> None:
    """Labels beside the pictures; nc alone tells how many classes there are."""
    yolo_split(tmp_path, tmp_path, ["a.jpg", "b.jpg"])
    assert opened(tmp_path).classes == ["class 0", "class 1"]
    data_yaml(tmp_path / "data.yaml", train=".", nc=5)
    assert opened(tmp_path).classes == [f"class {i}" for i in range(5)]


def test_yolo_and_coco_are_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, rows = [], []
    for i in range(8):
        size = int(rng.integers(20, 90)), int(rng.integers(20, 90))
        orientation = (None, 1, 3, 6)[i % 4]  # of 6, width and height of the file are swapped
        picture(tmp_path / f"yolo/images/{i}.jpg", size[::-1] if orientation == 6 else size, orientation)
        images.append(image(i, f"{i}.jpg", size))
        lines = []
        for _ in range(i):
            corner, label = rng.random(2) * size, int(rng.integers(2))
            x, y = corner
            w, h = (size - corner) * rng.uniform(0.1, 1, 2)
            rows.append(annotation(len(rows), i, label + 1, [x, y, w, h]))
            lines.append(yolo_row(label, x, y, w, h, size))
        text(tmp_path / f"yolo/labels/{i}.txt", *lines)
    text(tmp_path / "yolo/classes.txt", *CLASSES)
    shutil.copytree(tmp_path / "yolo/images", tmp_path / "coco/images")
    coco(tmp_path / "coco/all.json", images, rows)
    of_yolo, of_coco = opened(tmp_path / "yolo"), opened(tmp_path / "coco")
    assert of_yolo.classes == of_coco.classes and len(of_yolo.train) == 8
    for a, b in zip(of_yolo.train, of_coco.train, strict=True):
        assert a.path.name == b.path.name and a.size == b.size == read_picture(a.path).size
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-5)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_allclose(a.areas, b.areas, rtol=1e-5)


def test_coco128_as_pycocotools_reads_it(shared: Path) -> None:
    root = shared / "data/coco128"
    data = open_boxes(root, val_fraction=0.25)
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(root / "annotations/instances_train2017.json")
    assert data.category_ids == sorted(truth.getCatIds())
    assert data.classes == [c["name"] for c in truth.loadCats(data.category_ids)]
    assert len(data.val) == 32 and len(data.train) == 96
    found = {sample.image_id: sample for sample in data.train + data.val}
    assert sorted(found) == sorted(truth.getImgIds())
    for number, sample in found.items():
        rows = truth.loadAnns(truth.getAnnIds(number))
        assert [data.category_ids[label] for label in sample.labels] == [row["category_id"] for row in rows]
        np.testing.assert_array_equal(sample.areas, [row["area"] for row in rows])
        x, y, w, h = np.array([row["bbox"] for row in rows]).reshape(-1, 4).T
        corners = np.stack([x, y, x + w, y + h], axis=1).reshape(-1, 4)
        np.testing.assert_allclose(sample.boxes, corners, atol=0.011)  # written with two digits, then clipped
        assert (sample.boxes >= 0).all() and (sample.boxes.reshape(-1, 2) <= sample.size).all()


def test_masks_as_pycocotools_draws_them(tmp_path: Path) -> None:
    from pycocotools import mask as reference

    rng = np.random.default_rng(1)
    picture(tmp_path / "a.jpg")
    blob = np.asfortranarray(rng.random((30, 40)) < 0.4)
    flat = blob.ravel(order="F")  # run lengths go down the columns, first of what is not in the mask
    ends = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    packed = reference.encode(blob.astype(np.uint8))["counts"].decode()
    segmentations: list = [
        [TRIANGLE],
        [TRIANGLE, [5.5, 5.5, 30.25, 6.0, 28.0, 25.75, 7.0, 20.0]],  # they overlap
        [(rng.random((9, 2)) * [40, 30]).ravel().tolist()],  # it crosses itself
        {"size": [30, 40], "counts": counts},
        {"size": [30, 40], "counts": packed},
    ]
    rows = [
        annotation(i, 0, 1 + i % 2, [i, 0, 20, 20], segmentation=s, iscrowd=int(isinstance(s, dict)))
        for i, s in enumerate(segmentations)
    ]
    coco(tmp_path / "all.json", [image(0, "a.jpg")], rows)
    (sample,) = opened(tmp_path).train
    masks = sample.masks()
    assert masks.shape == (5, 30, 40) and masks.dtype == bool
    for mask, segmentation in zip(masks, segmentations, strict=True):
        code = segmentation
        if isinstance(code, list):
            code = reference.merge(reference.frPyObjects(code, 30, 40))
        elif isinstance(code["counts"], list):
            code = reference.frPyObjects(code, 30, 40)
        np.testing.assert_array_equal(mask, reference.decode(code))
    np.testing.assert_array_equal(masks[3], blob)
    assert sample.areas[0] == 100.0 and sample.areas[3] == blob.sum(), "of the mask, not of the box"


def test_box_without_mask_among_masks(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    rows = [annotation(0, 0, 1, [2, 2, 10, 20], segmentation=[TRIANGLE])]
    rows.append(annotation(1, 0, 1, [1, 2, 10, 20], segmentation=[]))
    coco(tmp_path / "all.json", [image(0, "a.jpg")], rows)
    (sample,) = opened(tmp_path).train
    with pytest.raises(DataError, match="a.jpg: box 2 has no mask, others have"):
        sample.masks()


def test_held_out_as_before(tmp_path: Path) -> None:
    """The split hangs on the seed and on paths below the folder, not on the order in the json."""
    numbers = [f"{i}.jpg" for i in range(20)]
    coco_split(tmp_path / "a/all.json", tmp_path / "a/images", numbers)
    data = open_boxes(tmp_path / "a", val_fraction=0.25, seed=3)
    assert len(data.val) == 5 and len(data.train) == 15
    assert not set(names(data.train)) & set(names(data.val))
    assert data.split == "25% of the pictures held out with seed 3, of all.json"
    coco_split(tmp_path / "b/all.json", tmp_path / "b/images", numbers[::-1])
    moved = open_boxes(tmp_path / "b", val_fraction=0.25, seed=3)
    assert set(names(moved.val)) == set(names(data.val))
    assert set(names(open_boxes(tmp_path / "a", val_fraction=0.25, seed=4).val)) != set(names(data.val))
    assert set(names(open_boxes(tmp_path / "a", val_fraction=0.5, seed=3).val)) > set(names(data.val))
    left = open_boxes(tmp_path / "a", val_fraction=0.25, seed=3, exclude=[data.train[0].path])
    assert len(left.train + left.val) == 19 and names(data.train)[0] not in names(left.train + left.val)


def test_training_pictures_for_validation(tmp_path: Path) -> None:
    coco_split(tmp_path / "all.json", tmp_path, ["a.jpg", "b.jpg"])
    data = open_boxes(tmp_path, val_fraction=0)
    assert names(data.train) == names(data.val) == ["a.jpg", "b.jpg"]
    by_heart = "figures show what was learned by heart"
    assert data.split == f"all.json; the training pictures themselves, as val_fraction is 0: {by_heart}"
    for fraction in (1.0, -0.1):
        with pytest.raises(ValueError, match="is not between 0 and 1; 0.2 holds out a fifth"):
            open_boxes(tmp_path, val_fraction=fraction)

    yolo_split(tmp_path / "y/images", tmp_path / "y/labels", ["a.jpg", "b.jpg"])
    data_yaml(tmp_path / "y/data.yaml", train="images", val="images", names=CLASSES)
    same = open_boxes(tmp_path / "y")
    assert names(same.train) == names(same.val) == ["a.jpg", "b.jpg"]
    assert f"which name the very same pictures: {by_heart}" in same.split


def test_some_pictures_in_both_splits(tmp_path: Path) -> None:
    coco_split(tmp_path / "train.json", tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    coco_split(tmp_path / "val.json", tmp_path, ["b.jpg", "d.jpg"])
    with pytest.raises(DataError, match="train.json: in both splits .*b.jpg; it flatters the figures"):
        open_boxes(tmp_path)
    data = open_boxes(tmp_path, drop_bad=True)
    assert names(data.train) == ["a.jpg", "c.jpg"] and names(data.val) == ["b.jpg", "d.jpg"]


def test_classes_of_the_splits(tmp_path: Path) -> None:
    """Names decide, not numbers."""
    coco_split(tmp_path / "train.json", tmp_path, ["a.jpg"])
    picture(tmp_path / "b.jpg")
    rows = [annotation(0, 0, 1, [1, 2, 3, 4]), annotation(1, 0, 5, [1, 2, 3, 5])]
    coco(tmp_path / "val.json", [image(0, "b.jpg")], rows, [(1, "dog"), (5, "cat")])
    data = open_boxes(tmp_path)
    assert data.classes == CLASSES and data.val[0].labels.tolist() == [1, 0]
    coco(tmp_path / "val.json", [image(0, "b.jpg")], rows, [(1, "dog"), (5, "cow")])
    expected = r"val.json: class sets differ \(only in train.json: cat; only in val.json: cow\)"
    with pytest.raises(DataError, match=expected):
        open_boxes(tmp_path)


def test_eval_by_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        coco_split(tmp_path / f"{split}.json", tmp_path, [f"{split}1.jpg"])
    samples, where = eval_boxes(tmp_path, ["cow", "dog", "cat"])
    assert names(samples) == ["val1.jpg"] and samples[0].labels.tolist() == [2, 1] and where == "val.json"
    with pytest.raises(ValueError, match="the model has no class 'dog'; it knows cat, dogs; did you mean"):
        eval_boxes(tmp_path, ["cat", "dogs"])
    (tmp_path / "train.json").unlink()
    assert names(eval_boxes(tmp_path, CLASSES)[0]) == ["val1.jpg"], "nothing to train on is needed"
    with pytest.raises(ValueError, match="has val.json but nothing to train on; expected both"):
        open_boxes(tmp_path)


def test_shapes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shape_scenes")
    module.boxes_folder = lambda: coco_split(tmp_path / "all.json", tmp_path, ["a.jpg"]).parent  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metamobile.data.shape_scenes", module)
    assert names(opened(Path("shapes")).train) == ["a.jpg"]


def test_without_torch() -> None:
    code = "import sys\nsys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
    code += "import metamobile_cli, metamobile.data.inspect_boxes as made\nprint(made.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "metamobile.data.inspect_boxes", ran.stderr
