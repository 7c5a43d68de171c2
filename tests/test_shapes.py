"""Drawn pictures tell the truth about themselves, are the same each time, and hard for the right reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from metamobile.data.folder import open_folder
from metamobile.data.inspect import inspect_folder
from metamobile.data.pictures import read_picture
from metamobile.data.shapes import SHAPE_CLASSES, Scene, draw_scene, folder, write_folder

CLASSES = range(len(SHAPE_CLASSES))


def scene(seed: int, size: int = 64, objects: int = 1, label: int | None = None) -> Scene:
    return draw_scene(np.random.default_rng(seed), size, objects, label)


def spread(pixels: np.ndarray) -> float:
    """Largest standard deviation over the three channels, 0..255."""
    return float(pixels.std(axis=0).max())


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("size", [48, 64, 96])
def test_one_object(label: int, size: int) -> None:
    for seed in range(5):
        drawn = scene(seed, size, label=label)
        assert drawn.image.size == (size, size) and drawn.image.mode == "RGB"
        assert drawn.label == label and drawn.labels.tolist() == [label]
        assert drawn.boxes.shape == (1, 4) and drawn.boxes.dtype == np.float32
        assert drawn.masks.shape == (1, size, size) and drawn.masks.dtype == bool
        assert drawn.masks.sum() > 0.01 * size * size


@pytest.mark.parametrize("objects", [1, 4])
def test_boxes_are_tight_around_the_masks(objects: int) -> None:
    for seed in range(20):
        drawn = scene(seed, objects=objects)
        for (x0, y0, x1, y1), mask in zip(drawn.boxes.astype(int), drawn.masks, strict=True):
            if not mask.any():
                assert (x0, y0, x1, y1) == (0, 0, 0, 0)
                continue
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            inside = mask[y0:y1, x0:x1]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_masks_share_no_pixel() -> None:
    for seed in range(20):
        drawn = scene(seed, size=96, objects=5)
        assert drawn.labels.shape == (5,) and drawn.masks.sum(axis=0).max() == 1
        assert drawn.label == drawn.labels[0]


def test_masks_agree_with_the_pixels() -> None:
    """Within a mask there is one colour (and noise); just outside there is another."""
    for seed in range(40):
        drawn = scene(seed, size=96, objects=3)
        pixels = np.asarray(drawn.image, float)
        for mask in drawn.masks:
            core = (
                mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
            )
            assert spread(pixels[core]) < 12, "noise of 3 % is 8 of 255"
            grown = mask.copy()
            for shift in (-2, 2):
                grown |= np.roll(mask, shift, 0) | np.roll(mask, shift, 1)
            ring = grown & ~drawn.masks.any(axis=0)
            assert np.abs(np.median(pixels[ring], axis=0) - np.median(pixels[core], axis=0)).max() > 15


def test_a_mask_has_the_area_of_its_shape() -> None:
    """Share of its box that each shape fills, in the mean over turns."""
    fills = {}
    for label in CLASSES:
        found = [scene(seed, 128, label=label) for seed in range(40)]
        x0, y0, x1, y1 = np.concatenate([drawn.boxes for drawn in found]).T
        areas = np.array([drawn.masks.sum() for drawn in found])
        fills[SHAPE_CLASSES[label]] = float((areas / ((x1 - x0) * (y1 - y0))).mean())
    assert fills["circle"] == pytest.approx(np.pi / 4, abs=0.03)
    assert fills["square"] > fills["cross"] > fills["star"]
    assert fills["circle"] > fills["ring"] and fills["square"] > fills["triangle"]


def test_same_seed_same_scene() -> None:
    one, two, other = scene(5, objects=3), scene(5, objects=3), scene(6, objects=3)
    assert one.image.tobytes() == two.image.tobytes() != other.image.tobytes()
    assert np.array_equal(one.boxes, two.boxes) and np.array_equal(one.masks, two.masks)


def test_labels_are_random_unless_given() -> None:
    assert {scene(seed).label for seed in range(60)} == set(CLASSES)


def test_folder_on_disk(tmp_path: Path) -> None:
    count = len(SHAPE_CLASSES)
    first = write_folder(tmp_path / "a", train=4 * count, val=count, size=32)
    second = write_folder(tmp_path / "b", train=2 * count, val=count, size=32)
    data = open_folder(first)
    assert data.classes == sorted(SHAPE_CLASSES) == SHAPE_CLASSES
    assert [len(data.train), len(data.val)] == [4 * count, count]
    assert [sum(s.target == c for s in data.train) for c in CLASSES] == [4] * count
    assert inspect_folder(first).ok
    for path in second.rglob("*.png"):  # picture i does not depend on how many there are
        assert path.read_bytes() == (first / path.relative_to(second)).read_bytes()
    other = write_folder(tmp_path / "c", train=count, val=count, size=32, seed=1)
    assert all(p.read_bytes() != (first / p.relative_to(other)).read_bytes() for p in other.rglob("*.png"))


def test_cache_is_drawn_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def write_few(out: Path) -> Path:
        calls.append(out)
        return write_folder(out, train=6, val=6, size=32)

    def write_and_fail(out: Path) -> Path:
        write_folder(out, train=6, val=6, size=32)
        raise OSError("disk full")

    monkeypatch.setenv("METAMOBILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("metamobile.data.shapes.write_folder", write_and_fail)
    with pytest.raises(OSError, match="disk full"):
        folder()
    assert not list((tmp_path / "cache").iterdir()), "nothing half drawn is left"
    monkeypatch.setattr("metamobile.data.shapes.write_folder", write_few)
    assert folder() == folder() == tmp_path / "cache/shapes-v1"
    assert len(calls) == 1 and calls[0] != folder()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["shapes-v1"]
    assert open_folder("shapes").root == folder()


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The data set as users get it: {split: (pixels (P, 64, 64, 3) in -1..1, targets (P,))}."""
    data = open_folder("shapes")
    return {
        name: (
            np.stack([np.asarray(read_picture(s.path), np.float32) for s in samples]) / 127.5 - 1,
            np.array([s.target for s in samples]),
        )
        for name, samples in (("train", data.train), ("val", data.val))
    }


def test_a_linear_classifier_fails(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Measured: 23 % of six classes held out, where it knows 65 % of what it was trained on."""
    (train, train_labels), (val, val_labels) = splits["train"], splits["val"]
    linear = LogisticRegression(C=0.01, tol=0.01).fit(train.reshape(len(train), -1), train_labels)
    assert linear.score(train.reshape(len(train), -1), train_labels) > 0.5, (
        "it learns, but not what a shape is"
    )
    assert linear.score(val.reshape(len(val), -1), val_labels) < 0.4  # what is promised is 0.6


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tests run side by side, where threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_small_network_succeeds(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Six plain convolutions, 12 epochs, 25 s on one core. Measured: 98 %."""

    def block(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    widths = ((3, 16, 2), (16, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2), (64, 64, 1))
    layers = [layer for width in widths for layer in block(*width)]
    network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))
    (train, targets), (val, truth) = (
        (torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels))
        for pixels, labels in (splits["train"], splits["val"])
    )
    epochs, batch = 12, 50
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * len(train) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for _ in range(epochs):
        for picked in torch.randperm(len(train)).split(batch):
            # a shape stays what it is when turned, mirrored, and lighter instead of darker
            pictures = torch.rot90(train[picked], int(torch.randint(4, ())), (2, 3))
            pictures = pictures.flip(3) if torch.rand(()) < 0.5 else pictures
            pictures = -pictures if torch.rand(()) < 0.5 else pictures
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pictures), targets[picked]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = network.eval()(val).argmax(dim=1) == truth
    assert right.float().mean() >= 0.95
