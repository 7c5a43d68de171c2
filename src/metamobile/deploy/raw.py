"""Files that preprocess by themselves: how pictures are read for them, and run one at a time. Without torch.

B batch, H W height and width of the pictures, h w the network's, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metamobile.data.preprocess import preprocess
from metamobile.deploy.runtimes import INPUT
from metamobile.tasks import get_files
from metamobile.weights.card import Card

PICTURE = "picture"  # input of such a file: uint8 (H, W, 3), RGB
PROBABILITIES = "probabilities"  # a classifier's first output

Read = Callable[[Image.Image], NDArray[Any]]


class PictureRuntime(Protocol):
    """A runtime of such a file: its `run` is `run_pictures`."""

    path: Path
    card: Card
    takes_pictures: bool

    def ask(self, picture: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        """One picture (H, W, 3) -> the outputs of these names. Errors: ValueError, one line."""


def takes_pictures(runtime: Any) -> bool:
    """Whether `run` takes pictures as they were decoded, uint8 (B, 3, H, W)."""
    return bool(getattr(runtime, "takes_pictures", False))


def reader(runtime: Any) -> Read:
    """How a picture becomes this runtime's input: preprocessed (3, h, w), or uint8 (3, H, W) as it is."""
    if takes_pictures(runtime):
        return planes
    record = runtime.card.preprocess
    return lambda picture: preprocess(picture, record)


def planes(picture: Image.Image) -> NDArray[np.uint8]:
    """RGB picture -> (3, H, W)."""
    return np.asarray(picture).transpose(2, 0, 1)


def run_pictures(runtime: PictureRuntime, batch: NDArray[Any]) -> Any:
    """uint8 (B, 3, H, W) -> answers as `Runtime.run` gives them, but boxes in the pictures' own pixels.

    Errors: ValueError for other numbers, such as preprocessed ones.
    """
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
        raise ValueError(
            f"{runtime.path} cannot run on {batch.shape} {batch.dtype}: it preprocesses by itself; expected "
            "pictures as they were decoded, uint8 (B, 3, H, W)"
        )
    files = get_files(runtime.card.task)
    pictures = [np.ascontiguousarray(one.transpose(1, 2, 0)) for one in batch]
    return files.join([runtime.ask(picture, files.OUTPUTS) for picture in pictures])


def seen(runtime: PictureRuntime, picture: Image.Image) -> NDArray[np.float32]:
    """(1, 3, h, w): what the file's own preprocessing makes of a picture."""
    pixels: NDArray[np.float32] = runtime.ask(np.asarray(picture), (INPUT,))[0]
    return pixels
