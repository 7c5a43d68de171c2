"""Pictures with masks become a data set the same way each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_trees import FOUR, fill, mask, picture
from metamobile.data import shape_scenes
from metamobile.data.masks import IGNORED, MaskData, MaskSample, eval_masks, open_masks
from metamobile.errors import DataError, PictureError

CAMVID = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicycle",
]


def places(data: MaskData) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    parts = (
        [(s.path.relative_to(data.root).as_posix(), s.mask.relative_to(data.root).as_posix()) for s in part]
        for part in (data.train, data.val)
    )
    return next(parts), next(parts)


# layouts


@pytest.mark.parametrize("kind", ["masks", "annotations", "labels"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_splits_below_images(tmp_path: Path, kind: str, held_out: str) -> None:
    data = open_masks(fill(tmp_path, masks=f"{kind}/{{split}}", splits=("train", held_out)))
    assert places(data) == tuple(
        [(f"images/{split}/{split}{i}.jpg", f"{kind}/{split}/{split}{i}.png") for i in range(2)]
        for split in ("train", held_out)
    )
    assert data.split == f"the folders images/train/ and images/{held_out}/; classes by classes.txt"


@pytest.mark.parametrize("kind", ["masks", "annotations", "labels"])
def test_splits_above_images(tmp_path: Path, kind: str) -> None:
    data = open_masks(fill(tmp_path, "{split}/images", f"{{split}}/{kind}"))
    assert places(data) == tuple(
        [(f"{split}/images/{split}{i}.jpg", f"{split}/{kind}/{split}{i}.png") for i in range(2)]
        for split in ("train", "val")
    )
    assert data.split == "the folders train/images/ and val/images/; classes by classes.txt"


def test_a_folder_of_boxes_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "annotations/train").mkdir(parents=True)
    (tmp_path / "annotations/train/instances.json").write_text("{}")
    assert places(open_masks(tmp_path))[0][0][1] == "masks/train/train0.png"


def test_val_comes_before_test(tmp_path: Path) -> None:
    fill(tmp_path, splits=("train", "val", "test"))
    picture(tmp_path / "images/valid/x.jpg")
    mask(tmp_path / "masks/valid/x.png")
    data = open_masks(tmp_path)
    assert {s.path.parent.name for s in data.val} == {"val"}
    assert "; not used: images/valid/, images/test/; " in data.split


def test_a_test_folder_without_masks_is_nobodys_to_know(tmp_path: Path) -> None:
    fill(tmp_path, splits=("train",), count=10)
    picture(tmp_path / "images/test/x.jpg")
    data = open_masks(tmp_path)
    assert (len(data.train), len(data.val)) == (8, 2)
    assert "the folder images/train/; not used: images/test/" in data.split


def test_an_undivided_folder_is_split_by_names(tmp_path: Path) -> None:
    data = open_masks(fill(tmp_path / "a", "images", "masks", ("one", "two"), count=10))
    assert (len(data.train), len(data.val)) == (16, 4)
    assert data.split == (
        "20% of the pictures held out with seed 0, of the folder images/; classes by classes.txt"
    )
    moved = open_masks(fill(tmp_path / "b", "images", "labels", ("one", "two"), count=10))
    assert [s.path.name for s in moved.val] == [s.path.name for s in data.val]
    other = open_masks(tmp_path / "a", seed=1)
    assert [s.path.name for s in other.val] != [s.path.name for s in data.val]
    assert {s.path for s in data.train} | {s.path for s in data.val} == {
        s.path for s in other.train + other.val
    }
    fewer = open_masks(tmp_path / "a", exclude=[data.train[0].path, data.train[1].mask])
    assert {s.path for s in fewer.train + fewer.val} == {s.path for s in data.train[2:] + data.val}


def test_without_validation_what_was_learned_by_heart_is_measured(tmp_path: Path) -> None:
    data = open_masks(fill(tmp_path, "images", "masks", ("a",)), val_fraction=0)
    assert data.train == data.val and len(data.train) == 2
    assert data.split.startswith(
        "the training pictures themselves, as val_fraction is 0: figures show what was learned by heart; "
    )


def test_names_of_masks(tmp_path: Path) -> None:
    endings = ["_mask", "-mask", "_L", "_labelIds", "_gt", ""]
    for index, ending in enumerate(endings):
        picture(tmp_path / f"images/deep/{index}.jpg")
        mask(tmp_path / f"masks/deep/{index}{ending}.png")
    picture(tmp_path / "images/left_L.jpg")  # its own name ends so
    picture(tmp_path / "images/left.jpg")
    mask(tmp_path / "masks/left_L.png")
    mask(tmp_path / "masks/left_mask.png")
    (found, _) = places(open_masks(tmp_path, val_fraction=0))
    assert found == [
        *((f"images/deep/{i}.jpg", f"masks/deep/{i}{ending}.png") for i, ending in enumerate(endings)),
        ("images/left.jpg", "masks/left_mask.png"),
        ("images/left_L.jpg", "masks/left_L.png"),
    ]


def test_drawn_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = shape_scenes.write_masks(tmp_path, train=4, val=2, size=32)
    monkeypatch.setattr(shape_scenes, "masks_folder", lambda: drawn)
    data = open_masks("shapes")
    assert data.classes[0] == "background" and (len(data.train), len(data.val)) == (4, 2)
    with Image.open(tmp_path / "masks/val/00001.png") as file:
        expected = np.array(file)
    assert expected.any() and np.array_equal(data.val[1].read_mask(), expected)


# measuring


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    samples, text = eval_masks(fill(tmp_path), ["lake", "tree", "hill", "ground"])
    assert samples[0].read_mask().tolist() == [[3, 2, 0], [0, 2, 3]]
    assert text == "the folder images/val/; classes by classes.txt"
    with pytest.raises(
        ValueError, match="the model has no class 'hill'; it knows lake, hills, ground; did you"
    ):
        eval_masks(tmp_path, ["lake", "hills", "ground"])


def test_all_is_measured_where_nothing_is_held_out(tmp_path: Path) -> None:
    samples, text = eval_masks(fill(tmp_path, "images", "masks", ("a",)), ["ground", "hill", "lake"])
    assert len(samples) == 2 and text.startswith("all, as no validation split is there")


def test_validation_alone_can_be_measured_but_not_learned(tmp_path: Path) -> None:
    root = fill(tmp_path, splits=("val",))
    assert len(eval_masks(root, ["ground", "hill", "lake"])[0]) == 2
    with pytest.raises(ValueError, match="has images/val/ but nothing to train on"):
        open_masks(root)


def test_by_number_where_the_data_names_nothing(tmp_path: Path) -> None:
    samples, text = eval_masks(fill(tmp_path, names=""), ["a", "b", "c"])
    assert np.array_equal(samples[0].read_mask(), FOUR)
    assert text.endswith("classes by the model, by number")
    samples, _ = eval_masks(tmp_path, ["a", "b"])
    with pytest.raises(DataError, match=r"number 2 \(2 pixels\) has no class"):
        samples[0].read_mask()


# what is wrong


def test_pictures_without_masks(tmp_path: Path) -> None:
    root = fill(tmp_path)
    bare = picture(root / "images/train/bare.jpg")
    with pytest.raises(
        DataError, match=r"1 of the 3 pictures have no mask in .*masks/train \(bare.jpg\); add"
    ):
        open_masks(root)
    assert len(open_masks(root, exclude=[bare]).train) == 2
    with pytest.raises(DataError, match="images/train: all pictures with a mask are left out"):
        open_masks(root, exclude=[bare, root / "masks/train/train0.png", root / "masks/train/train1.png"])


def test_a_validation_folder_without_masks(tmp_path: Path) -> None:
    picture(fill(tmp_path, splits=("train",)) / "images/val/x.jpg")
    with pytest.raises(
        DataError, match="images/val: its pictures have no masks; expected images/{train,val}"
    ):
        open_masks(tmp_path)


def test_no_data(tmp_path: Path) -> None:
    picture(tmp_path / "pets/images/x.jpg")
    with pytest.raises(ValueError, match="pets: no masks found; expected images/{train,val} and masks/"):
        open_masks(tmp_path / "pets")
    with pytest.raises(ValueError, match="pet: no such folder; .*; did you mean 'pets'"):
        open_masks(tmp_path / "pet")
    with pytest.raises(ValueError, match=r"x.jpg: a file; expected images"):
        open_masks(tmp_path / "pets/images/x.jpg")


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_fraction_is_one(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"val_fraction {fraction} is not between 0 and 1"):
        open_masks(fill(tmp_path, "images", "masks", ("a",)), val_fraction=fraction)


def test_one_picture_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one picture; expected at least two, to hold one out"):
        open_masks(fill(tmp_path, "images", "masks", ("a",), count=1))


def test_masks_that_cannot_be_read(tmp_path: Path) -> None:
    whole = mask(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-900])
    with pytest.raises(PictureError, match="cut.png: the mask cannot be read .*; replace it or leave it out"):
        MaskSample(whole, tmp_path / "cut.png").read_mask()
    with pytest.raises(PictureError, match="no.png: the mask cannot be read .No such file or directory"):
        MaskSample(whole, tmp_path / "no.png").read_mask()
    with pytest.raises(
        DataError, match="a.jpg: a JPEG, whose losses mix the classes at every edge; save masks"
    ):
        MaskSample(whole, mask(tmp_path / "a.jpg")).read_mask()
    with pytest.raises(DataError, match="f.tif: a mask of mode F; expected numbers of 8 or 16 bits"):
        MaskSample(whole, mask(tmp_path / "f.tif", FOUR.astype(np.float32))).read_mask()
    with pytest.raises(DataError, match="i.tif: numbers from -1 to 70000; expected 0 to 65535"):
        MaskSample(whole, mask(tmp_path / "i.tif", np.array([[-1, 70000]], np.int32))).read_mask()


# real data


def test_camvid(shared: Path) -> None:
    root = shared / "data/camvid"
    if not root.is_dir():
        pytest.skip(f"needs CamVid at {root}")
    data = open_masks(root, classes=CAMVID, ignore=11)
    assert (len(data.train), len(data.val), data.classes) == (367, 101, CAMVID)
    for sample in data.val[::20]:
        assert sample.path.stem == sample.mask.stem
        with Image.open(sample.mask) as file:
            raw = np.array(file)
        found = sample.read_mask()
        assert np.array_equal(found != IGNORED, raw != 11) and np.array_equal(
            found[raw != 11], raw[raw != 11]
        )


def test_without_torch() -> None:
    code = "import sys\nsys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
    code += "import metamobile_cli, metamobile.data.inspect_masks as made\nprint(made.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "metamobile.data.inspect_masks", ran.stderr
