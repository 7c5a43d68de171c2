"""Lists beside the pictures, of any data: what they name, of which class, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_tree import (
    SYNSETS,
    assert_shown,
    caffe,
    caffe_lines,
    error,
    fill,
    paint,
    paths,
    pets,
    shown,
    val_name,
    write,
)
from metamobile.data.folder import eval_samples, open_folder
from metamobile.data.inspect import inspect_folder
from metamobile.errors import DataError


@pytest.mark.parametrize(
    "line",
    ["{s}/{s}_{n}.JPEG {t}", "{s}/{s}_{n}.JPEG {s}", "{s}/{s}_{n}.JPEG", "{s}/{s}_{n}", "{s}_{n}.JPEG"],
)
def test_a_list_takes_a_part(tmp_path: Path, line: str) -> None:
    fill(tmp_path, flat=False)
    lines = [line.format(s=s, t=t, n=n) for t, s in enumerate(SYNSETS) for n in (0, 20)]
    write(tmp_path / "train.txt", lines)
    data = open_folder(tmp_path)
    assert paths(data.train, tmp_path) == [f"train/{s}/{s}_{n}.JPEG" for s in SYNSETS for n in (0, 20)]
    assert_shown(data)
    assert data.split == "train.txt (8 of the 12 pictures in train/) and the folder val/"
    inspection = inspect_folder(tmp_path)
    assert inspection.ok and inspection.pictures == 16
    assert "by the folder val/ and train.txt (8 of the 12 pictures in train/)" in inspection.summary()


def test_class_folders_with_both_lists(tmp_path: Path) -> None:
    root = pets(tmp_path)
    write(
        root / "train.txt",
        ["cats/cat 0.jpg cats", "dogs/dog 3.jpg dogs", "./cats/cat 1.jpg", "", "dogs/dog 2.jpg 1"],
    )
    write(root / "valid.txt", ["cats/cat 3.jpg 0", "dogs/dog 0.jpg"])
    data = open_folder(root)
    assert paths(data.train, root) == ["cats/cat 0.jpg", "dogs/dog 3.jpg", "cats/cat 1.jpg", "dogs/dog 2.jpg"]
    assert [s.target for s in data.train] == [0, 1, 0, 1]
    assert paths(data.val, root) == ["cats/cat 3.jpg", "dogs/dog 0.jpg"]
    assert [s.target for s in data.val] == [0, 1]
    assert (
        data.split == "train.txt (4 of the 8 pictures in pets/) and valid.txt (2 of the 8 pictures in pets/)"
    )
    assert paths(eval_samples(root, ["dogs", "cats"])[0], root) == paths(data.val, root)
    assert [s.target for s in eval_samples(root, ["dogs", "cats"])[0]] == [1, 0]


def test_a_validation_list_leaves_the_rest_to_training(tmp_path: Path) -> None:
    root = pets(tmp_path)
    write(root / "meta/val.txt", ["cats/cat 3.jpg", "dogs/dog 0.jpg"])
    data = open_folder(root)
    assert data.classes == ["cats", "dogs"]
    assert paths(data.val, root) == ["cats/cat 3.jpg", "dogs/dog 0.jpg"]
    assert {s.path for s in data.train} == set(root.glob("*/*.jpg")) - {s.path for s in data.val}
    assert data.split == "all others in pets/ and meta/val.txt (2 of the 8 pictures in pets/)"
    inspection = inspect_folder(root)
    assert inspection.ok and inspection.pictures == 8
    assert inspection.classes == {"cats": {"val": 1, "train": 3}, "dogs": {"val": 1, "train": 3}}


def test_a_training_list_alone_is_split(tmp_path: Path) -> None:
    root = pets(tmp_path)
    listed = ["cats/cat 0.jpg", "cats/cat 1.jpg", "dogs/dog 0.jpg", "dogs/dog 2.jpg"]
    write(root / "train.txt", listed)
    data = open_folder(root, val_fraction=0.5)
    assert sorted(paths(data.train + data.val, root)) == listed
    assert [s.target for s in data.val] == [0, 1]
    assert data.split == (
        "50% of each class held out with seed 0, of train.txt (4 of the 8 pictures in pets/)"
    )


def test_a_flat_training_folder_takes_its_classes_from_the_list(tmp_path: Path) -> None:
    for i, target in enumerate((1, 0, 1, 0)):
        paint(tmp_path / f"train/{i}.jpg", target, i)
        paint(tmp_path / f"val/{i}.jpg", target, 10 + i)
    names = ["tabby cat", "golden retriever"]
    lines = [f"{i}.jpg {names[target]}" for i, target in enumerate((1, 0, 1, 0))]
    write(tmp_path / "train.txt", lines)
    write(tmp_path / "val.txt", lines)
    data = open_folder(tmp_path)
    assert data.classes == ["golden retriever", "tabby cat"]
    assert [shown(s.path) for s in data.train + data.val] == [1 - s.target for s in data.train + data.val]
    assert inspect_folder(tmp_path).ok
    write(tmp_path / "train.txt", [f"{i}.jpg {i % 2}" for i in range(4)])
    assert "line 1: class 0 is a number, but" in error(tmp_path)


def test_classes_called_by_numbers_are_names(tmp_path: Path) -> None:
    """Sorted as text, 10 comes before 2: a number must not mean a name here and a place there."""
    for name in ("1", "2", "10"):
        paint(tmp_path / f"train/{name}/a.jpg", 0, int(name))
        paint(tmp_path / f"val/{name}.jpg", 1, int(name))
    write(tmp_path / "val.txt", ["1.jpg 1", "2.jpg 2", "10.jpg 10"])
    data = open_folder(tmp_path)
    assert data.classes == ["1", "10", "2"]
    assert [(s.path.stem, data.classes[s.target]) for s in data.val] == [("1", "1"), ("2", "2"), ("10", "10")]
    write(tmp_path / "val.txt", ["1.jpg 0"])
    assert "line 1: class '0' is none of the 3 classes of training" in error(tmp_path)


def test_validation_without_training_counts_the_models_classes(tmp_path: Path) -> None:
    fill(tmp_path, train=0)
    write(tmp_path / "val.txt", caffe_lines())
    classes = list(reversed(SYNSETS))
    samples, words = eval_samples(tmp_path, classes)
    assert_shown(samples, classes)
    assert words == "val.txt (all 8 pictures in val/)"
    with pytest.raises(
        ValueError, match=r"class 3 is out of range; the 3 classes of the model count from 0 to 2"
    ):
        eval_samples(tmp_path, SYNSETS[:3])
    with pytest.raises(ValueError, match="has val/ but no train/"):
        open_folder(tmp_path)


def test_a_model_that_lacks_a_class_of_the_list(tmp_path: Path) -> None:
    caffe(tmp_path)
    with pytest.raises(
        ValueError, match=r"val.txt: the model has no class 'n02012849'; it knows n01440764, .*did"
    ):
        eval_samples(tmp_path, [SYNSETS[0], SYNSETS[1], "n02012840", SYNSETS[3]])


# what the errors say


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{0} 0", "{1} 1", "ILSVRC2012_val_00000099.JPEG 2", "gone.JPEG 1"],
         ["line 3: 'ILSVRC2012_val_00000099.JPEG 2' names no single picture", "2 of 4 lines in all"]),
        (["{0} 0", "490"], ["line 2: '490' names no single picture", "'ILSVRC2012_val_00000001.JPEG CLASS'"]),
        (["shopping: milk", "and bread"], ["line 1:", "if this file is no list of pictures, rename it"]),
        (["{0} n01440765"],
         ["line 1: class 'n01440765' is none of the 4 classes of training; did you mean 'n01440764'?"]),
        (["{0} 0", "{1} 4"],
         ["line 2: class 4 is out of range; the 4 classes of training count from 0 to 3"]),
        (["{0} -1"], ["line 1: class -1 is out of range"]),
        (["{0}"], ["line 1: ILSVRC2012_val_00000001.JPEG has no class; expected 'path class'"]),
        (["{0} 0", "", "{0} 1"], ["line 3: ILSVRC2012_val_00000001.JPEG again, after line 1"]),
        ([], ["an empty list; expected lines such as"]),
        (["n01440764", "n01443537"], ["2 classes for the 8 pictures"]),
    ],
)  # fmt: skip
def test_a_wrong_list_of_flat_pictures(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    fill(tmp_path)
    write(tmp_path / "val.txt", [line.format(*map(val_name, range(8))) for line in lines])
    text = error(tmp_path)
    assert text.startswith(str(tmp_path / "val.txt"))
    assert all(word in text for word in words), text


def test_a_list_that_contradicts_the_class_folder(tmp_path: Path) -> None:
    """So says a list whose numbers count from 1, or that are no classes, before hours are spent on it."""
    fill(tmp_path, flat=False)
    write(
        tmp_path / "val.txt", [line.rpartition(" ")[0] + f" {i + 1}" for i, line in enumerate(caffe_lines())]
    )
    text = error(tmp_path)
    assert "line 1: n02012849/ILSVRC2012_val_00000001.JPEG lies in the class folder 'n02012849'" in text
    assert "but is listed as 'n01443537', class 1; classes count from 0 in the order of their names" in text


def test_a_class_of_val_that_is_not_in_train(tmp_path: Path) -> None:
    fill(tmp_path, flat=False)
    paint(tmp_path / "val/n02102040/a.JPEG", 0, 40)
    with pytest.raises(DataError, match=r"only in val/: n02102040"):
        open_folder(tmp_path)
    write(tmp_path / "train.txt", [f"{s}/{s}_0.JPEG" for s in SYNSETS])
    with pytest.raises(DataError, match=r"only in val/: n02102040"):
        open_folder(tmp_path)
    write(tmp_path / "val.txt", ["n02102040/a.JPEG"])
    assert "val.txt, line 1: class 'n02102040' is none of the 4 classes of training" in error(tmp_path)


def test_a_picture_in_both_lists(tmp_path: Path) -> None:
    root = pets(tmp_path)
    write(root / "train.txt", ["cats/cat 0.jpg", "dogs/dog 0.jpg"])
    write(root / "val.txt", ["dogs/dog 1.jpg", "cats/cat 0.jpg"])
    assert f"val.txt, line 2: cats/cat 0.jpg is in {root / 'train.txt'} too" in error(root)


def test_a_training_list_without_a_class(tmp_path: Path) -> None:
    fill(tmp_path, flat=False)
    write(tmp_path / "train.txt", [f"{s}/{s}_0.JPEG" for s in SYNSETS[:3]])
    with pytest.raises(
        DataError, match=r"train.txt: no picture to train on of 1 of the 4 classes \(n03126707\)"
    ):
        open_folder(tmp_path)
    (problem,) = inspect_folder(tmp_path).problems
    assert str(problem) == f"{tmp_path / 'train.txt'}: empty class (no picture of n03126707)"


def test_a_validation_list_may_leave_classes_out(tmp_path: Path) -> None:
    fill(tmp_path)
    write(tmp_path / "val.txt", caffe_lines()[:2])
    data = open_folder(tmp_path)
    assert data.split == (
        "the folder train/ and val.txt (2 of the 8 pictures in val/); "
        "no picture to validate on of 2 of the 4 classes"
    )
    assert inspect_folder(tmp_path).ok
