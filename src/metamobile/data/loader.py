"""Pictures as a torch data set whose random augmentation depends on (seed, epoch, index) and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from metamobile.data.folder import Sample
from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import resize_shorter

Transform = Callable[[Image.Image], Tensor]
UNLIMITED = 1_000_000  # a `cache_side` that keeps pictures as they are


class PictureDataset(Dataset):
    """Item i is (transform(picture i), class index).

    `cache_side` keeps all decoded pictures in memory, their shorter side at most that many pixels (resized
    with `interpolation`), 3 bytes a pixel: 10,000 pictures of 160 x 213 are 1 GB. `fill` it before workers
    start: forked ones share it, spawned ones (macOS, Windows) hold a copy each. None reads files each time.

    With `seed`, the transform's randomness is a function of (seed, epoch, index), so that a resumed run sees
    the pictures that an unbroken one would, whatever the workers; the process's generators stay as they were.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        *,
        seed: int | None = None,
        cache_side: int | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        self.samples = list(samples)
        self.transform = transform
        self.seed = seed
        self.cache_side = cache_side
        self.interpolation = interpolation
        self._cache: list[np.ndarray | None] = [None] * len(self.samples)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def fill(self, progress: Callable[[int], None] | None = None) -> None:
        """Decode every picture into memory; `progress` is called with the number done."""
        if self.cache_side is None:
            return
        with ThreadPoolExecutor(2) as pool:
            for index, pixels in enumerate(pool.map(self._read, self.samples)):
                self._cache[index] = pixels
                if progress is not None:
                    progress(index + 1)

    def cache_bytes(self) -> int:
        """What the cache will take, from the sizes of some pictures."""
        some = self.samples[:: max(1, len(self.samples) // 16)]
        total = 0.0
        for sample in some:
            with Image.open(sample.path) as picture:
                width, height = picture.size
            shrink = min(1.0, (self.cache_side or 0) / min(width, height))
            total += 3 * width * height * shrink**2
        return round(total / max(1, len(some)) * len(self.samples))

    def _read(self, sample: Sample) -> np.ndarray:
        picture = read_picture(sample.path)
        if self.cache_side is not None and min(picture.size) > self.cache_side:
            picture = resize_shorter(picture, self.cache_side, self.interpolation)
        return np.asarray(picture)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        pixels = self._cache[index]
        picture = Image.fromarray(pixels if pixels is not None else self._read(sample))
        if self.seed is None:
            return self.transform(picture), sample.target
        with _seeded(self.seed, int(self._epoch), index):
            return self.transform(picture), sample.target


class TruthDataset(PictureDataset):
    """Item i is transform(picture i, i), for transforms that change the truth along with the picture: a
    function of the RGB picture and its place among the samples.

    Pictures are cached at their own size, as the truth is in their pixels.
    """

    def __init__(
        self, samples: Sequence[Any], transform: Any, *, seed: int | None = None, cache: bool = False
    ) -> None:
        super().__init__(samples, transform, seed=seed, cache_side=UNLIMITED if cache else None)

    def picture(self, index: int) -> Image.Image:
        pixels = self._cache[index]
        return Image.fromarray(pixels if pixels is not None else self._read(self.samples[index]))

    def __getitem__(self, index: int) -> Any:
        transform: Any = self.transform
        if self.seed is None:
            return transform(self.picture(index), index)
        with _seeded(self.seed, int(self._epoch), index):
            return transform(self.picture(index), index)


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """The three generators that transforms draw from, set from `key` and put back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    # a word each: NumPy and torch would draw the same stream from the same seed
    seeds = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.random.default_generator.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
