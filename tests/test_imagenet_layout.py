"""ImageNet as it lies on people's disks: right classes and names, right split, clear errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from timm.data import ImageNetInfo

import metamobile
from imagenet_tree import (
    LAYOUTS,
    SYNSETS,
    TREE,
    VAL_CLASSES,
    assert_shown,
    caffe,
    caffe_lines,
    error,
    fill,
    own_tree_with_annotations,
    own_tree_with_solution,
    paint,
    solution_lines,
    write,
)
from metamobile.data.folder import class_names, eval_samples, open_folder
from metamobile.data.inspect import inspect_folder
from metamobile.errors import DataError
from metamobile.tasks.classify.metric import Metric
from metamobile.weights.card import read_card

NAMES = ["tench", "goldfish", "crane (n02012849)", "crane (n03126707)"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_layout_is_read_as_it_is(tmp_path: Path, layout: Callable[[Path], str]) -> None:
    words = layout(tmp_path)
    data = open_folder(tmp_path)
    assert data.classes == SYNSETS
    assert len(data.train) == 12 and len(data.val) == len(VAL_CLASSES)
    assert_shown(data)
    assert data.split == words
    # a model with other classes, in another order
    classes = ["n02102040", *reversed(SYNSETS)]
    samples, eval_words = eval_samples(tmp_path, classes)
    assert {s.path for s in samples} == {s.path for s in data.val}
    assert_shown(samples, classes)
    assert eval_words.split(";")[0] in ("the folder val/", words.split(";")[0].rpartition(" and ")[2])
    inspection = inspect_folder(tmp_path)
    assert inspection.ok, inspection.problems
    assert inspection.pictures == 20
    assert inspection.classes == {s: {"val": 2, "train": 3} for s in SYNSETS}


@pytest.mark.parametrize("inner", ["", "ILSVRC", TREE])
@pytest.mark.parametrize("layout", [own_tree_with_solution, own_tree_with_annotations])
def test_imagenets_own_tree_from_any_of_its_folders(
    tmp_path: Path, inner: str, layout: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout(tmp_path)
    for root in (tmp_path / inner, Path(".")):
        monkeypatch.chdir(tmp_path / inner)
        data = open_folder(root)
        assert data.classes == SYNSETS and len(data.val) == 8
        assert_shown(data)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere/imagenet"
    link.symlink_to(tmp_path / inner, target_is_directory=True)
    assert_shown(open_folder(link))


def test_names_stay_distinct(tmp_path: Path) -> None:
    """Two of ImageNet's classes are called crane, two maillot."""
    assert class_names(SYNSETS) == NAMES
    names = class_names(ImageNetInfo().label_names())
    assert len(set(names)) == 1000
    assert sum(name.startswith("maillot (") for name in names) == 2
    metric = Metric(class_names(SYNSETS))
    metric.update(np.eye(4), [0, 1, 2, 3])
    assert {name: entry["support"] for name, entry in metric.compute()["per_class"].items()} == dict.fromkeys(
        NAMES, 1
    )


def test_a_wrong_solution(tmp_path: Path) -> None:
    fill(tmp_path)
    path = write(tmp_path / "LOC_val_solution.csv", [*solution_lines()[:3], "ILSVRC2012_val_00000001,"])
    assert f"{path}, line 4: 'ILSVRC2012_val_00000001,' names no single picture" in error(tmp_path)
    write(path, ["ImageId,PredictionString"])
    assert f"{path}: an empty list" in error(tmp_path)


def test_wrong_annotations(tmp_path: Path) -> None:
    own_tree_with_annotations(tmp_path)
    path = tmp_path / "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000003.xml"
    write(path, ["<annotation><object><name>n1</name></object><object><name>n2</name></object></annotation>"])
    assert f"{path}: 2 classes; expected one" in error(tmp_path)
    write(path, ["<annotation><object><name>n03126708</name></object></annotation>"])
    assert f"{path}: class 'n03126708' is none of the 4 classes of training" in error(tmp_path)
    write(path, ["<annotation>"])
    assert f"{path}: not XML" in error(tmp_path)
    path.unlink()
    assert f"{path}: no such file; expected an annotation for each picture" in error(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid"])
def test_flat_pictures_without_a_list(tmp_path: Path, name: str) -> None:
    """They were once passed over, and a part of train/ was held out in their place."""
    fill(tmp_path)
    (tmp_path / "val").rename(tmp_path / name)
    write(
        tmp_path / "ILSVRC2012_validation_ground_truth.txt", ["490"] * 8
    )  # the development kit's own numbers
    text = error(tmp_path)
    assert f"{name}: pictures without class folders, and no list tells their classes" in text
    assert "(not ILSVRC2012_validation_ground_truth.txt)" in text
    assert f"a list {name}.txt with lines 'path class'" in text
    assert ("LOC_val_solution.csv" in text) == (name == "val")


def test_what_is_not_used_is_told(tmp_path: Path) -> None:
    fill(tmp_path, flat=False)
    for name in (
        "test.txt",
        "LOC_train_solution.csv",
        "trainval.txt",
        "classes.txt",
        "latest.txt",
        "._val.txt",
    ):
        write(tmp_path / name, ["x"])
    assert open_folder(tmp_path).split == (
        "the folders train/ and val/; not used: LOC_train_solution.csv, test.txt, trainval.txt"
    )
    assert "not used: LOC_train_solution.csv" in inspect_folder(tmp_path).summary()
    assert "not used: LOC_train_solution.csv" in eval_samples(tmp_path, SYNSETS)[1]
    write(tmp_path / "val.txt", caffe_lines())
    write(tmp_path / "meta/val.txt", caffe_lines())
    assert (
        "not used: LOC_train_solution.csv, test.txt, trainval.txt, meta/val.txt"
        in open_folder(tmp_path).split
    )


def test_a_test_folder_without_classes_is_told(tmp_path: Path) -> None:
    fill(tmp_path, flat=False)
    for path in (tmp_path / "val").rglob("*.JPEG"):
        (tmp_path / "test").mkdir(exist_ok=True)
        path.rename(tmp_path / "test" / path.name)
    for folder in (tmp_path / "val").iterdir():
        folder.rmdir()
    (tmp_path / "val").rmdir()
    data = open_folder(tmp_path)
    assert data.split == "20% of each class held out with seed 0; not used: test/ without classes"


def test_archives_that_are_not_unpacked(tmp_path: Path) -> None:
    fill(tmp_path, flat=False)
    packed = tmp_path / "train" / SYNSETS[1]
    (tmp_path / f"train/{SYNSETS[0]}.tar").touch()  # kept beside its folder
    assert open_folder(tmp_path).classes == SYNSETS
    for path in packed.iterdir():
        path.unlink()
    packed.rmdir()
    packed.with_suffix(".tar").touch()
    assert f"{SYNSETS[1]}.tar is not unpacked; unpack each into a folder of its name" in error(tmp_path)


@pytest.mark.parametrize("with_val", [True, False])
def test_archives_alone(tmp_path: Path, with_val: bool) -> None:
    if with_val:
        fill(tmp_path, flat=False, train=0)
    (tmp_path / "train").mkdir()
    for synset in SYNSETS:
        (tmp_path / f"train/{synset}.tar").touch()
    with pytest.raises(DataError, match=r"train: n01440764.tar and 3 more archives are not unpacked"):
        open_folder(tmp_path)


def test_what_systems_leave_behind(tmp_path: Path) -> None:
    caffe(tmp_path)
    for name in (
        "train/__MACOSX/n01440764/x.JPEG",
        "val/._ILSVRC2012_val_00000001.JPEG",
        "train/.ipynb/x.JPEG",
    ):
        paint(tmp_path / name, 0, 50)
    for folder in ("train", "train/n01440764", "val"):
        (tmp_path / folder / ".DS_Store").touch()
        (tmp_path / folder / "Thumbs.db").touch()
    (tmp_path / "train/n01440764/n01440764_0.JPEG").rename(tmp_path / "train/n01440764/n01440764_0.jpg")
    (tmp_path / "train/n01440764/n01440764_10.JPEG").rename(tmp_path / "train/n01440764/n01440764_10.jpeg")
    data = open_folder(tmp_path)
    assert data.classes == SYNSETS and len(data.train) == 12 and len(data.val) == 8
    assert_shown(data)


def test_files_are_not_asked_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the file system about each of ImageNet's 1.3 million files would take minutes."""
    calls, ask = [], os.stat

    def count(*args, **kwargs):
        calls.append(args)
        return ask(*args, **kwargs)

    needed = []
    for size in (3, 60):
        caffe(fill(tmp_path / str(size), train=size))
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", count)
            assert len(open_folder(tmp_path / str(size)).train) == 4 * size
        needed.append(len(calls))
        calls.clear()
    assert 0 < needed[0] == needed[1]


def test_a_training_on_flat_validation_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe of the paper on ImageNet's layout; only its size and length are changed."""
    caffe(tmp_path / "imagenet")
    run = metamobile.train(
        "emo_1m",
        tmp_path / "imagenet",
        recipe="imagenet-emo",
        out=tmp_path / "run",
        epochs=1,
        size=32,
        batch_size=4,
        workers=0,
        device="cpu",
        set=["model.window_size=auto", "run.precision=fp32"],
    )
    said = "".join(capsys.readouterr())
    assert "8 to validate (the folder train/ and val.txt (all 8 pictures in val/))" in " ".join(said.split())
    card = read_card(run.folder / "model.safetensors")
    assert card.classes == SYNSETS and card.names == NAMES
    start = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert start["data"]["split"] == "the folder train/ and val.txt (all 8 pictures in val/)"
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    assert list(evaluation["per_class"]) == NAMES
    assert [sum(row) for row in evaluation["confusion"]] == [2, 2, 2, 2]
    figures = metamobile.evaluate(run.folder, tmp_path / "imagenet")
    assert figures["pictures"] == 8 and figures["top1"] == pytest.approx(evaluation["top1"])
