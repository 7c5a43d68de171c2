"""What a study is given, opened: a run folder, weights or a name; a model in memory; a PyTorch module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from torch import nn

from metamobile.data.preprocess import Preprocess
from metamobile.inference.model import Model
from metamobile.tasks.names import distinct
from metamobile.weights.find import SHIPPED
from metamobile.weights.network import load_network, timm_preprocess

AnyModel = str | Path | Model | nn.Module
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # where timm looks, in this order
PATIENCE = 5.0  # seconds for a hub to answer


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
    configuration, else ImageNet's.

    Errors: ValueError for what `load_network` refuses, and at once for weights on a hub that does not answer.
    """
    if isinstance(model, nn.Module):
        return _open_module(model.eval(), f"{type(model).__name__} {index}")
    if isinstance(model, Model):
        name, network, card = model.card.variant, model.network, model.card
    else:
        check_hub(str(model))
        name, (network, card) = str(model), load_network(model)
    return Opened(name, network, card.preprocess, card.task, card.classes, distinct(card.names))


def _open_module(network: nn.Module, name: str) -> Opened:
    record = timm_preprocess(network) if getattr(network, "pretrained_cfg", None) else Preprocess()
    task = str(getattr(network, "task", "classify"))
    record = record if task == "classify" else replace(record, fit="stretch", resize=None)
    count: Any = getattr(network, "num_classes", 1000)
    classes = [str(i) for i in range(count)]
    return Opened(name, network, record, task, classes, [f"class {i}" for i in range(count)])


def check_hub(name: str) -> None:
    """One question to the hub, where its client would ask for most of a minute and tell of each time.

    Errors: ValueError for weights of timm's that are not in the cache, where the hub cannot be reached."""
    if Path(name).exists() or not timm.is_model_pretrained(name):
        return
    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not repository or any(is_cached(repository, file) for file in HUB_FILES):
        return
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        with urlopen(Request(hf_hub_url(repository, HUB_FILES[0]), method="HEAD"), timeout=PATIENCE):
            pass
    except HTTPError:  # an answer; what it means for timm, timm will say
        pass
    except OSError as error:
        raise ValueError(
            f"{name}: its weights are not here, and cannot be fetched from {constants.ENDPOINT} "
            f"({getattr(error, 'reason', error)}); online, they are fetched once; offline, use a run folder "
            f"or shipped weights ({', '.join(SHIPPED)})"
        ) from error


def is_cached(repository: str, file: str) -> bool:
    """Whether a file of the hub's is in its cache."""
    return isinstance(try_to_load_from_cache(repository, file), str)
