"""A folder becomes a data set the same way each time, and what is wrong with it is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamobile.data.folder import FolderData, class_names, eval_samples, open_folder
from metamobile.data.inspect import Problem, inspect_folder
from metamobile.errors import DataError


def content(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def fill(root: Path, splits: tuple[str, ...] = ("train", "val"), pictures: int = 3) -> Path:
    """cats/ and dogs/ with different pictures in each split; "" for class folders alone."""
    seed = 0
    for split in splits:
        for name in ("cats", "dogs"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(pictures):
                seed += 1
                (folder / f"{index}.jpg").write_bytes(content(seed))
    return root


def names(data: FolderData) -> tuple[list[str], list[str]]:
    return tuple([str(s.path.relative_to(data.root)) for s in part] for part in (data.train, data.val))  # type: ignore[return-value]


# how pictures are divided


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_given_splits_are_kept(tmp_path: Path, held_out: str) -> None:
    data = open_folder(fill(tmp_path, ("train", held_out)))
    assert data.classes == ["cats", "dogs"]
    assert [s.target for s in data.train] == [s.target for s in data.val] == [0, 0, 0, 1, 1, 1]
    assert all(s.path.is_relative_to(tmp_path / "train") for s in data.train)
    assert all(s.path.is_relative_to(tmp_path / held_out) for s in data.val)
    assert data.split == f"the folders train/ and {held_out}/"


def test_val_comes_before_test(tmp_path: Path) -> None:
    data = open_folder(fill(tmp_path, ("train", "val", "test")))
    assert {s.path.relative_to(tmp_path).parts[0] for s in data.val} == {"val"}


@pytest.mark.parametrize("split", ["", "train"])
def test_split_is_stratified_and_complete(tmp_path: Path, split: str) -> None:
    data = open_folder(fill(tmp_path, (split,), 10), val_fraction=0.3)
    assert [[s.target for s in part].count(c) for part in (data.train, data.val) for c in (0, 1)] == [
        7,
        7,
        3,
        3,
    ]
    assert {s.path for s in data.train} | {s.path for s in data.val} == set(tmp_path.rglob("*.jpg"))
    assert not {s.path for s in data.train} & {s.path for s in data.val}
    assert data.split == "30% of each class held out with seed 0"


def test_split_depends_on_the_seed_and_names_alone(tmp_path: Path) -> None:
    here, there = fill(tmp_path / "here", ("",), 20), fill(tmp_path / "there", ("",), 20)
    first = names(open_folder(here, seed=3))
    assert names(open_folder(here, seed=3)) == first
    assert names(open_folder(str(there), seed=3)) == first  # wherever the folder lies
    assert names(open_folder(here, seed=4)) != first
    (here / "cats/later.jpg").write_bytes(content(999))
    train, val = names(open_folder(here, seed=3))
    moved = (set(train) ^ set(first[0])) | (set(val) ^ set(first[1]))
    assert len(moved) <= 2, "a new file must not reshuffle the others"


def test_small_classes_keep_a_picture_on_each_side(tmp_path: Path) -> None:
    for fraction in (0.01, 0.99):
        data = open_folder(fill(tmp_path / str(fraction), ("",), 2), val_fraction=fraction)
        assert [s.target for s in data.train] == [s.target for s in data.val] == [0, 1]


def test_exclude_and_hidden_files(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in (".x.jpg", ".ipynb_checkpoints/x.jpg", "notes.txt", "deeper/X.JPEG"):
        (tmp_path / "train/cats" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train/cats" / name).write_bytes(content(77))
    (tmp_path / "train/.git").mkdir()
    data = open_folder(tmp_path, exclude=[tmp_path / "train/cats/1.jpg"])
    assert data.classes == ["cats", "dogs"]
    assert [s.path.name for s in data.train if s.target == 0] == ["0.jpg", "2.jpg", "X.JPEG"]


def test_a_class_may_be_called_train_or_test(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "car", "test")):
        (tmp_path / name).mkdir()
        for index in range(2):
            (tmp_path / name / f"{index}.jpg").write_bytes(content(10 * seed + index))
    assert open_folder(tmp_path).classes == ["car", "test", "train"]


# what the errors say


def error(root: str | Path, kind: type[ValueError] = ValueError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        open_folder(root, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    assert "pest: no such folder" in error(tmp_path / "pest") and "did you mean 'pets'?" in error(
        tmp_path / "pest"
    )
    assert "did you mean 'shapes'?" in error("shape")
    (tmp_path / "a.jpg").touch()
    assert "a.jpg: a file; expected a folder of class folders" in error(tmp_path / "a.jpg")


def test_folders_without_classes(tmp_path: Path) -> None:
    assert "no class folders; expected at least two" in error(tmp_path)
    (tmp_path / "cats").mkdir()
    assert "only the class folder 'cats'; expected at least two" in error(tmp_path)


def test_flat_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        (tmp_path / split).mkdir()
        for index in range(2):
            (tmp_path / split / f"{index}.jpg").write_bytes(content(10 * seed + index))
    assert "no class folders in train, val; expected train/<class>/*.jpg" in error(tmp_path)


def test_val_alone(tmp_path: Path) -> None:
    assert "has valid/ but no train/" in error(fill(tmp_path, ("valid",)))


def test_different_class_sets(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "val/cats").rename(tmp_path / "val/cows")
    assert "class sets differ between train/ and val/ (only in train/: cats; only in val/: cows)" in error(
        tmp_path, DataError
    )


def test_too_few_pictures(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    files = list((tmp_path / "a/val/dogs").iterdir())
    assert "dogs: all 3 pictures are left out" in error(tmp_path / "a", DataError, exclude=files)
    for file in files:
        file.unlink()
    assert "dogs: no picture inside" in error(tmp_path / "a", DataError)
    assert "expected at least two" in error(fill(tmp_path / "b", ("",), 1), DataError)
    assert "val_fraction 1.5 is not between 0 and 1" in error(fill(tmp_path / "c", ("",)), val_fraction=1.5)


# what a model is measured on


def test_eval_samples_match_classes_by_name(tmp_path: Path) -> None:
    fill(tmp_path)
    samples, words = eval_samples(tmp_path, ["birds", "dogs", "cats"])
    assert [s.target for s in samples] == [2, 2, 2, 1, 1, 1]
    assert all(s.path.is_relative_to(tmp_path / "val") for s in samples)
    assert words == "the folder val/"
    samples, words = eval_samples(fill(tmp_path / "plain", ("",)), ["cats", "dogs"])
    assert len(samples) == 6 and words == "all, as no validation split is there"
    with pytest.raises(
        ValueError, match=r"the model has no class 'cats'; it knows cat, dogs; did you mean 'cat'\?"
    ):
        eval_samples(tmp_path, ["cat", "dogs"])


def test_class_names() -> None:
    assert class_names(["n01440764", "n02102040"]) == ["tench", "English springer"]
    assert class_names(["n01440764", "cats"]) == ["n01440764", "cats"]


# what `check` finds, one by one


def only_problem(root: Path) -> Problem:
    inspection = inspect_folder(root)
    assert not inspection.ok
    (problem,) = inspection.problems
    return problem


def test_good_data(tmp_path: Path) -> None:
    fill(tmp_path)
    steps: list[tuple[int, int]] = []
    inspection = inspect_folder(tmp_path, workers=2, progress=lambda done, total: steps.append((done, total)))
    assert inspection.ok and not inspection.problems and not inspection.files_to_drop()
    assert inspection.pictures == 12
    assert inspection.classes == {"cats": {"train": 3, "val": 3}, "dogs": {"train": 3, "val": 3}}
    assert steps == [(n, 12) for n in range(1, 13)]
    assert "12 pictures of 2 classes" in inspection.summary() and "no problem" in inspection.summary()
    assert "train 6" in inspection.summary() and "val 6" in inspection.summary()


@pytest.mark.parametrize(
    ("name", "make", "kind", "words"),
    [
        ("x.jpg", lambda: b"no picture at all", "unreadable", "no known picture format"),
        ("x.jpg", lambda: b"", "empty file", "0 bytes"),
        ("x.jpg", lambda: content(50)[:-200], "truncated", "truncated"),
        ("x.png", lambda: content(50, "PNG")[:700], "truncated", "truncated"),
        ("x.jpg", lambda: content(50, "PNG"), "wrong extension", "PNG"),
        ("x.png", lambda: content(50), "wrong extension", "rename it to x.jpg"),
        ("x.txt", lambda: content(50), "wrong extension", "rename it to x.jpg"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, make: Callable[[], bytes], kind: str, words: str) -> None:
    path = fill(tmp_path) / "train/cats" / name
    path.write_bytes(make())
    problem = only_problem(tmp_path)
    assert (problem.path, problem.kind) == (path, kind)
    assert words in problem.detail
    inspection = inspect_folder(tmp_path)
    assert inspection.files_to_drop() == {path}
    assert f"1 {kind}" in inspection.summary()
    data = open_folder(tmp_path, exclude=inspection.files_to_drop())
    assert len(data.train) == len(data.val) == 6


def test_wrong_extension_knows_the_aliases(tmp_path: Path) -> None:
    fill(tmp_path)
    for seed, (suffix, kind) in enumerate(
        {"JPEG": "JPEG", "jfif": "JPEG", "tiff": "TIFF", "tif": "TIFF"}.items()
    ):
        (tmp_path / "train/cats" / f"x.{suffix}").write_bytes(content(100 + seed, kind))
    assert inspect_folder(tmp_path).ok


def test_sixteen_bit_and_transparent_pictures_are_good(tmp_path: Path) -> None:
    folder = fill(tmp_path) / "train/cats"
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(folder / "deep.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(folder / "clear.png")
    assert inspect_folder(tmp_path).ok


def test_unopenable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = fill(tmp_path) / "train/cats/0.jpg", Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    problem = only_problem(tmp_path)
    assert (problem.path, problem.kind) == (path, "unreadable")
    assert "cannot be opened: Permission denied" in problem.detail


@pytest.mark.parametrize(
    ("where", "words", "others"),
    [
        ("train/cats", [], ["flatters", "contradict"]),
        ("val/cats", ["flatters"], ["contradict"]),
        ("train/dogs", ["cats", "dogs", "contradict"], ["flatters"]),
        ("val/dogs", ["flatters", "contradict"], []),
    ],
)
def test_duplicates(tmp_path: Path, where: str, words: list[str], others: list[str]) -> None:
    """Of a pair the one in val/ is kept: the figures stay those of the same pictures."""
    original = fill(tmp_path) / "train/cats/0.jpg"
    copy = tmp_path / where / "copy.jpg"
    copy.write_bytes(original.read_bytes())
    problem = only_problem(tmp_path)
    kept, dropped = (copy, original) if "val" in where else (original, copy)
    assert (problem.path, problem.kind) == (dropped, "duplicate")
    assert str(kept) in problem.detail
    assert all(word in problem.detail for word in words)
    assert not any(word in problem.detail for word in others)
    assert inspect_folder(tmp_path).files_to_drop() == {dropped}


def test_three_copies_leave_one(tmp_path: Path) -> None:
    folder = fill(tmp_path) / "train/cats"
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes((folder / "0.jpg").read_bytes())
    assert inspect_folder(tmp_path).files_to_drop() == {folder / "a.jpg", folder / "b.jpg"}


def test_foreign_files_stop_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "train/cats/notes.txt").write_text("about cats")
    (tmp_path / "train/cats/.DS_Store").write_text("hidden")
    Image.new("RGB", (16, 16)).save(tmp_path / "train/cats/folder.ico")
    inspection = inspect_folder(tmp_path)
    assert inspection.ok and not inspection.files_to_drop()
    assert [p.name for p in inspection.passed_over] == ["folder.ico", "notes.txt"]
    assert "folder.ico" in inspection.summary()


def test_empty_class(tmp_path: Path) -> None:
    fill(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split / "birds").mkdir()
    inspection = inspect_folder(tmp_path)
    assert [(p.path, p.kind) for p in inspection.problems] == [
        (tmp_path / split / "birds", "empty class") for split in ("val", "train")
    ]
    assert not inspection.files_to_drop(), "leaving files out does not mend a folder"


def test_class_sets_differ(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "val/dogs").rename(tmp_path / "val/dog")
    problem = only_problem(tmp_path)
    assert problem.kind == "class sets differ"
    assert "only in train/: dogs; only in val/: dog" in problem.detail


def test_inspection_refuses_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no class folders; expected at least two"):
        inspect_folder(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        inspect_folder(tmp_path / "gone")


def test_real_pictures(shared: Path) -> None:
    inspection = inspect_folder(shared / "data/imagenette2-160")
    assert inspection.ok, inspection.summary()
    assert inspection.pictures == 9469 + 3925 and len(inspection.classes) == 10
