"""Whatever runs a model, behind one call. ONNX Runtime's side imports no torch.

B batch, H W height and width, K classes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metamobile.weights.card import KEY, Card
from metamobile.weights.find import find_model

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

INPUT, OUTPUT = "pixels", "logits"
DETECTIONS = ("boxes", "scores", "labels", "picture")  # outputs of a detector's file
UNVERIFIED = "metamobile.unverified"  # metadata of a file that failed its gate and was kept: why

Pixels = NDArray[np.float32]
Logits = NDArray[np.float32]


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


class OnnxRuntime:
    """An exported .onnx file in ONNX Runtime; its card is in the file."""

    name = "ONNX Runtime"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path = Path(path)
        self.session = _open_session(self.path, device)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if KEY not in metadata:
            raise ValueError(
                f"{self.path}: ONNX without a metamobile card; expected a file that `metamobile export` "
                "wrote, as only such a file tells its preprocessing and its classes"
            )
        self.card = Card.from_json(metadata[KEY])
        names = {output.name for output in self.session.get_outputs()}
        self.detects = names >= set(DETECTIONS)
        if UNVERIFIED in metadata:
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, metadata[UNVERIFIED])

    def run(self, batch: Pixels) -> Any:
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        try:
            found = self.session.run(list(DETECTIONS) if self.detects else [OUTPUT], {INPUT: batch})
        except (errors.Fail, errors.InvalidArgument, errors.RuntimeException) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path} cannot run on {batch.shape} ({reason})") from error
        return by_picture(found, len(batch)) if self.detects else found[0]


def by_picture(found: list[NDArray[Any]], count: int) -> list[dict[str, NDArray[Any]]]:
    """`DETECTIONS` of all pictures -> boxes, scores and labels of each of `count`, in their order."""
    boxes, scores, labels, picture = found
    rows = [np.flatnonzero(picture == place) for place in range(count)]
    return [{"boxes": boxes[row], "scores": scores[row], "labels": labels[row]} for row in rows]


def open_runtime(model: str | Path, device: str = "cpu") -> TorchRuntime | OnnxRuntime:
    """The runtime for a run folder, a weights file, an exported file, shipped weights or a timm name.

    Errors: ValueError that names what is wrong with it.
    """
    if Path(model).suffix == ".onnx":
        return OnnxRuntime(find_model(model), device)
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


def _open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs ONNX Runtime: pip install "metamobile[onnx]"') from error
    providers = {
        "cpu": ["CPUExecutionProvider"],
        "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    }
    available = [
        name for name, chain in providers.items() if chain[0] in onnxruntime.get_available_providers()
    ]
    wanted = available[-1] if device == "auto" else device
    if wanted not in available:
        raise ValueError(
            f"this ONNX Runtime cannot use device {device!r}; it has auto, {', '.join(available)}"
        )
    try:
        return onnxruntime.InferenceSession(path, providers=providers[wanted])
    except (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.NotImplemented) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: ONNX Runtime cannot read it, it may be truncated ({reason})") from error
