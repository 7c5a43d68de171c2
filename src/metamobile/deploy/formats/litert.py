"""A network as a LiteRT file, .tflite: one picture at a time, of a fixed size; the card is appended as a zip.

A .tflite file may end in a zip of associated files, as TFLite's metadata does: the interpreter reads past it.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.deploy.formats import PLAIN, Options, need_writer
from metamobile.deploy.runtimes import INPUT, UNREADABLE, UNVERIFIED, Pixels, threads_wanted
from metamobile.tasks import get_files
from metamobile.weights.card import KEY, Card

if TYPE_CHECKING:
    from torch import nn

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")  # operators with weights
CARD_FILE, UNVERIFIED_FILE = f"{KEY}.json", f"{UNVERIFIED}.txt"  # in the zip


def write(network: nn.Module, card: Card, path: str | Path, options: Options = PLAIN) -> None:
    """Write `network`, as it computes in evaluation mode, for one picture of the card's size.

    "fp16" and "int8" are of weights, as `_small_weights` says: calibration pictures are not needed, and not
    used. Errors: ValueError where a package of the extra `litert` is missing.
    """
    need_writer("litert")
    content = build(network, card)
    if options.precision != "fp32":
        content = _small_weights(content, {"fp16": 16, "int8": 8}[options.precision])
    Path(path).write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CARD_FILE, card.to_json())


def build(network: nn.Module, card: Card) -> bytes:
    """The flatbuffer in single precision: input "pixels" (1, 3, H, W), outputs as `output_names` has them."""
    import litert_torch
    import torch

    from metamobile.deploy.decoding import output_names

    litert_torch.config.show_progress = False
    module, names = output_names(network.cpu().eval(), suppression=True)

    class Named(torch.nn.Module):
        """Answers a dictionary, whose keys become the names of the outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.module(pixels)
            return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))

    example = torch.zeros(1, 3, *card.preprocess.size)
    model = litert_torch.convert(Named().eval(), sample_kwargs={INPUT: example})
    return _short_names(model.model_content())


def _short_names(content: bytes) -> bytes:
    """Inner tensors are called after the classes of their modules, which is a tenth of an int8 file."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for place, tensor in enumerate(graph.tensors):
            if place not in ends:
                tensor.name = f"t{place}".encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _small_weights(content: bytes, bits: int) -> bytes:
    """Weights of convolutions and linear layers in half precision or, each channel with its own scale, in
    eight bits; all is computed in single precision.

    With eight bits in activations too, by scales found as it runs or calibrated ones, LiteRT was no faster
    than in single precision on x86: it took 1.2 to 1.7 times as long.
    """
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    how = AlgorithmName.FLOAT_CASTING if bits == 16 else AlgorithmName.MIN_MAX_UNIFORM_QUANT
    recipe = RecipeManager()
    for kind in WEIGHTED:
        recipe.add_weight_only_config(".*", kind, bits, algorithm_key=how)
    return _quantised(content, recipe)


def _quantised(content: bytes, recipe: Any) -> bytes:
    from ai_edge_quantizer.quantizer import Quantizer

    made = Quantizer(content, recipe.get_quantization_recipe())
    return bytes(made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


class LiteRT:
    """A .tflite file in LiteRT's interpreter, on the processor; METAMOBILE_THREADS sets its threads."""

    name = "LiteRT"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path = Path(path)
        if device not in ("auto", "cpu"):
            raise ValueError(f"LiteRT cannot use device {device!r} here; it has auto, cpu")
        texts = _read_zip(self.path)
        self.card = Card.from_json(texts[CARD_FILE])
        self.runner = _open_runner(self.path)
        details = self.runner.get_input_details()
        if INPUT not in details:
            raise ValueError(
                f"{self.path}: its input is not {INPUT!r}; expected a file of `metamobile export`"
            )
        self.shape = tuple(int(side) for side in details[INPUT]["shape"])
        if UNVERIFIED_FILE in texts:
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, texts[UNVERIFIED_FILE])

    def run(self, batch: Pixels) -> Any:
        if batch.shape[1:] != self.shape[1:]:
            raise ValueError(f"{self.path} cannot run on {batch.shape} (its pictures are {self.shape[1:]})")
        files = get_files(self.card.task)
        parts: list[dict[str, NDArray[Any]]] = []
        for one in batch:
            try:
                parts.append(self.runner(**{INPUT: one[None]}))
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{self.path} cannot run on {batch.shape} ({reason})") from error
        return files.answers([np.concatenate([part[name] for part in parts]) for name in files.OUTPUTS])


open_file = LiteRT


def mark(path: str | Path, reason: str) -> None:
    """Say in the file's zip that it failed its gate."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(UNVERIFIED_FILE, reason)


def _read_zip(path: Path) -> dict[str, str]:
    """The texts that are appended to the file, by name."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name: archive.read(name).decode() for name in archive.namelist() if KEY in name}
    except zipfile.BadZipFile as error:
        held = {}
        if path.read_bytes()[4:8] != b"TFL3":
            raise ValueError(f"{path}: not a LiteRT file ({error})") from error
    if CARD_FILE not in held:
        raise ValueError(
            f"{path}: LiteRT without a metamobile card; expected a whole file of `metamobile export`, "
            "as the card is at its end"
        )
    return held


def _open_runner(path: Path) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs LiteRT: pip install "metamobile[litert]"') from error
    threads = threads_wanted()
    try:
        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
        return interpreter.get_signature_runner()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: LiteRT cannot read it, {UNREADABLE} ({reason})") from error
