"""Whatever runs a model, behind one call. Imports no torch, unless it is what runs.

B batch, H W height and width, K classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metamobile.deploy.formats import format_of, get_format, need_runtime
from metamobile.weights.card import Card
from metamobile.weights.find import find_model

if TYPE_CHECKING:
    from torch import nn

INPUT, OUTPUT = "pixels", "logits"
DETECTIONS = ("boxes", "scores", "labels", "picture")  # outputs of a detector's file
UNVERIFIED = "metamobile.unverified"  # metadata of a file that failed its gate and was kept: why

THREADS = "METAMOBILE_THREADS"  # environment: how many threads a runtime may use, else its own choice

UNREADABLE = "it may be truncated, or of another kind; export it anew"

Pixels = NDArray[np.float32]
Logits = NDArray[np.float32]


def threads_wanted() -> int | None:
    """What METAMOBILE_THREADS says; None: nothing. Errors: ValueError for other than a number from 1."""
    given = os.environ.get(THREADS)
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{THREADS} is {given!r}; expected a number of threads from 1, or nothing")
    return int(given)


class Runtime(Protocol):
    """A model that can be run, and its card."""

    name: str
    card: Card

    def run(self, batch: Pixels) -> Any:
        """Preprocessed pictures (B, 3, H, W) -> logits (B, K), a segmenter's (B, K, H, W), or of a detector a
        dictionary of arrays for each picture."""
        ...


class TorchRuntime:
    """A network in PyTorch; `device` is auto, cpu, cuda, cuda:1, mps. Puts the network in evaluation mode."""

    name = "PyTorch"
    any_size = True  # files: those of `export --size any`

    def __init__(self, network: nn.Module, card: Card, device: str = "cpu") -> None:
        self.device = pick_device(device)
        self.network = network.to(self.device).eval()
        self.card = card

    def run(self, batch: Pixels) -> Any:
        import torch

        with torch.inference_mode():
            return to_arrays(self.network(torch.from_numpy(batch).to(self.device)))

    def set_thresholds(self, *, score: float | None = None, iou: float | None = None) -> None:
        """Of a detector: the lowest score, and the overlap at which suppression drops a box."""
        network: Any = self.network
        network.set_thresholds(score=score, iou=iou)


def to_arrays(outputs: Any) -> Any:
    """A network's outputs with each tensor as an array, floats in single precision; lists and dictionaries
    stay."""
    if isinstance(outputs, dict):
        return {name: to_arrays(value) for name, value in outputs.items()}
    if isinstance(outputs, list):
        return [to_arrays(value) for value in outputs]
    return (outputs.float() if outputs.is_floating_point() else outputs).cpu().numpy()


def by_picture(found: list[NDArray[Any]], count: int) -> list[dict[str, NDArray[Any]]]:
    """`DETECTIONS` of all pictures -> boxes, scores and labels of each of `count`, in their order."""
    boxes, scores, labels, picture = found
    rows = [np.flatnonzero(picture == place) for place in range(count)]
    return [{"boxes": boxes[row], "scores": scores[row], "labels": labels[row]} for row in rows]


def open_runtime(model: str | Path, device: str = "cpu") -> Runtime:
    """The runtime for a run folder, a weights file, an exported file, shipped weights or a timm name.

    Errors: ValueError that names what is wrong with it.
    """
    name = format_of(model)
    if name is not None:
        path = find_model(model)
        need_runtime(name, path)
        runtime: Runtime = get_format(name).open_file(path, device)
        return runtime
    from metamobile.weights.network import load_network

    network, card = load_network(model)
    return TorchRuntime(network, card, device)


def pick_device(name: str):  # -> torch.device, which is not imported here
    """auto, cpu, cuda, cuda:1, mps. Errors: ValueError for one that is unknown or not there."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; torch built without this device
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r} cannot be used ({reason}); expected auto, cpu, cuda, cuda:1, mps"
        ) from error
    return device
