"""From what a user calls a model to a network with its weights, and its card."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from metamobile.data.folder import class_names
from metamobile.data.preprocess import Preprocess
from metamobile.models.create import create_model, resolved_args
from metamobile.weights.card import Card, current_versions
from metamobile.weights.file import load_weights
from metamobile.weights.find import SHIPPED, find_model, pulled_path
from metamobile.weights.published import published_name


def load_network(name: str | Path) -> tuple[nn.Module, Card]:
    """The network, on the CPU and in evaluation mode, of a run folder, a weights file, shipped or pulled
    weights, or one of timm's pretrained names (fetched once, with the preprocessing and classes timm gives).

    Errors: ValueError for an unknown name, a file that is damaged or foreign, or a hub out of reach.
    """
    called = str(name)
    is_network = timm.is_model_pretrained(called) or (timm.is_model(called) and "." not in called)
    published = published_name(called)
    is_pulled = published is not None and pulled_path(published).is_file()
    if is_network and not is_pulled and not Path(name).exists():
        return _from_timm(called)
    path = find_model(name, others=timm.list_pretrained())
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: an exported file; expected the run folder or the weights it was made from")
    state_dict, card = load_weights(path)
    network = create_model(card.variant, **card.model_args)
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"{path}: its tensors are not those of {card.variant} {card.model_args}") from error
    return network.eval(), card


def _from_timm(name: str) -> tuple[nn.Module, Card]:
    if not timm.is_model_pretrained(name):
        fetch = f"`metamobile pull {name}` fetches the authors', " if published_name(name) else ""
        raise ValueError(
            f"{name} is a network without weights here; {fetch}`metamobile train {name} --data FOLDER` makes "
            f"a run folder, and these weights ship with the package: {', '.join(SHIPPED)}"
        )
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # as there are weights
    if not config.num_classes:
        raise ValueError(f"{name}: these weights have no classifier; train it on your classes first")
    try:
        network = create_model(name, pretrained=True, num_classes=config.num_classes).eval()
    except OSError as error:  # every failure to reach a hub is one, and so is a full disk
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name}: its weights could not be fetched, which needs the network once ({reason}); "
            f"offline, use a run folder or shipped weights ({', '.join(SHIPPED)})"
        ) from error
    subset = infer_imagenet_subset(network)
    classes = ImageNetInfo(subset).label_names() if subset else [str(i) for i in range(config.num_classes)]
    return network, Card(
        name,
        resolved_args(network),
        classes=classes,
        names=class_names(classes),
        preprocess=timm_preprocess(network),
        versions=current_versions(),
        notes=f"timm's pretrained weights {name}, {config.license or 'licence not told'}",
    )


def timm_preprocess(network: nn.Module) -> Preprocess:
    """The record of a timm network's own configuration."""
    config = resolve_model_data_config(network)
    height, width = config["input_size"][1:]
    if config["crop_mode"] != "center":
        logging.getLogger(__name__).warning(
            "timm measures this network with crop mode %r; here the centre is cropped, so answers can differ",
            config["crop_mode"],
        )
    return Preprocess(
        size=(height, width),
        resize=math.floor(max(height, width) / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
