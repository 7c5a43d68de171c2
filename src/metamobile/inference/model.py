"""A model at hand: what `metamobile.load` gives. An .onnx file is run without torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from metamobile.data.pictures import read_picture, to_rgb
from metamobile.data.preprocess import preprocess
from metamobile.deploy.runtimes import Runtime, TorchRuntime, open_runtime
from metamobile.tasks.classify.results import Classification, decode
from metamobile.weights.card import Card

if TYPE_CHECKING:
    from torch import nn

Picture = str | Path | Image.Image


class Model:
    """A runtime and what its card knows.

    >>> model = metamobile.load("runs/pets")
    >>> model.predict("photo.jpg")[0].labels
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @property
    def card(self) -> Card:
        return self.runtime.card

    @property
    def network(self) -> nn.Module:
        """The PyTorch module, in evaluation mode. Errors: ValueError for an exported file."""
        if not isinstance(self.runtime, TorchRuntime):
            raise ValueError(
                f"this model runs in {self.runtime.name}; load its run folder for a PyTorch network"
            )
        return self.runtime.network

    def predict(self, pictures: Picture | Sequence[Picture], top: int = 5) -> list[Classification]:
        """An answer for each picture, a path or a PIL picture, in one batch.

        Errors: PictureError for one that cannot be read; `metamobile.predict` goes on in that case.
        """
        given = [pictures] if isinstance(pictures, str | Path | Image.Image) else list(pictures)
        if not given:
            return []
        names = [f"picture {i}" if isinstance(p, Image.Image) else str(p) for i, p in enumerate(given)]
        opened = (to_rgb(p) if isinstance(p, Image.Image) else read_picture(p) for p in given)
        batch = np.stack([preprocess(p, self.card.preprocess) for p in opened])
        return decode(self.runtime.run(batch), self.card, names, top)


def load(name: str | Path, device: str = "cpu") -> Model:
    """The model of a run folder, a weights or exported file, shipped weights, or a timm name (fetched)."""
    return Model(open_runtime(name, device))


def from_pretrained(
    pretrained_model_name_or_path: str | Path,
    *,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
    device: str = "cpu",
) -> Model:
    """The model of a repository of the Hugging Face Hub, "user/name", fetched once; or what `load` takes.

    A folder that is there goes before a repository of the same name. The arguments but `device` are
    huggingface_hub's, for repositories. Errors: as `load`, and ValueError, one line, for a repository that is
    not there or holds no weights of metamobile, and for a Hub that cannot be reached.
    """
    name = str(pretrained_model_name_or_path)
    if "/" in name and not Path(name).exists():
        from metamobile.weights.hub import download

        weights = download(
            name,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        return load(weights, device)
    if revision is not None:
        logging.getLogger(__name__).warning("%s is not of the Hub: revision %s has no effect", name, revision)
    return load(name, device)
