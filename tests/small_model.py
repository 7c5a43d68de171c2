"""A run folder with an untrained emo_1m for small pictures, and pictures for it, made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from metamobile.data.preprocess import Preprocess
from metamobile.models.create import create_model, resolved_args
from metamobile.weights.card import Card
from metamobile.weights.file import save_weights

CLASSES = ["ants", "bees", "n02102040"]


def make_network(**kwargs) -> nn.Module:
    """emo_1m with batch norm statistics of pictures: with those of its start, it answers the same for all."""
    torch.manual_seed(0)
    network = create_model("emo_1m", **{"num_classes": len(CLASSES), "window_size": 2, **kwargs})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            module.momentum = None  # the plain mean over batches
    blobs = nn.functional.interpolate(torch.randn(32, 3, 8, 8), size=64, mode="bilinear")
    with torch.no_grad():
        network.train()(blobs)
    return network.eval()


def make_card(network: nn.Module, data: str = "", drop_bad: bool = False) -> Card:
    return Card(
        "emo_1m",
        resolved_args(network),
        classes=CLASSES,
        names=["ants", "bees", "English springer"],
        preprocess=Preprocess(size=(64, 64)),
        recipe={"data": {"path": data, "val_fraction": 0.25, "seed": 0, "drop_bad": drop_bad}},
    )


def make_run(folder: Path, data: str = "", drop_bad: bool = False) -> Path:
    network = make_network()
    save_weights(folder / "model.safetensors", network.state_dict(), make_card(network, data, drop_bad))
    return folder


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (90, 80), seed: int = 0) -> list[Path]:
    """Noise over gradients, so that answers and resize filters differ: `count` PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(count):
        ramp = np.linspace(rng.integers(0, 256, 3), rng.integers(0, 256, 3), size[0])
        pixels = ramp[None] * 0.7 + rng.integers(0, 77, (size[1], size[0], 3))
        paths.append(folder / f"{i:03}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths
