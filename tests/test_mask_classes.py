"""A mask's values become the classes they mean: numbers, colours, palettes, ADE20K; wrong names are told."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_trees import FOUR, fill, mask
from metamobile.data import ade20k
from metamobile.data.masks import IGNORED, eval_masks, open_masks
from metamobile.errors import DataError


def test_a_line_that_names_nothing_is_ignored(tmp_path: Path) -> None:
    data = open_masks(fill(tmp_path, names="Void\nhill\nlake\n"))
    assert data.classes == ["hill", "lake"]
    assert data.train[0].read_mask().tolist() == [[IGNORED, 0, 1], [1, 0, IGNORED]]


def test_given_names_and_an_ignored_number(tmp_path: Path) -> None:
    values = np.array([[0, 1, 11], [255, 1, 0]], np.uint8)
    root = fill(tmp_path, names="", values=values)
    data = open_masks(root, classes=["sea", "land"], ignore=11)
    assert data.classes == ["sea", "land"]
    assert data.train[0].read_mask().tolist() == [[0, 1, 255], [255, 1, 0]]
    unsure = open_masks(root, classes=["sea", "land"]).train[0]
    with pytest.raises(
        DataError, match=r"train0.png: number 11 \(1 pixel\) has no class; name it in cl.*ignore"
    ):
        unsure.read_mask()


def test_an_ignored_class_is_left_out_and_the_model_measured_alike(tmp_path: Path) -> None:
    root = fill(tmp_path, names="")
    data = open_masks(root, classes=["ground", "hill", "lake"], ignore=0)
    assert data.classes == ["hill", "lake"]
    expected = [[255, 0, 1], [1, 0, 255]]
    assert data.val[0].read_mask().tolist() == expected
    assert eval_masks(root, data.classes, ignore=0)[0][0].read_mask().tolist() == expected


def test_numbers_that_nobody_names(tmp_path: Path) -> None:
    root = fill(tmp_path, names="", values=np.array([[7, 0, 200], [7, 255, 0]], np.uint8))
    data = open_masks(root)
    assert data.classes == ["class 0", "class 7", "class 200"]
    assert data.split.endswith("; classes by their numbers")
    expected = [[1, 0, 2], [1, 255, 0]]
    assert data.train[0].read_mask().tolist() == expected
    measured, _ = eval_masks(root, data.classes)
    assert measured[0].read_mask().tolist() == expected


def test_sixteen_bits(tmp_path: Path) -> None:
    root = fill(tmp_path, names="", values=np.array([[7, 0, 300], [65535, 300, 0]], np.uint16))
    data = open_masks(root, ignore=65535)
    assert data.classes == ["class 0", "class 7", "class 300"]
    assert data.train[0].read_mask().tolist() == [[1, 0, 2], [255, 2, 0]]


def test_a_palettes_colours_mean_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path)
    coloured = Image.fromarray(FOUR, "L").convert("P")
    coloured.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    coloured.putdata(FOUR.ravel().tolist())
    coloured.save(root / "masks/train/train0.png")
    with Image.open(root / "masks/train/train0.png") as saved:
        assert saved.mode == "P"
    assert np.array_equal(open_masks(root).train[0].read_mask(), FOUR)


@pytest.mark.parametrize("names", ["", "ground\nhill\n"])
def test_two_values(tmp_path: Path, names: str) -> None:
    """0 and 255 alone are a background and what is looked for; next to a 1, 255 is ignored as ever."""
    black, mixed = np.zeros((2, 3), np.uint8), np.array([[0, 255, 0], [0, 0, 255]], np.uint8)
    root = fill(tmp_path, "images", "masks", ("a",), black, names=names)
    mask(root / "masks/a0.png", mixed)
    data = open_masks(root, val_fraction=0)
    assert data.train[0].read_mask().tolist() == [[0, 1, 0], [0, 0, 1]]
    assert f"255 meaning {data.classes[1]!r}" in data.split
    samples, text = eval_masks(root, data.classes)
    assert samples[0].read_mask().tolist() == [[0, 1, 0], [0, 0, 1]] and "255 meaning" in text

    mask(root / "masks/a1.png", np.array([[0, 1, 0], [0, 0, 1]], np.uint8))
    data = open_masks(root, val_fraction=0)
    assert data.train[0].read_mask().tolist() == [[0, 255, 0], [0, 0, 255]]
    assert "255 meaning" not in data.split


def test_one_bit(tmp_path: Path) -> None:
    root = fill(tmp_path, "images", "masks", ("a",), np.array([[True, False], [False, False]]), names="")
    data = open_masks(root, val_fraction=0)
    with Image.open(data.train[0].mask) as saved:
        assert saved.mode == "1"
    assert data.classes == ["class 0", "class 1"]
    assert data.train[0].read_mask().tolist() == [[1, 0], [0, 0]]


COLOURS = np.array([[[128, 64, 128], [0, 0, 0]], [[0, 0, 7], [0, 0, 0]]], np.uint8)


@pytest.mark.parametrize("alpha", [False, True])
def test_colours(tmp_path: Path, alpha: bool) -> None:
    values = np.dstack([COLOURS, np.full((2, 2, 1), 255, np.uint8)]) if alpha else COLOURS
    lines = "\ufeffa long road 128 64 128\nunlabelled, 0, 0, 0\nsea 0,0,7\n"
    data = open_masks(fill(tmp_path, values=values, names=lines))
    assert data.classes == ["a long road", "sea"]
    assert data.train[0].read_mask().tolist() == [[0, 255], [1, 255]]
    assert pickle.loads(pickle.dumps(data.train[0])).read_mask().tolist() == [[0, 255], [1, 255]]


def test_a_colour_that_no_class_has(tmp_path: Path) -> None:
    data = open_masks(fill(tmp_path, values=COLOURS, names="road 128 64 128\nsea 0 0 7\n"))
    with pytest.raises(
        DataError, match=r"train0.png: colour 0 0 0 \(2 pixels\) has no class; add it to class"
    ):
        data.train[0].read_mask()


@pytest.mark.parametrize("names", ["", "road\nsea\n"])
def test_colours_without_names_are_listed(tmp_path: Path, names: str) -> None:
    root = fill(tmp_path, values=COLOURS, names=names)
    with pytest.raises(
        DataError, match=r"found 0 0 0, 0 0 7, 128 64 128; write .*classes.txt with a line 'name"
    ):
        open_masks(root)


# ADE20K

ADE_VALUES = np.array([[0, 1, 150], [13, 255, 2]], np.uint8)


@pytest.mark.parametrize("name", ["anything", "ADEChallengeData2016"])
def test_ade20k_by_its_folders(tmp_path: Path, name: str) -> None:
    splits = ("training", "validation")
    root = fill(tmp_path / name, masks="annotations/{split}", splits=splits, values=ADE_VALUES, names="")
    data = open_masks(root)
    assert (len(data.classes), data.classes[0], data.classes[12], data.classes[149]) == (
        150,
        "wall",
        "person",
        "flag",
    )
    assert data.val[0].read_mask().tolist() == [[255, 0, 149], [12, 255, 1]]
    assert [s.path.name for s in data.val] == ["validation0.jpg", "validation1.jpg"]
    assert data.split.endswith("classes by ADE20K (150 names, 0 ignored)")
    shuffled = [*reversed(data.classes), "more"]
    samples, _ = eval_masks(root, shuffled)
    assert samples[0].read_mask().tolist() == [[255, 149, 0], [137, 255, 148]]


@pytest.mark.parametrize(("name", "is_ade"), [("ade20k", True), ("my-ade", True), ("facades", False)])
def test_ade20k_by_the_roots_name(tmp_path: Path, name: str, is_ade: bool) -> None:
    data = open_masks(fill(tmp_path / name, names=""))
    assert (len(data.classes) == 150) is is_ade


def test_ade20k_with_its_own_list(tmp_path: Path) -> None:
    root = fill(tmp_path, values=ADE_VALUES % 4, names="")
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    rows = "1\t0.1\t5\t6\t1\twall \n2\t0.1\t5\t6\t1\tbuilding, edifice\n3\t0.1\t5\t6\t0\tsky\n"
    (root / "objectInfo150.txt").write_text(head + rows)
    data = open_masks(root)
    assert data.classes == ["wall", "building", "sky"]
    assert data.train[0].read_mask().tolist() == [[255, 0, 1], [0, 2, 1]]
    (root / "objectInfo150.txt").write_text("wall\n")
    with pytest.raises(DataError, match="objectInfo150.txt: expected a head with Idx and Name"):
        open_masks(root)


def test_ade20k_has_150_names() -> None:
    assert len(set(ade20k.NAMES)) == len(ade20k.NAMES) == 150
    assert ade20k.NAMES[64] == "coffee table" and ade20k.NAMES[44] == "chest of drawers"


# what is wrong


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a\n\nb\n", "classes.txt:2: an empty line; expected the name of the masks' number 1"),
        ("a\nb\na\n", "classes.txt:3: 'a' again"),
        ("a 0 0 0\nb 0 0 0\n", "classes.txt:2: the colour of line 1 again"),
        ("a 0 0 0\nb\n", "classes.txt:2: no colour, others have one"),
        ("a 0 0 256\nb\n", "classes.txt:1: colour 0 0 256; expected red, green and blue from 0 to 255"),
        ("a\nvoid\n", "1 class (a) by classes.txt; expected 2 to 254, the background included"),
        ("".join(f"c{i}\n" for i in range(255)), "255 classes by classes.txt; expected 2 to 254"),
    ],
)
def test_wrong_names(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_masks(fill(tmp_path, names=names))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_contradict(tmp_path: Path) -> None:
    root = fill(tmp_path)
    assert open_masks(root, classes=["ground", "hill", "lake"]).classes == ["ground", "hill", "lake"]
    with pytest.raises(
        ValueError, match="names ground, hill, lake, data.classes hill, lake; expected the same"
    ):
        open_masks(root, classes=["hill", "lake"])
    with pytest.raises(ValueError, match="'void' is no class; leave it out and ignore its number, 1"):
        open_masks(root, classes=["hill", "void"])
    with pytest.raises(ValueError, match="'hill' is named twice"):
        open_masks(root, classes=["hill", "hill"])


def test_latin_1(tmp_path: Path) -> None:
    (fill(tmp_path) / "classes.txt").write_bytes("bär\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 \(invalid .* at byte 1\)"):
        open_masks(tmp_path)
