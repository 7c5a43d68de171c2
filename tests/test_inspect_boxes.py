"""What is wrong with boxes is named, told from what is not, and left out exactly when that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from box_trees import (
    annotation,
    coco,
    coco_split,
    data_yaml,
    image,
    picture,
    text,
    yolo_row,
    yolo_split,
)
from metamobile.data.boxes import open_boxes
from metamobile.data.inspect import Problem
from metamobile.data.inspect_boxes import BAD_BOXES, inspect_boxes
from metamobile.errors import DataError

GOOD = [4, 4, 10, 10]
TRIANGLE = [2.0, 2.0, 12.0, 2.0, 2.0, 22.0]
# what is wrong with annotation 5 of the 40x30 picture a.jpg: kind, and words of the detail
BAD_ROWS: dict[str, tuple[dict, str, str]] = {
    "no width": ({"bbox": [4, 4, 0, 10]}, "empty box", "x 4, y 4, width 0, height 10"),
    "no height": ({"bbox": [4, 4, 3, 0.0]}, "empty box", "width 3, height 0"),
    "inverted": ({"bbox": [14, 14, -10, 5]}, "inverted box", "width -10, height 5"),
    "outside": ({"bbox": [40, 4, 5, 5]}, "box outside", "x 40, .*; the picture is 40x30"),
    "outside by little": ({"bbox": [4, -0.7, 5, 0.5]}, "box outside", "y -0.7"),
    "partly outside": ({"bbox": [35, 4, 6, 5]}, "box partly outside", "x 35, .*; the picture is 40x30"),
    "partly above": ({"bbox": [4, -1.5, 5, 9]}, "box partly outside", "y -1.5"),
    "text": ({"bbox": [4, "4", 5, 5]}, "not numbers", "expected x, y, width, height"),
    "NaN": ({"bbox": [4, float("nan"), 5, 5]}, "not numbers", "nan"),
    "three": ({"bbox": [4, 4, 5]}, "not numbers", "bbox"),
    "no bbox": ({"bbox": None}, "not numbers", "bbox None"),
    "category": ({"category_id": 7}, "unknown category", "category_id 7"),
    "no category": ({"category_id": None}, "unknown category", "category_id None"),
    "double": ({"bbox": GOOD}, "duplicate box", "class and box are those of annotation 1 of a.jpg"),
    "line": ({"segmentation": [[1, 1, 5, 5]]}, "bad mask", "polygon of 4 numbers"),
    "flat": ({"segmentation": [1, 1, 5, 5, 3, 1]}, "bad mask", "expected polygons"),
    "polygon of text": ({"segmentation": [[1, 1, 5, "5", 3, 1]]}, "bad mask", "expected polygons"),
    "polygon of NaN": ({"segmentation": [[1, 1, 5, float("nan"), 3, 1]]}, "bad mask", "expected polygons"),
    "RLE": ({"segmentation": {"size": [30, 40], "counts": [3, 4]}}, "bad mask", "7 pixels, not all"),
    "RLE's size": (
        {"segmentation": {"size": [40, 30], "counts": [1200]}},
        "bad mask",
        r"expected \[30, 40\]",
    ),
    "RLE's text": ({"segmentation": {"size": [30, 40], "counts": "~~"}}, "bad mask", "RLE"),
}


def with_row(root: Path, row: dict) -> Path:
    picture(root / "a.jpg")
    rows = [annotation(1, 0, 1, GOOD), annotation(5, 0, 1, [3, 3, 9, 9]) | row, annotation(9, 0, 2, GOOD)]
    return coco(root / "all.json", [image(0, "a.jpg")], rows)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_of_coco(tmp_path: Path, case: str) -> None:
    row, kind, words = BAD_ROWS[case]
    path = with_row(tmp_path, row)
    inspection = inspect_boxes(tmp_path)
    (problem,) = inspection.problems
    assert problem.path == path and problem.kind == kind and kind in BAD_BOXES
    assert problem.detail.startswith("annotation 5 of a.jpg: ")
    with pytest.raises(DataError, match=words) as caught:
        open_boxes(tmp_path, val_fraction=0)
    assert str(problem) in str(caught.value) and "--drop-bad" in str(caught.value)
    assert not inspection.ok and not inspection.files_to_drop(), "the picture is good"
    assert inspection.summary().endswith(f"; problems: 1 {kind}")
    (sample,) = open_boxes(tmp_path, val_fraction=0, drop_bad=True).train
    np.testing.assert_array_equal(sample.boxes, [[4, 4, 14, 14]] * 2)
    assert sample.labels.tolist() == [0, 1], "exactly the bad box is left out"


@pytest.mark.parametrize(
    "row",
    [
        {"bbox": [35.5, 4, 5.4, 5]},  # over the edge by under a pixel
        {"bbox": GOOD, "category_id": 2, "iscrowd": 1},  # another class in the same place
        {"bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"segmentation": [TRIANGLE]},
        {"segmentation": {"size": [30, 40], "counts": [0, 1200]}, "iscrowd": 1},
    ],
)
def test_good_row_of_coco(tmp_path: Path, row: dict) -> None:
    with_row(tmp_path, row)
    inspection = inspect_boxes(tmp_path)
    assert inspection.ok and inspection.boxes == 3 and inspection.crowd == row.get("iscrowd", 0)
    assert len(open_boxes(tmp_path, val_fraction=0).train[0].boxes) == 3


def yolo_with(root: Path, *rows: str) -> Path:
    picture(root / "images/a.jpg")
    picture(root / "images/b.jpg")
    text(root / "labels/b.txt", "0 .5 .5 .5 .5")
    text(root / "classes.txt", "cat", "dog")
    return text(root / "labels/a.txt", yolo_row(0, *GOOD), *rows)


BAD_LINES: dict[str, tuple[str, str, str]] = {
    "text": ("0 0.5 half 0.1 0.1", "not numbers", "'0 0.5 half 0.1 0.1'; expected 'class x y width height'"),
    "NaN": ("0 0.5 nan 0.1 0.1", "not numbers", "nan"),
    "short": ("0 0.5 0.5 0.1", "not numbers", "a row of 4 numbers"),
    "odd": ("0 0.5 0.5 0.1 0.2 0.3", "not numbers", "a row of 6 numbers"),
    "line": ("0 0.5 0.5 0.1 0.2 0.3 0.4 0.1", "not numbers", "a row of 8 numbers"),
    "pixels": ("0 20 15 10 10", "out of 0..1", "20; expected"),
    "negative": ("0 -0.2 0.5 0.5 0.1", "out of 0..1", "-0.2"),
    "wide": ("0 0.5 0.5 1.2 0.1", "out of 0..1", "1.2"),
    "polygon": ("0 0.1 0.1 0.5 0.1 0.1 1.5", "out of 0..1", "1.5"),
    "inverted": ("1 0.5 0.5 -0.1 0.1", "inverted box", "width -0.1, height 0.1"),
    "empty": ("1 0.5 0.5 0.1 0", "empty box", "height 0"),
    "flat polygon": ("1 0.5 0.5 0.6 0.5 0.7 0.5", "empty box", "height 0"),
    "partly outside": ("1 0.9 0.5 0.3 0.3", "box partly outside", "the picture is 40x30"),
    "class": ("2 0.5 0.5 0.1 0.1", "unknown category", "class 2; classes are 0 to 1"),
    "half a class": ("0.5 0.5 0.5 0.1 0.1", "unknown category", "class 0.5"),
    "double": (yolo_row(0, *GOOD), "duplicate box", "class and box are those of line 1"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_row_of_yolo(tmp_path: Path, case: str) -> None:
    line, kind, words = BAD_LINES[case]
    path = yolo_with(tmp_path, "", line)
    inspection = inspect_boxes(tmp_path)
    (problem,) = inspection.problems
    assert problem.path == path and problem.kind == kind and kind in BAD_BOXES
    assert problem.detail.startswith("line 3: ")
    with pytest.raises(DataError, match=words) as caught:
        open_boxes(tmp_path, val_fraction=0)
    assert str(problem) in str(caught.value)
    first, second = open_boxes(tmp_path, val_fraction=0, drop_bad=True).train
    np.testing.assert_allclose(first.boxes, [[4, 4, 14, 14]], rtol=1e-6)
    assert len(second.boxes) == 1
    (left,) = open_boxes(tmp_path, val_fraction=0, exclude=[first.path]).train
    assert left.path == second.path, "of a picture that is left out, nothing is said"


def test_label_without_picture(tmp_path: Path) -> None:
    yolo_with(tmp_path)
    path = text(tmp_path / "labels/gone.txt", "0 .5 .5 .5 .5")
    text(tmp_path / "labels/classes.txt", "cat", "dog")  # is no label
    (problem,) = inspect_boxes(tmp_path).problems
    assert problem == Problem(path, "label without picture", f"no picture {tmp_path / 'images/gone'}.*")
    assert len(open_boxes(tmp_path, val_fraction=0).train) == 2, "it stops nothing"

    picture(tmp_path / "images/gone.jpg")
    text(tmp_path / "some.txt", "images/a.jpg", "images/b.jpg")
    data_yaml(tmp_path / "data.yaml", train="some.txt", names=["cat", "dog"])
    assert inspect_boxes(tmp_path).ok, "a list may leave out pictures that have labels"


def test_text_that_is_none(tmp_path: Path) -> None:
    path = yolo_with(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    (problem,) = inspect_boxes(tmp_path).problems
    assert problem == Problem(path, "not numbers", "not a text in UTF-8; write it anew")


def test_bad_pictures(tmp_path: Path) -> None:
    """Each is named, and left out together with its boxes."""
    names = ["cut", "empty", "good", "none", "wide"]
    path = coco_split(tmp_path / "all.json", tmp_path / "images", [f"{name}.jpg" for name in names])
    folder = tmp_path / "images"
    cut = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "none.jpg").unlink()
    picture(folder / "wide.jpg", (41, 30))
    content = json.loads(path.read_text())
    content["annotations"].append(annotation(99, 1234, 1, GOOD))
    path.write_text(json.dumps(content))

    inspection = inspect_boxes(tmp_path, workers=2)
    assert {(p.path.name, p.kind) for p in inspection.problems} == {
        ("cut.jpg", "truncated"),
        ("empty.jpg", "empty file"),
        ("none.jpg", "missing picture"),
        ("wide.jpg", "size differs"),
        ("all.json", "unknown picture"),
    }
    details = {p.path.name: p.detail for p in inspection.problems}
    assert details["wide.jpg"] == "41x30, its annotations say 40x30"
    assert details["all.json"] == "annotation 99: image_id 1234"
    bad = {folder / f"{name}.jpg" for name in names if name != "good"}
    assert inspection.files_to_drop() == bad
    with pytest.raises(DataError, match="none.jpg: missing picture .*; .*unknown picture"):
        open_boxes(tmp_path, val_fraction=0)
    with pytest.raises(DataError, match="unknown picture"):
        open_boxes(tmp_path, val_fraction=0, exclude=bad)
    data = open_boxes(tmp_path, val_fraction=0, exclude=bad, drop_bad=True)
    assert [sample.path.name for sample in data.train] == ["good.jpg"]


def test_bad_pictures_of_yolo(tmp_path: Path) -> None:
    yolo_with(tmp_path)
    (tmp_path / "images/c.png").write_text("no picture")
    text(tmp_path / "some.txt", "images/a.jpg", "images/c.png", "images/gone.jpg")
    data_yaml(tmp_path / "data.yaml", train="some.txt", names=["cat", "dog"])
    inspection = inspect_boxes(tmp_path)
    assert {(p.path.name, p.kind) for p in inspection.problems} == {
        ("c.png", "unreadable"),
        ("gone.jpg", "missing picture"),
    }
    assert inspection.files_to_drop() == {tmp_path / "images/c.png", tmp_path / "images/gone.jpg"}
    (sample,) = open_boxes(tmp_path, val_fraction=0, exclude=inspection.files_to_drop()).train
    assert sample.path.name == "a.jpg"


def test_turned_by_exif(tmp_path: Path) -> None:
    """A json of the picture as it lies in the file does not fit the picture as it is seen."""
    path = with_row(tmp_path, {})
    picture(tmp_path / "a.jpg", orientation=6)
    (problem,) = inspect_boxes(tmp_path).problems
    assert problem.kind == "size differs"
    assert problem.detail.startswith("30x40, its annotations say 40x30, as it lies before its EXIF rotation")
    content = json.loads(path.read_text())
    del content["images"][0]["width"]
    path.write_text(json.dumps(content))
    assert inspect_boxes(tmp_path).ok
    (sample,) = open_boxes(tmp_path, val_fraction=0).train
    assert sample.size == (30, 40), "without a size in the json, the picture as it is seen tells it"


def test_copies(tmp_path: Path) -> None:
    """Equal bytes in both splits flatter the figures; one picture twice in a json splits its boxes."""
    coco_split(tmp_path / "train.json", tmp_path / "train", ["a.jpg", "b.jpg", "c.jpg"])
    coco_split(tmp_path / "val.json", tmp_path / "val", ["b.jpg"])  # noise of the same name
    (problem,) = inspect_boxes(tmp_path).problems
    assert problem.path == tmp_path / "train/b.jpg" and problem.kind == "duplicate"
    assert (
        problem.detail == f"duplicate of {tmp_path / 'val/b.jpg'}; in train and val, it flatters the figures"
    )

    coco_split(tmp_path / "val.json", tmp_path / "train", ["c.jpg", "c.jpg", "d.jpg"], "train/")
    problems = inspect_boxes(tmp_path).problems
    assert [problem.kind for problem in problems] == ["listed twice", "in both splits"]
    assert problems[0].detail == "as image 0 and 1" and "train/c.jpg; it flatters" in problems[1].detail
    data = open_boxes(tmp_path, drop_bad=True)
    assert [s.path.name for s in data.train] == ["a.jpg", "b.jpg"] and len(data.val) == 2


@pytest.mark.parametrize(
    "content", ["{", '{"images": []}', '{"images": [], "annotations": [], "categories": []}']
)
def test_broken_json(tmp_path: Path, content: str) -> None:
    coco_split(tmp_path / "annotations/train.json", tmp_path / "train", ["a.jpg"])
    text(tmp_path / "annotations/val.json", content)
    inspection = inspect_boxes(tmp_path)
    (problem,) = inspection.problems
    assert problem.kind == "broken annotations" and problem.path.name == "val.json"
    assert str(problem).count("val.json") == 1 and inspection.boxes == 2 and not inspection.files_to_drop()


def test_classes_differ(tmp_path: Path) -> None:
    coco_split(tmp_path / "train.json", tmp_path, ["a.jpg"])
    path = coco_split(tmp_path / "val.json", tmp_path, ["b.jpg"])
    path.write_text(path.read_text().replace('"dog"', '"cow"'))
    (problem,) = inspect_boxes(tmp_path).problems
    assert problem.kind == "class sets differ"
    assert problem.detail == "class sets differ (only in train.json: dog; only in val.json: cow)"


def test_summary(tmp_path: Path) -> None:
    """What stops nothing is counted."""
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.jpg")
    rows = [
        annotation(0, 0, 1, GOOD, segmentation=[TRIANGLE]),
        annotation(1, 0, 1, [0, 0, 40, 30], iscrowd=1, segmentation={"size": [30, 40], "counts": [0, 1200]}),
        annotation(2, 1, 2, GOOD),
    ]
    images = [image(i, f"{name}.jpg") for i, name in enumerate("abc")]
    coco(tmp_path / "all.json", images, rows, [(1, "cat"), (2, "dog"), (3, "cow")])
    steps: list[tuple[int, int]] = []
    inspection = inspect_boxes(tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)] and inspection.ok
    assert inspection.classes == {"cat": {"all": 2}, "dog": {"all": 1}, "cow": {"all": 0}}
    assert inspection.summary() == (
        f"{tmp_path}: 3 pictures, 3 boxes of 3 classes, by all.json; pictures without a box: 1; "
        "crowd boxes: 1; boxes without a mask: 1; classes without a box to train on: 1 (cow); "
        "no problem found"
    )


def test_same_pictures_in_both_splits(tmp_path: Path) -> None:
    yolo_split(tmp_path / "images", tmp_path / "labels", ["a.jpg", "b.jpg"])
    data_yaml(tmp_path / "data.yaml", train="images", val="images", names=["cat", "dog"])
    inspection = inspect_boxes(tmp_path / "data.yaml")
    assert inspection.ok and inspection.pictures == 2 and inspection.boxes == 4
    assert inspection.classes == {"cat": {"train": 2, "val": 2}, "dog": {"train": 2, "val": 2}}


def test_coco128(shared: Path) -> None:
    inspection = inspect_boxes(shared / "data/coco128")
    assert inspection.ok and inspection.pictures == 128 and inspection.boxes == 929
    assert inspection.negatives == 2 and inspection.crowd == 0 and len(inspection.unseen) == 9


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: no such folder or file"):
        inspect_boxes(tmp_path / "gone")
