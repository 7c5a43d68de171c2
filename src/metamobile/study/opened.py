"""What a study is given, opened: a run folder, weights or a name; a model in memory; a PyTorch module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from metamobile.data.preprocess import Preprocess
from metamobile.inference.model import Model
from metamobile.tasks.names import distinct
from metamobile.weights.network import load_network, timm_preprocess

AnyModel = str | Path | Model | nn.Module


@dataclass
class Opened:
    """A network in evaluation mode, how it has its pictures, its task; of each class the folder's name
    and the readable one."""

    name: str
    network: Any
    record: Preprocess
    task: str
    classes: list[str]
    labels: list[str]


def open_model(model: AnyModel, index: int = 0) -> Opened:
    """`index` tells modules of one kind apart by name. A module has the preprocessing of its timm
    configuration, else ImageNet's. Errors: ValueError for what `load_network` refuses."""
    if isinstance(model, nn.Module):
        return _open_module(model.eval(), f"{type(model).__name__} {index}")
    if isinstance(model, Model):
        name, network, card = model.card.variant, model.network, model.card
    else:
        name, (network, card) = str(model), load_network(model)
    return Opened(name, network, card.preprocess, card.task, card.classes, distinct(card.names))


def _open_module(network: nn.Module, name: str) -> Opened:
    record = timm_preprocess(network) if getattr(network, "pretrained_cfg", None) else Preprocess()
    task = str(getattr(network, "task", "classify"))
    record = record if task == "classify" else replace(record, fit="stretch", resize=None)
    count: Any = getattr(network, "num_classes", 1000)
    classes = [str(i) for i in range(count)]
    return Opened(name, network, record, task, classes, [f"class {i}" for i in range(count)])


def at_size(record: Preprocess, size: int | tuple[int, int]) -> Preprocess:
    """For another side, or (height, width), in pixels; a crop takes the same share of the picture."""
    shape = (size, size) if isinstance(size, int) else (size[0], size[1])
    if shape == record.size:
        return record
    resize = round(max(shape) * record.shorter_side / max(record.size)) if record.fit == "crop" else None
    return replace(record, size=shape, resize=resize)
