"""Untrained detectors and segmenters whose answers differ from picture to picture, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from metamobile.data.preprocess import Preprocess
from metamobile.data.shapes import SHAPE_CLASSES
from metamobile.models.create import create_model
from metamobile.weights.card import Card
from metamobile.weights.file import save_weights
from small_training import TINY_ARGS

TASKS = {"ssdlite": "detect", "retinanet": "detect", "mask_rcnn": "detect"}  # any other head segments
CLASSES = {"detect": SHAPE_CLASSES, "segment": ["background", *SHAPE_CLASSES]}


GAIN = {"detect": 5, "segment": 30}  # more, and a detector's scores are all 1: suppression could take any


def make_dense(head: str, **args: Any) -> Any:
    """With batch norm statistics of pictures, and last layers that say more than their start does."""
    torch.manual_seed(0)
    task = TASKS.get(head, "segment")
    given = {**TINY_ARGS, "window_size": 2, "num_classes": len(CLASSES[task]), **args}
    network: Any = create_model("emo_1m", task=task, head=head, **given)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 2)
        norm.momentum = None  # the plain mean over batches
        norm.train()
    blobs = nn.functional.interpolate(torch.randn(16, 3, 8, 8), size=64, mode="bilinear")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            new = any(name.startswith(layer) for layer in network.class_layers)
            if new and weight.ndim == 4 and weight.shape[1] > 1:  # the last convolution; no depthwise one
                weight.mul_(GAIN[task])
            if name.endswith("cls_logits.bias"):
                weight.add_(1.5)  # RetinaNet starts with scores of 0.01, below its threshold
        network.eval()
        for norm in norms:
            norm.train()
        network(blobs)
    return network.eval()


def make_dense_card(network: Any, fit: str = "stretch", data: str = "") -> Card:
    return Card(
        "emo_1m",
        {"task": network.task, **network.settings, **TINY_ARGS, "window_size": 2},
        task=network.task,
        classes=CLASSES[network.task],
        preprocess=Preprocess(size=(64, 96), fit=fit, interpolation="bilinear"),
        recipe={"data": {"path": data}},
    )


def make_dense_run(folder: Path, head: str, fit: str = "stretch", data: str = "") -> Path:
    network = make_dense(head)
    save_weights(folder / "model.safetensors", network.state_dict(), make_dense_card(network, fit, data))
    return folder
