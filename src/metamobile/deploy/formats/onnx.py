"""A network as one ONNX file, run by ONNX Runtime: any batch size, a fixed picture size unless it is asked to
be free, the card in its metadata."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from metamobile.weights.card import KEY, Card

if TYPE_CHECKING:
    import onnxruntime
    from onnx import ModelProto
    from torch import nn


def write(network: nn.Module, card: Card, path: str | Path, options: Options = PLAIN) -> None:
    """Write `build`'s model. Errors: ValueError where a package of the extra `onnx` is missing."""
    need_writer("onnx")
    import onnx

    onnx.save(build(network, card, options), path)


def build(
    network: nn.Module, card: Card, options: Options = PLAIN, *, quantised_outputs: bool = True
) -> ModelProto:
    """`network`, as it computes in evaluation mode, for pictures of the card's size, or of any with
    `dynamic_size`.

    "fp16" and "int8" are as `deploy.quantise` has them, `quantised_outputs` is its `outputs`.

    Input "pixels" (batch, 3, H, W) float32, preprocessed as the card says. Output "logits" (batch, K); of a
    segmenter (batch, K, H, W), and "classes" (batch, H, W), the best of each pixel; a detector's are in
    `add_suppression`.
    """
    import torch

    from metamobile.deploy.any_size import LEAST, example, free_sides
    from metamobile.deploy.decoding import add_suppression, output_names
    from metamobile.deploy.quantise import half_weights, quantise
    from metamobile.models.detection import OneStage

    free = options.dynamic_size
    pixels, shapes = example(card.preprocess.size, free)
    module, names = output_names((free_sides(network) if free else network).cpu().eval())
    try:
        program = torch.onnx.export(
            module.eval(),
            (pixels,),
            input_names=[INPUT],
            output_names=names,
            dynamic_shapes=(shapes,),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        if not free:
            raise
        raise ValueError(
            f"{card.variant}: this network cannot be written for any size of at least {LEAST} pixels a side; "
            "expected --size PX or height,width"
        ) from error
    assert program is not None  # None only from the exporter before dynamo
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with this machine's paths, a seventh of the file
    program.model.metadata_props[KEY] = card.to_json()
    model: ModelProto = program.model_proto
    if options.precision == "fp16":
        model = half_weights(model)
    elif options.precision == "int8":
        model = quantise(model, card, options.calibration, outputs=quantised_outputs)
    if isinstance(network, OneStage):
        add_suppression(model, network)
    if options.preprocessing:
        from metamobile.deploy.preprocessing import add_preprocessing

        add_preprocessing(model, card)
    return model


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
        given = self.session.get_inputs()[0]
        self.takes_pictures = given.name == raw.PICTURE
        self.any_size = isinstance(given.shape[-1], str)  # a free axis has a name
        names = {output.name for output in self.session.get_outputs()}
        self.detects = names >= set(DETECTIONS)
        if UNVERIFIED in metadata:
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, metadata[UNVERIFIED])

    def run(self, batch: Pixels) -> Any:
        if self.takes_pictures:
            return raw.run_pictures(self, batch)
        found = self._run(INPUT, batch, DETECTIONS if self.detects else [OUTPUT])
        return by_picture(found, len(batch)) if self.detects else found[0]

    def ask(self, picture: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        return self._run(raw.PICTURE, picture, names)

    def _run(self, name: str, value: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True  # a segmenter's map of classes may be large
        try:
            return self.session.run(list(outputs), {name: value}, options)
        except (errors.Fail, errors.InvalidArgument, errors.RuntimeException) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path} cannot run on {value.shape} ({reason})") from error


open_file = OnnxRuntime


def mark(path: str | Path, reason: str) -> None:
    """Say in the file's metadata that it failed its gate."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {entry.key: entry.value for entry in model.metadata_props} | {UNVERIFIED: reason}
    )
    onnx.save(model, path)


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
    options = onnxruntime.SessionOptions()
    if threads := threads_wanted():
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers[wanted])
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidProtobuf,
        errors.InvalidGraph,
        errors.NotImplemented,
    ) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: ONNX Runtime cannot read it, {UNREADABLE} ({reason})") from error
