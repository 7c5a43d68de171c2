"""Folders of drawn scenes hold what was drawn, as COCO's own tools read it, and are the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from metamobile.data.boxes import open_boxes
from metamobile.data.shape_scenes import (
    boxes_folder,
    masks_folder,
    write_boxes,
    write_masks,
)
from metamobile.data.shapes import SHAPE_CLASSES, Scene, draw_scene

SIZE = 64
CROWDED = (5, 9)  # objects of 64 pixels: many hide others


def drawn(split: int, index: int, objects: tuple[int, int], seed: int = 0) -> Scene:
    """Picture `index` as promised: from (seed, split, index) alone, the number of objects drawn first."""
    rng = np.random.default_rng([seed, split, index])
    return draw_scene(rng, SIZE, int(rng.integers(objects[0], objects[1] + 1)))


def hide_one(scene: Scene, left: int) -> Scene:
    """Of the last object, `left` pixels are seen."""
    rows, columns = np.nonzero(scene.masks[-1])
    scene.masks[-1][rows[left:], columns[left:]] = False
    return scene


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("crowded"), 12, 6, SIZE, CROWDED)


@pytest.mark.parametrize(("split", "name", "count"), [(0, "train", 12), (1, "val", 6)])
def test_coco_tools_read_what_was_drawn(
    crowded: Path, split: int, name: str, count: int, capsys: pytest.CaptureFixture
) -> None:
    coco = COCO(str(crowded / "annotations" / f"instances_{name}.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == SHAPE_CLASSES
    assert len(coco.getImgIds()) == count == len(list((crowded / name).iterdir()))
    numbers = []
    for index, image_id in enumerate(sorted(coco.getImgIds())):
        scene = drawn(split, index, CROWDED)
        image = coco.loadImgs(image_id)[0]
        with Image.open(crowded / name / image["file_name"]) as picture:
            assert np.array_equal(picture, scene.image) and picture.size == (image["width"], image["height"])
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        seen = [k for k in range(len(scene.masks)) if scene.masks[k].sum() >= 16]
        assert len(annotations) == len(seen) > 0
        for annotation, k in zip(annotations, seen, strict=True):
            mask = coco.annToMask(annotation).astype(bool)
            assert np.array_equal(mask, scene.masks[k])
            assert SHAPE_CLASSES[scene.labels[k]] == coco.loadCats(annotation["category_id"])[0]["name"]
            x, y, width, height = annotation["bbox"]
            rows, columns = np.nonzero(mask)
            assert (x, x + width) == (columns.min(), columns.max() + 1)
            assert (y, y + height) == (rows.min(), rows.max() + 1)
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
            numbers.append(annotation["id"])
    assert len(set(numbers)) == len(numbers) and min(numbers) >= 1


@pytest.mark.parametrize(("left", "kept"), [(0, 1), (15, 1), (16, 2)])
def test_what_is_hidden_is_no_box(
    left: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(rng: np.random.Generator, size: int, objects: int) -> Scene:
        scene = draw_scene(np.random.default_rng(0), size, objects)
        assert all(mask.sum() > 20 for mask in scene.masks)
        return hide_one(scene, left)

    monkeypatch.setattr("metamobile.data.shape_scenes.draw_scene", hidden)
    content = json.loads(
        (write_boxes(tmp_path, 1, 1, SIZE, (2, 2)) / "annotations/instances_val.json").read_text()
    )
    assert len(content["annotations"]) == kept and len(content["images"]) == 1


def test_readers_of_boxes_accept_it(crowded: Path) -> None:
    data = open_boxes(crowded)
    assert data.classes == SHAPE_CLASSES and [len(data.train), len(data.val)] == [12, 6]
    scene = drawn(1, 2, CROWDED)
    seen = scene.masks.sum((1, 2)) >= 16
    sample = data.val[2]
    assert np.array_equal(sample.boxes, scene.boxes[seen]) and np.array_equal(
        sample.labels, scene.labels[seen]
    )
    assert np.array_equal(sample.masks(), scene.masks[seen])


def test_masks_number_each_pixel(tmp_path: Path) -> None:
    out = write_masks(tmp_path, 8, 4, SIZE, CROWDED)
    names = (out / "classes.txt").read_text().split("\n")
    assert names == ["background", *SHAPE_CLASSES, ""]
    for split, folder, count in ((0, "train", 8), (1, "val", 4)):
        pictures, masks = (sorted((out / kind / folder).iterdir()) for kind in ("images", "masks"))
        assert [path.name for path in pictures] == [path.name for path in masks]
        assert len(masks) == count
        for index, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            scene = drawn(split, index, CROWDED)
            with Image.open(picture) as image, Image.open(mask) as numbers:
                assert np.array_equal(image, scene.image) and numbers.mode == "L"
                found = np.asarray(numbers)
            for k, name in enumerate(SHAPE_CLASSES):
                expected = (
                    scene.masks[scene.labels == k].any(0) if k in scene.labels else np.zeros_like(found)
                )
                assert np.array_equal(found == names.index(name), expected)
            assert np.array_equal(found == 0, ~scene.masks.any(0))


def test_numbers_of_objects(tmp_path: Path) -> None:
    content = json.loads(
        (write_boxes(tmp_path, 60, 1, SIZE, (1, 3)) / "annotations/instances_train.json").read_text()
    )
    numbers = [row["image_id"] for row in content["annotations"]]
    counts = {numbers.count(image["id"]) for image in content["images"]}
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("write", [write_boxes, write_masks])
def test_same_each_time_whatever_the_number(write, tmp_path: Path) -> None:
    more, again, fewer, other = (tmp_path / name for name in ("more", "again", "fewer", "other"))
    for out, train, seed in ((more, 6, 0), (again, 6, 0), (fewer, 3, 0), (other, 3, 1)):
        write(out, train, 2, SIZE, seed=seed)

    def files(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    assert files(more) == files(again)
    pngs = {name: content for name, content in files(fewer).items() if name.endswith(".png")}
    assert len(pngs) in (5, 10) and all(files(more)[name] == content for name, content in pngs.items())
    assert all(files(other)[name] != content for name, content in pngs.items())


def test_cache_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def few(write):
        def call(out: Path) -> Path:
            calls.append(out)
            return write(out, 2, 2, 32)

        return call

    monkeypatch.setenv("METAMOBILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("metamobile.data.shape_scenes.write_boxes", few(write_boxes))
    monkeypatch.setattr("metamobile.data.shape_scenes.write_masks", few(write_masks))
    assert boxes_folder() == boxes_folder() == tmp_path / "cache/shape-boxes-v1"
    assert masks_folder() == masks_folder() == tmp_path / "cache/shape-masks-v1"
    assert len(calls) == 2 and not any(path.exists() for path in calls)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "shape-boxes-v1",
        "shape-masks-v1",
    ]
    assert (masks_folder() / "classes.txt").is_file()
    assert len(open_boxes("shapes").train) == 2
