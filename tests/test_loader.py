"""The data set gives the same pictures whatever the workers, and leaves the process's random state alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from metamobile.data.folder import Sample
from metamobile.data.loader import PictureDataset
from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.errors import PictureError

COUNT = 6


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Noise of 40 x 30 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for index in range(COUNT):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        found.append(Sample(folder / f"{index}.png", index % 2))
    return found


def draws(picture: Image.Image) -> Tensor:
    """A number from each generator that transforms use, and a pixel."""
    pixel = float(np.asarray(picture)[0, 0, 0])
    return torch.tensor(
        [random.random(), np.random.rand(), torch.rand(()).item(), pixel], dtype=torch.float64
    )


def whole(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy())


def epochs(dataset: PictureDataset, workers: int, persistent: bool = False) -> Iterator[Tensor]:
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, persistent_workers=persistent)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        yield torch.cat([batch for batch, _ in loader])


def test_randomness_is_of_seed_epoch_and_index(samples: list[Sample]) -> None:
    alone = list(epochs(PictureDataset(samples, draws, seed=5), workers=0))
    for workers, persistent in ((1, False), (2, True)):
        dataset = PictureDataset(samples, draws, seed=5)
        for here, there in zip(alone, epochs(dataset, workers, persistent), strict=True):
            assert torch.equal(here, there)
    numbers = torch.stack(alone)[..., :3]
    assert numbers.unique().numel() == 3 * COUNT * 3, "every draw is another"
    other = PictureDataset(samples, draws, seed=6)
    assert not torch.equal(other[0][0][:3], alone[0][0][:3])


def test_order_of_asking_changes_nothing(samples: list[Sample]) -> None:
    dataset = PictureDataset(samples, draws, seed=5)
    forwards = [dataset[i][0] for i in range(COUNT)]
    backwards = [dataset[i][0] for i in reversed(range(COUNT))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_generators_of_the_process_are_left_alone(samples: list[Sample]) -> None:
    def fail(picture: Image.Image) -> Tensor:
        draws(picture)
        raise RuntimeError("a transform that fails")

    blank = Image.new("RGB", (2, 2))
    seeds = random.seed, np.random.seed, torch.manual_seed
    for seed in seeds:
        seed(1)
    expected = draws(blank)
    for seed in seeds:
        seed(1)
    PictureDataset(samples, draws, seed=5)[0]
    with pytest.raises(RuntimeError):
        PictureDataset(samples, fail, seed=5)[0]
    assert torch.equal(draws(blank), expected)


def test_targets_and_length(samples: list[Sample]) -> None:
    dataset = PictureDataset(samples, whole)
    assert len(dataset) == COUNT
    assert [dataset[i][1] for i in range(COUNT)] == [0, 1] * 3


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_cache_changes_nothing_after_its_resize(samples: list[Sample], interpolation: str) -> None:
    record = Preprocess((16, 16), 20, interpolation)

    def transform(picture: Image.Image) -> Tensor:
        return torch.from_numpy(preprocess(picture, record))

    cached = PictureDataset(samples, transform, cache_side=20, interpolation=interpolation)
    cached.fill()
    for index, sample in enumerate(samples):
        assert torch.equal(cached[index][0], transform(read_picture(sample.path)))


def test_cache_is_filled_once(tmp_path: Path) -> None:
    paths = [tmp_path / "small.png", tmp_path / "large.png"]
    for path, size in zip(paths, ((12, 9), (60, 40)), strict=True):
        Image.new("RGB", size, "red").save(path)
    steps: list[int] = []
    dataset = PictureDataset([Sample(path, 0) for path in paths], whole, cache_side=20)
    dataset.fill(steps.append)
    assert steps == [1, 2]
    for path in paths:
        path.unlink()  # nothing is read again, in workers neither
    shapes = [tuple(batch.shape) for batch, _ in DataLoader(dataset, num_workers=1)]
    assert shapes == [(1, 9, 12, 3), (1, 20, 30, 3)]  # a small one is kept as it is


def test_without_a_cache_files_are_read_each_time(samples: list[Sample]) -> None:
    dataset = PictureDataset(samples, whole)
    dataset.fill()  # nothing to do
    assert dataset[3][0].shape == (30, 40, 3)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    dataset = PictureDataset([Sample(tmp_path / "bad.png", 0)], whole, cache_side=20)
    with pytest.raises(PictureError, match=r"bad\.png: not a picture"):
        dataset[0]
    with pytest.raises(PictureError, match=r"bad\.png: not a picture"):
        dataset.fill()
