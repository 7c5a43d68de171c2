"""What a user calls a model, opened to be explained. Without torch, for exported files.

Shapes: B batch, h w of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from PIL import Image

from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.deploy.formats import format_of
from metamobile.deploy.raw import planes, takes_pictures
from metamobile.deploy.runtimes import Runtime, TorchRuntime, pick_device, to_arrays
from metamobile.errors import nearest
from metamobile.inference.model import Model, load, model_name
from metamobile.study.explain.frame import Frame, make_frame
from metamobile.tasks.names import distinct
from metamobile.weights.find import SHIPPED
from metamobile.weights.published import published_name

if TYPE_CHECKING:
    from torch import Tensor

    from metamobile.study.opened import AnyModel


@dataclass
class Subject:
    """A network in evaluation mode, its task, the classes' folder names and readable names, preprocessing.

    Of an exported file there is the `runtime` alone, and `network` is None.
    """

    name: str
    network: Any
    task: str
    classes: list[str]
    labels: list[str]
    record: Preprocess
    runtime: Runtime | None = None

    def see(self, picture: Image.Image) -> NDArray[Any]:
        """The input (1, 3, h, w) that is made of a picture: preprocessed, if the file does not do it."""
        if self.runtime is not None and takes_pictures(self.runtime):
            return planes(picture)[None]
        return preprocess(picture, self.record)[None]

    def frame(self, picture: Image.Image, shape: tuple[int, int]) -> Frame:
        """Where that input, of the height and width `shape`, lies on the picture."""
        if self.runtime is not None and takes_pictures(self.runtime):
            seen = make_frame(picture, self.record, self.record.size).box
            return Frame(picture.size, shape, (0, 0, *picture.size), seen)
        return make_frame(picture, self.record, shape)

    def tensor(self, pixels: NDArray[Any]) -> Tensor:
        """An input where the network is."""
        import torch

        return torch.from_numpy(pixels).to(next(self.network.parameters()).device)

    def run(self, pixels: NDArray[Any]) -> Any:
        """Inputs (B, 3, h, w) -> answers, as `Runtime.run` gives them."""
        if self.runtime is not None:
            return self.runtime.run(pixels)
        import torch

        with torch.no_grad():
            return to_arrays(self.network(self.tensor(pixels)))

    @property
    def body(self) -> Any:
        """What makes the stages: a detector's or segmenter's backbone, else the network."""
        from metamobile.models.backbone import Backbone

        inner = getattr(self.network, "backbone", None)
        return inner if isinstance(inner, Backbone) else self.network

    @property
    def prefix_tokens(self) -> int:
        """Tokens that stand before those of the picture, such as the class token."""
        modules = [m for m in self.network.modules() if hasattr(m, "num_prefix_tokens")]
        return int(modules[0].num_prefix_tokens) if modules else 0

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the input as the network's maps cover it: pyramids and patches round it up with zeros."""
        if self.body is self.network:
            return shape
        rounds_up = hasattr(self.network, "fpn") or self.body.multiple > 1
        multiple = self.body.strides[-1] if rounds_up else 1
        return shape[0] + -shape[0] % multiple, shape[1] + -shape[1] % multiple

    def find_class(self, given: str | int) -> int:
        """By number, folder name or readable name. Errors: ValueError with the nearest name."""
        text = str(given)
        for names in (self.classes, self.labels):
            if text in names:
                return names.index(text)
        folded = [label.casefold() for label in self.labels]
        if text.casefold() in folded:
            return folded.index(text.casefold())
        if text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        raise ValueError(
            f"{self.name} has no class {text!r}; expected a name or a number from 0 to "
            f"{len(self.labels) - 1}{nearest(text, [*self.labels, *self.classes])}"
        )


def is_known(name: str) -> bool:
    """Whether the name is that of a network or weights, or of a file: not whether weights are here."""
    if Path(name).exists() or name in SHIPPED or published_name(name) is not None:
        return True
    import timm

    return bool(timm.is_model(name))


def open_subject(
    model: AnyModel, index: int = 0, size: int | tuple[int, int] | None = None, device: str = "cpu"
) -> Subject:
    """`size`, a side or (height, width), replaces that of the model's own preprocessing.

    Errors: ValueError for what `load_network` refuses, for a file that its runtime does not open, and for a
    size that a file does not take.
    """
    if size is not None and min(size if isinstance(size, tuple) else (size,)) < 32:
        raise ValueError(f"size {size}: expected at least 32 pixels")
    if is_exported(model):
        return _open_file(model, size, device)
    from metamobile.study.opened import open_model

    one = open_model(model, index)
    if size is not None:
        one.record = one.record.at_size(size)
    return Subject(
        one.name, one.network.to(pick_device(device)), one.task, one.classes, one.labels, one.record
    )


def is_exported(model: AnyModel) -> bool:
    """Whether it is a file for a runtime, of which only answers are to be had."""
    if isinstance(model, Model):
        return not isinstance(model.runtime, TorchRuntime)
    return isinstance(model, str | Path) and format_of(model) is not None


def _open_file(model: Any, size: int | tuple[int, int] | None, device: str) -> Subject:
    opened = model if isinstance(model, Model) else load(model, device)
    runtime, card = opened.runtime, opened.card
    record = card.preprocess if size is None else card.preprocess.at_size(size)
    if record.size != card.preprocess.size and not getattr(runtime, "any_size", False):
        height, width = card.preprocess.size
        raise ValueError(
            f"{model_name(model)}: takes pictures of {height}x{width} alone; expected no other size, or a "
            "file that was exported with --size any"
        )
    return Subject(
        model_name(model), None, card.task, card.classes, distinct(card.names), record, runtime=runtime
    )
