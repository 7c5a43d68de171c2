"""A network in OpenVINO's own format: a folder with model.xml and model.bin, of any batch size and a fixed
picture size unless it is asked to be free; the card is in the xml's runtime information.

It comes by way of ONNX, so that its inputs and outputs are those of the .onnx file.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from metamobile.deploy import raw
from metamobile.deploy.formats import PLAIN, Options, need_writer
from metamobile.deploy.runtimes import (
    DETECTIONS,
    INPUT,
    OUTPUT,
    UNREADABLE,
    UNVERIFIED,
    Pixels,
    by_picture,
    threads_wanted,
)
from metamobile.files import write_text
from metamobile.weights.card import KEY, Card

if TYPE_CHECKING:
    import openvino
    from onnx import ModelProto
    from torch import nn

MODEL = "model.xml"  # the weights are in model.bin beside it
SHAPES = 4  # that a model is kept compiled for, the latest


def write(network: nn.Module, card: Card, path: str | Path, options: Options = PLAIN) -> None:
    """Write `network`, as it computes in evaluation mode, for pictures of the card's size.

    Errors: ValueError where a package of the extra `openvino` is missing.
    """
    need_writer("openvino")
    from metamobile.deploy.formats import onnx

    half, small = options.precision == "fp16", options.precision == "int8"
    model = onnx.build(
        network, card, replace(options, precision="fp32") if half else options, quantised_outputs=False
    )
    from_onnx(model, card, path, half=half, one=small and not options.preprocessing)


def from_onnx(
    model: ModelProto, card: Card, path: str | Path, *, half: bool = False, one: bool = False
) -> None:
    """Write an ONNX model, quantised ones too, as the folder `path`; with `half` its weights in half
    precision, with `one` for one picture at a time.

    Eight bits with a batch of any size are wrong in OpenVINO 2026.4 on a processor: a depthwise convolution
    with a stride, whose result goes in eight bits to the next one, answers something else.
    """
    import openvino

    # Not convert_model, which reports its use to Intel; the compiler optimises either way.
    converted = openvino.Core().read_model(io.BytesIO(model.SerializeToString()))
    if one:
        converted.reshape([1, 3, *card.preprocess.size])
    converted.set_rt_info(card.to_json(), KEY)
    # Where OpenVINO's own tools look for names; they part them at spaces.
    labels = " ".join(name.replace(" ", "_") for name in card.names)
    converted.set_rt_info(labels, ["model_info", "labels"])
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, folder / MODEL, compress_to_fp16=half)


class OpenVino:
    """An exported folder in OpenVINO, computing in single precision.

    `device` is cpu, auto (OpenVINO's choice of what is there), gpu or npu; METAMOBILE_THREADS sets the
    processor's threads.
    """

    name = "OpenVINO"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path = Path(path)
        core, where = _open_core(self.path, device)
        try:
            model = core.read_model(self.path / MODEL)
        except RuntimeError as error:
            raise ValueError(
                f"{self.path}: OpenVINO cannot read it, {UNREADABLE} ({_reason(error)})"
            ) from error
        if not model.has_rt_info(KEY):
            raise ValueError(
                f"{self.path}: OpenVINO without a metamobile card; expected a folder that `metamobile "
                "export` wrote, as only such a one tells its preprocessing and its classes"
            )
        self.card = Card.from_json(model.get_rt_info(KEY).astype(str))
        self.takes_pictures = raw.PICTURE in model.inputs[0].get_names()
        self.any_size = model.inputs[0].get_partial_shape()[-1].is_dynamic
        self.one = not self.takes_pictures and model.inputs[0].partial_shape[0].is_static
        names = {name for output in model.outputs for name in output.get_names()}
        self.detects = names >= set(DETECTIONS)
        if model.has_rt_info(UNVERIFIED):
            reason = model.get_rt_info(UNVERIFIED).astype(str)
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, reason)
        self._compile, self._model = partial(core.compile_model, device_name=where), model
        self._compiled: dict[tuple[int, ...], openvino.CompiledModel] = {}
        try:
            self._for(() if self.takes_pictures else (1, 3, *self.card.preprocess.size))
        except RuntimeError as error:
            raise ValueError(f"{self.path}: OpenVINO cannot run it on {device} ({_reason(error)})") from error

    def _for(self, shape: tuple[int, ...]) -> openvino.CompiledModel:
        """The model compiled for inputs of one shape, as known shapes run a third faster; () leaves it."""
        if shape not in self._compiled:
            model = self._model.clone()
            if shape and not self.one:
                model.reshape(shape)
            if len(self._compiled) == SHAPES:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[shape] = self._compile(model)
        return self._compiled[shape]

    def run(self, batch: Pixels) -> Any:
        if self.takes_pictures:
            return raw.run_pictures(self, batch)
        if self.one and len(batch) > 1:
            parts = [self.run(one[None]) for one in batch]
            return [one for part in parts for one in part] if self.detects else np.concatenate(parts)
        names = DETECTIONS if self.detects else (OUTPUT,)
        # of a file for any size, others may come in great number, and compiling takes a second or more
        own = not self.any_size or batch.shape[2:] == self.card.preprocess.size
        found = self._ask(INPUT, batch, batch.shape if own else (), names)
        return by_picture(found, len(batch)) if self.detects else found[0]

    def ask(self, picture: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        return self._ask(raw.PICTURE, picture, (), names)

    def _ask(
        self, name: str, value: NDArray[Any], shape: tuple[int, ...], names: Sequence[str]
    ) -> list[NDArray[Any]]:
        try:
            found = self._for(shape)({name: value})
        except RuntimeError as error:
            raise ValueError(f"{self.path} cannot run on {value.shape} ({_reason(error)})") from error
        return [found[name] for name in names]


open_file = OpenVino


def mark(path: str | Path, reason: str) -> None:
    """Say in the xml's runtime information that the file failed its gate."""
    xml = Path(path) / MODEL
    root = ElementTree.parse(xml).getroot()
    info = root.find("rt_info")
    assert info is not None  # the card is there
    ElementTree.SubElement(info, UNVERIFIED, value=reason)
    write_text(xml, ElementTree.tostring(root, encoding="unicode", xml_declaration=True))


def _open_core(path: Path, device: str) -> tuple[openvino.Core, str]:
    """OpenVINO with its settings, and its own name for `device`."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs OpenVINO: pip install "metamobile[openvino]"') from error
    core = openvino.Core()
    # A processor that has bfloat16 would take it unasked: answers then differ by some hundredths.
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", **_threads()})
    available = core.available_devices
    known = {"auto": "AUTO" if len(available) > 1 else "CPU", **{name.lower(): name for name in available}}
    if device not in known:
        raise ValueError(f"this OpenVINO cannot use device {device!r}; it has {', '.join(known)}")
    where = known[device]
    if where.startswith("GPU"):
        core.set_property(where, {"INFERENCE_PRECISION_HINT": "f32"})
    return core, where


def _threads() -> dict[str, int]:
    threads = threads_wanted()
    return {"INFERENCE_NUM_THREADS": threads} if threads else {}


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message; places in its source stand before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
