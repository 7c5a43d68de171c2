"""A model at hand: what `metamobile.load` gives. An .onnx file is run without torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from metamobile.data.pictures import read_picture, to_rgb
from metamobile.deploy.raw import reader
from metamobile.deploy.runtimes import Runtime, TorchRuntime, open_runtime
from metamobile.errors import nearest
from metamobile.tasks import get_results
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

    def predict(self, pictures: Picture | Sequence[Picture], **options: Any) -> list[Any]:
        """An answer for each picture, a path or a PIL picture, of the task's own type.

        `options` are those of `metamobile.predict`: top, conf, iou, slide. Errors: PictureError for one that
        cannot be read; `metamobile.predict` goes on in that case.
        """
        given = [pictures] if isinstance(pictures, str | Path | Image.Image) else list(pictures)
        if not given:
            return []
        module, read = get_results(self.card.task), reader(self.runtime)
        check_options(options, module.OPTIONS, self.card.task)
        runtime = module.configure(self.runtime, **options)
        results: list[Any] = []
        for index, one in enumerate(given):
            picture = to_rgb(one) if isinstance(one, Image.Image) else read_picture(one)
            name = f"picture {index}" if isinstance(one, Image.Image) else str(one)
            pixels = read(picture)
            shape = (pixels.shape[1], pixels.shape[2])
            outputs = runtime.run(pixels[None])
            results += module.decode(outputs, self.card.names, [name], [picture.size], [shape], **options)
        return results


def check_options(options: Mapping[str, Any], known: Sequence[str], task: str) -> None:
    """Errors: ValueError for an option that a model of this task does not have."""
    for name in options:
        if name not in known:
            raise ValueError(
                f"{name} is no option of this model, whose task is {task}; "
                f"expected {' or '.join(known) or 'none'}{nearest(name, known)}"
            )


def model_name(model: str | Path | Model) -> str:
    """As it was given; of a model in memory its variant."""
    return model.card.variant if isinstance(model, Model) else str(model)


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
