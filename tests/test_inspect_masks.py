"""Each fault of a data set of masks is named, with its file, before it is learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamobile.data.inspect_masks import MaskInspection, inspect_masks
from metamobile.data.masks import open_masks
from metamobile.errors import DataError

FOUR = np.array([[0, 1, 2, 2], [2, 1, 0, 2]], np.uint8)  # H 2, W 4: 2, 2 and 4 pixels of three classes
SIZE = (4, 2)


def pair(root: Path, split: str, name: str, values: np.ndarray = FOUR, size: tuple[int, int] = SIZE) -> Path:
    """A picture, other for each name, and its mask; the path of the mask."""
    picture, mask = root / "images" / split / f"{name}.jpg", root / "masks" / split / f"{name}.png"
    for path in (picture, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([*f"{split}{name}".encode()]).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    Image.fromarray(values).save(mask)
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three good pairs."""
    (tmp_path / "classes.txt").write_text("ground\nhill\nlake\nvoid\n")
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        pair(tmp_path, split, name)
    return tmp_path


def told(found: MaskInspection) -> list[tuple[str, str, str]]:
    return [
        (p.path.relative_to(found.root).as_posix() if p.path != found.root else "", p.kind, p.detail)
        for p in found.problems
    ]


def test_good_data(root: Path) -> None:
    pair(root, "val", "d", np.array([[3, 255, 0, 0], [0, 0, 0, 0]], np.uint8))
    steps: list[tuple[int, int]] = []
    found = inspect_masks(root, workers=2, progress=lambda *step: steps.append(step))
    assert found.ok and not found.files_to_drop() and steps == [(i, 4) for i in range(1, 5)]
    assert found.classes == {
        "ground": {"train": 4, "val": 8},
        "hill": {"train": 4, "val": 2},
        "lake": {"train": 8, "val": 4},
    }
    assert (found.pictures, found.splits, found.ignored) == (4, {"train": 2, "val": 2}, 2)
    assert found.summary() == (
        f"{root}: 4 pictures (train 2, val 2) of 3 classes, by classes.txt; of the labelled pixels ground "
        "40.0%, lake 40.0%, hill 20.0%; ignored: 6.2%; no problem found"
    )


def test_left_overs(root: Path) -> None:
    (root / "masks/train/a.png").rename(root / "masks/train/other.png")
    found = inspect_masks(root)
    assert told(found) == [
        ("images/train/a.jpg", "picture without mask", f"no mask of the name a in {root / 'masks/train'}"),
        (
            "masks/train/other.png",
            "mask without picture",
            f"no picture in {root / 'images/train'} has its name, or only one that has another mask",
        ),
    ]
    assert (found.pictures, found.classes["lake"]) == (3, {"train": 4, "val": 4})
    assert "problems: 1 picture without mask, 1 mask without picture" in found.summary()
    assert [s.path.name for s in open_masks(root, exclude=found.files_to_drop()).train] == ["b.jpg"]


def test_sizes(root: Path) -> None:
    pair(root, "train", "x", size=(8, 2))
    turned = pair(root, "train", "y", FOUR.T.copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right: the picture is 2 wide, 4 high
    for name in ("right", "wrong"):
        pair(root, "train", name, FOUR.T.copy() if name == "right" else FOUR)
        pixels = np.random.default_rng([*name.encode()]).integers(0, 256, (2, 4, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"images/train/{name}.jpg", exif=exif)
    found = inspect_masks(root)
    assert told(found) == [
        (
            "masks/train/wrong.png",
            "size differs",
            "4x2, its picture is 2x4 by its EXIF rotation; turn the mask, or take the rotation out of the "
            "picture",
        ),
        ("masks/train/x.png", "size differs", "4x2, its picture is 8x2"),
        ("masks/train/y.png", "size differs", "2x4, its picture is 4x2"),
    ]
    assert turned in found.files_to_drop()
    assert [s.path.stem for s in open_masks(root, exclude=found.files_to_drop()).train] == ["a", "b", "right"]


def test_what_cannot_be_read(root: Path) -> None:
    pair(root, "train", "x", np.random.default_rng(0).integers(0, 3, (64, 64), np.uint8), (64, 64))
    content = (root / "masks/train/x.png").read_bytes()
    (root / "masks/train/x.png").write_bytes(content[:-400])
    content = (root / "images/train/x.jpg").read_bytes()
    (root / "images/train/x.jpg").write_bytes(content[: len(content) // 2])
    (root / "masks/train/a.png").write_bytes(b"")
    (root / "images/train/b.jpg").write_bytes(b"\xff\xd8 nothing")
    Image.fromarray(FOUR.astype(np.float32)).save(root / "masks/val/c.tif")
    (root / "masks/val/c.png").unlink()
    found = inspect_masks(root)
    kinds = [(path, kind) for path, kind, _ in told(found)]
    assert kinds == [
        ("masks/val/c.tif", "unusable mask"),
        ("masks/train/a.png", "empty file"),
        ("images/train/b.jpg", "unreadable"),
        ("images/train/x.jpg", "truncated"),
        ("masks/train/x.png", "truncated"),
    ]
    assert told(found)[0][2].startswith("a mask of mode F; expected numbers")


def test_copies(root: Path) -> None:
    for place in ("train/a2", "train/c2"):
        pair(root, *place.split("/"))
    for source, copy in (("train/a", "train/a2"), ("val/c", "train/c2")):
        (root / f"images/{copy}.jpg").write_bytes((root / f"images/{source}.jpg").read_bytes())
    first, second = (str(root / f"images/{place}.jpg") for place in ("train/a", "val/c"))
    assert told(inspect_masks(root)) == [
        ("images/train/a2.jpg", "duplicate", f"duplicate of {first}"),
        (
            "images/train/c2.jpg",
            "duplicate",
            f"duplicate of {second}; in train and val, it flatters the figures",
        ),
    ]


def test_unknown_numbers_and_wholly_ignored(root: Path) -> None:
    pair(root, "train", "x", np.array([[9, 9, 7, 0], [9, 0, 0, 0]], np.uint8))
    pair(root, "train", "y", np.array([[3, 3, 3, 3], [255, 3, 3, 3]], np.uint8))
    found = inspect_masks(root)
    advice = "name it in classes.txt or data.classes, or give it as data.ignore"
    assert told(found) == [
        ("masks/train/x.png", "unknown number", f"numbers 9 (3 pixels), 7 (1 pixel) have no class; {advice}"),
        ("masks/train/y.png", "wholly ignored", "no pixel has a class, so nothing is learned from it"),
    ]
    assert found.classes["ground"] == {"train": 4, "val": 2}
    assert found.summary().endswith("problems: 1 unknown number, 1 wholly ignored")


def test_a_class_that_is_never_seen(root: Path) -> None:
    for name in "ab":
        pair(root, "train", name, FOUR % 2)
    found = inspect_masks(root)
    assert found.ok and found.unseen == ["lake"]
    assert "; classes without a pixel to train on: 1 (lake); no problem" in found.summary()


def test_lossy_masks(root: Path) -> None:
    (root / "masks/train/a.png").unlink()
    Image.fromarray(FOUR).save(root / "masks/train/a.jpg")
    assert told(inspect_masks(root)) == [
        (
            "masks/train/a.jpg",
            "lossy mask",
            "a JPEG, whose losses mix the classes at every edge; save masks as PNG",
        )
    ]


def test_palettes_are_told(root: Path) -> None:
    mask = Image.new("P", SIZE)
    mask.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
    mask.putdata(FOUR.ravel().tolist())
    mask.save(root / "masks/train/a.png")
    found = inspect_masks(root)
    assert found.ok and found.palettes == 1 and found.classes["lake"]["train"] == 8
    assert "; masks with a palette, read as numbers: 1; no problem" in found.summary()


def coloured(root: Path) -> Path:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        pair(root, split, name, np.stack([FOUR * 100, FOUR, FOUR * 0], axis=-1))
    return root


def test_colours(root: Path) -> None:
    (coloured(root) / "classes.txt").write_text("ground 0 0 0\nhill 100 1 0\nlake 200 2 0\n")
    found = inspect_masks(root)
    assert found.ok and found.classes["lake"] == {"train": 8, "val": 4}
    (root / "classes.txt").write_text("ground 0 0 0\nhill 100 1 0\nlake 200 2 1\n")
    found = inspect_masks(root)
    detail = "colour 200 2 0 (4 pixels) has no class; add it to classes.txt as 'name r g b'"
    masks = ["masks/val/c.png", "masks/train/a.png", "masks/train/b.png"]
    assert told(found) == [(mask, "unknown colour", detail) for mask in masks]


@pytest.mark.parametrize("named", [False, True])
def test_colours_without_names_are_one_problem(root: Path, named: bool) -> None:
    coloured(root)
    if not named:
        (root / "classes.txt").unlink()
    found = inspect_masks(root)
    expected = (
        f"found 200 2 0, 0 0 0, 100 1 0; write {root / 'classes.txt'} with a line 'name r g b' for each"
    )
    assert told(found) == [("", "colours without names", expected)]
    assert not found.files_to_drop()  # it would be all of them
    assert found.summary().endswith("problems: 1 colours without names")
    with pytest.raises(DataError, match="found 200 2 0, 0 0 0, 100 1 0; write"):
        open_masks(root)


def test_a_mask_of_colours_among_numbers(root: Path) -> None:
    pair(root, "train", "b", np.stack([FOUR, FOUR, FOUR], axis=-1))
    ((path, kind, detail),) = told(inspect_masks(root))
    assert (path, kind) == ("masks/train/b.png", "unknown colour")
    assert detail.startswith("colours 2 2 2 (4 pixels), 0 0 0 (2 pixels), 1 1 1 (2 pixels) have no class")


def test_names_that_are_given_or_found(root: Path) -> None:
    (root / "classes.txt").unlink()
    found = inspect_masks(root)
    assert found.ok and list(found.classes) == ["class 0", "class 1", "class 2"]
    assert "of 3 classes, by their numbers;" in found.summary()
    found = inspect_masks(root, classes=["ground", "hill"], ignore=2)
    assert found.ok and found.classes["hill"] == {"train": 4, "val": 2} and found.ignored == 12
    found = inspect_masks(root, classes=["ground", "hill"])
    assert {kind for _, kind, _ in told(found)} == {"unknown number"} and len(found.problems) == 3


def test_photos_in_place_of_masks(root: Path) -> None:
    (root / "classes.txt").write_text("ground 0 0 0\nhill 100 1 0\n")
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        pair(root, split, name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (64, 64))
    problems = inspect_masks(root).problems
    assert [p.kind for p in problems] == ["unknown colour"] * 3
    assert "(1 pixel)" in problems[0].detail and " and 992 more have no class" in problems[0].detail


def test_too_few_classes(root: Path) -> None:
    (root / "classes.txt").write_text("ground\nvoid\n")
    ((path, kind, detail),) = told(inspect_masks(root))
    assert (path, kind) == ("", "number of classes")
    assert detail == "1 class (ground) by classes.txt; expected 2 to 254, the background included"


def test_two_values(root: Path) -> None:
    (root / "classes.txt").unlink()
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        pair(root, split, name, (FOUR > 1).astype(np.uint8) * 255)
    found = inspect_masks(root)
    assert found.ok and found.classes["class 1"] == {"train": 8, "val": 4}
    assert "by their numbers, 255 meaning 'class 1'" in found.summary()


def test_many_classes_are_told_by_the_largest_and_the_smallest(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, split, np.repeat(np.arange(13, dtype=np.uint8), 4).reshape(2, 26), (26, 2))
    pair(tmp_path, "train", "x", np.full((2, 4), 5, np.uint8))
    text = inspect_masks(tmp_path).summary()
    assert (
        "of 13 classes, by their numbers; of the labelled pixels from class 5 14.3% to class 12 7.1%;" in text
    )


def test_what_stops_before_a_file_is_read(root: Path) -> None:
    (root / "classes.txt").write_text("ground\n\nhill\n")
    with pytest.raises(DataError, match="classes.txt:2: an empty line"):
        inspect_masks(root)
    with pytest.raises(ValueError, match="no such folder"):
        inspect_masks(root / "no")


def test_camvid(shared: Path, tmp_path: Path) -> None:
    """A part of it, against counts of NumPy's own."""
    camvid = shared / "data/camvid"
    if not camvid.is_dir():
        pytest.skip(f"needs CamVid at {camvid}")
    expected = {}
    for split in ("train", "val"):
        masks = sorted((camvid / "annotations" / split).glob("*.png"))[::60]
        for mask in masks:
            picture = camvid / "images" / split / f"{mask.stem}.jpg"
            for path in (mask, picture):
                link = tmp_path / path.relative_to(camvid)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        pixels = np.concatenate([np.array(Image.open(mask)).ravel() for mask in masks])
        expected[split] = [int((pixels == number).sum()) for number in range(12)]
    names = [f"name {letter}" for letter in "abcdefghijk"]
    found = inspect_masks(tmp_path, classes=names, ignore=11)
    assert found.ok, found.problems
    for number, name in enumerate(names):
        assert found.classes[name] == {split: expected[split][number] for split in ("train", "val")}
    assert found.ignored == expected["train"][11] + expected["val"][11]
