"""What a user calls a model, opened to be explained: the network, its stages, its layers' maps.

Shapes: B batch, C channels, T tokens, r c rows and columns of a map, h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.deploy.formats import format_of
from metamobile.deploy.raw import planes, takes_pictures
from metamobile.deploy.runtimes import Runtime, TorchRuntime, pick_device, to_arrays
from metamobile.errors import nearest
from metamobile.inference.model import Model, load, model_name
from metamobile.study.explain.frame import Frame, make_frame, stride_of
from metamobile.study.opened import AnyModel, at_size, open_model
from metamobile.tasks.names import distinct
from metamobile.weights.find import SHIPPED
from metamobile.weights.published import published_name

STAGES = {2 ** (stage + 1): stage for stage in range(5)}  # by stride


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
            return Frame(picture.size, shape, (0, 0, *picture.size))
        return make_frame(picture, self.record, shape)

    def tensor(self, pixels: NDArray[Any]) -> Tensor:
        """An input where the network is."""
        return torch.from_numpy(pixels).to(next(self.network.parameters()).device)

    def run(self, pixels: NDArray[Any]) -> Any:
        """Inputs (B, 3, h, w) -> answers, as `Runtime.run` gives them."""
        if self.runtime is not None:
            return self.runtime.run(pixels)
        with torch.no_grad():
            return to_arrays(self.network(self.tensor(pixels)))

    @property
    def body(self) -> Any:
        """What makes the stages: a detector's or segmenter's backbone, else the network."""
        return self.network if self.task == "classify" else self.network.backbone

    @property
    def prefix_tokens(self) -> int:
        """Tokens that stand before those of the picture, such as the class token."""
        modules = [m for m in self.network.modules() if hasattr(m, "num_prefix_tokens")]
        return int(modules[0].num_prefix_tokens) if modules else 0

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the input as the network's maps cover it: pyramids and patches round it up with zeros."""
        if self.task == "classify":
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
    return Path(name).exists() or name in SHIPPED or published_name(name) is not None or timm.is_model(name)


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
    one = open_model(model, index)
    if size is not None:
        one.record = at_size(one.record, size)
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
    record = card.preprocess if size is None else at_size(card.preprocess, size)
    if record.size != card.preprocess.size and not getattr(runtime, "any_size", False):
        height, width = card.preprocess.size
        raise ValueError(
            f"{model_name(model)}: takes pictures of {height}x{width} alone; expected no other size, or a "
            "file that was exported with --size any"
        )
    return Subject(
        model_name(model), None, card.task, card.classes, distinct(card.names), record, runtime=runtime
    )


def find_stages(subject: Subject) -> dict[int, str]:
    """The module that ends each stage, by number: stage k has stride 2 ** (k + 1), as EMO's 0 to 4.

    Empty for a network whose maps have one stride, such as a ViT.
    """
    body = subject.body
    root = "" if body is subject.network else "backbone."
    if getattr(body, "pyramid", None) is not None:
        return {STAGES[s]: f"{root}pyramid.levels.{i}" for i, s in enumerate(body.pyramid.strides)}
    described = feature_info(subject)
    strides = [stride for stride, _ in described]
    if len(set(strides)) < 2:
        return {}
    return {STAGES[stride]: module for stride, module in described if stride in STAGES}


def feature_info(subject: Subject) -> list[tuple[int, str]]:
    """(stride, module) as timm's list tells them, with the modules' names in the network that is at hand."""
    body = subject.body
    holder, root = body, ""
    if body is not subject.network:
        holder, root = body.network, "backbone.network."
        root += "model." if hasattr(holder, "model") else ""
    info: Any = getattr(holder, "feature_info", None) or []
    rows = info if isinstance(info, list) else info.get_dicts()
    known = {name for name, _ in subject.network.named_modules()}
    found = []
    for row in rows:
        # where timm takes a network apart, it writes stages.3 as stages_3
        names = [root + row["module"], root + row["module"].replace(".", "_")]
        found += [(int(row["reduction"]), name) for name in names[:2] if name in known][:1]
    return found


def last_map(subject: Subject, x: Tensor) -> str:
    """The module with the last map of the network: its last stage, else the last map with several positions.

    Errors: ValueError where there is none.
    """
    stages, described = find_stages(subject), feature_info(subject)
    if stages:
        return stages[max(stages)]
    if described:
        return described[-1][1]
    order: list[str] = []
    names = {module: name for name, module in subject.network.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if names[module] and is_map(output, x, subject.prefix_tokens):
            order.append(names[module])

    with torch.no_grad(), watch(names, note):
        subject.network(x)
    if not order:
        raise ValueError(f"{subject.name}: no layer gives a map of the picture; it cannot be explained")
    return order[-1]


def find_layer(subject: Subject, name: str) -> nn.Module:
    """A module by name. Errors: ValueError with the nearest name."""
    modules = dict(subject.network.named_modules())
    if name not in modules or not name:
        raise ValueError(
            f"{subject.name} has no layer {name!r}; expected a module's name such as "
            f"{last_name(subject)}{nearest(name, modules)}"
        )
    return modules[name]


def last_name(subject: Subject) -> str:
    described = feature_info(subject)
    return described[-1][1] if described else [name for name, _ in subject.network.named_modules()][-1]


def find_stage(subject: Subject, stage: int) -> str:
    """The module that ends the stage. Errors: ValueError that says which stages there are."""
    stages = find_stages(subject)
    if not stages:
        raise ValueError(
            f"{subject.name}: stage {stage} cannot be chosen, as its maps have one stride; expected a layer, "
            f"such as {last_name(subject)}"
        )
    if stage not in stages:
        there = ", ".join(map(str, stages))
        raise ValueError(
            f"{subject.name} has no stage {stage}; expected one of {there} (stage k has stride 2^(k+1))"
        )
    return stages[stage]


@contextmanager
def watch(modules: Any, hook: Any, before: bool = False) -> Iterator[None]:
    """A forward hook on these modules while the block runs; `before`, on their inputs."""
    handles = [
        module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_map(output: Any, x: Tensor, prefix: int) -> bool:
    try:
        found = to_map(output, (x.shape[-2], x.shape[-1]), prefix)
    except ValueError:
        return False
    return found.shape[-1] * found.shape[-2] > 1


def to_map(output: Any, shape: tuple[int, int], prefix: int = 0) -> Tensor:
    """A layer's output -> (B, C, r, c). Known are (B, C, r, c), (B, r, c, C), and tokens (B, T, C), row by
    row after `prefix` others; and EMO's transplants' (B, C, 1, T).

    Errors: ValueError for what is no map of a picture of `shape`.
    """
    if not isinstance(output, Tensor):
        raise ValueError(f"it gives {type(output).__name__}, and not a map; choose another layer")
    if output.ndim == 4:
        if fits(output.shape[2], output.shape[3], shape):
            return output
        if fits(output.shape[1], output.shape[2], shape):
            return output.permute(0, 3, 1, 2)
        if output.shape[2] == 1:
            output = output[:, :, 0].transpose(1, 2)
    if output.ndim == 3:
        tokens = output.shape[1]
        for extra in dict.fromkeys((prefix, 0, 1)):
            for rows in range(1, tokens - extra + 1):
                columns, rest = divmod(tokens - extra, rows)
                if not rest and fits(rows, columns, shape):
                    return output[:, extra:].transpose(1, 2).unflatten(2, (rows, columns))
    raise ValueError(
        f"it gives {tuple(output.shape)}, which is no map of a picture of {shape[0]}x{shape[1]}; choose "
        "another layer"
    )


def fits(rows: int, columns: int, shape: tuple[int, int]) -> bool:
    """Whether positions of such a map are about as far apart in height as in width, and not too few."""
    down, across = stride_of(shape[0], rows), stride_of(shape[1], columns)
    return down >= 1 and across >= 1 and max(down, across) <= 1.2 * min(down, across)
