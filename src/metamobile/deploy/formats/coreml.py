"""A network as a Core ML program, .mlpackage: one picture at a time, of a fixed size; its metadata hold the
card.

It is written anywhere and runs on Apple's systems only. Elsewhere two things stand in for a run: `received`,
what the converter was given, in PyTorch, and `read_back`, what the written file holds. Neither executes it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.deploy.formats import PLAIN, Options, need_writer
from metamobile.deploy.runtimes import INPUT, UNREADABLE, UNVERIFIED, Pixels
from metamobile.tasks import get_files
from metamobile.weights.card import KEY, Card

if TYPE_CHECKING:
    import torch
    from torch import nn

# Operators of the program received -> of the file: the converter neither adds to them nor takes from them.
HEAVY = {
    "aten.convolution.default": "conv",
    "aten.conv2d.default": "conv",
    "aten.linear.default": "linear",
    "aten.addmm.default": "linear",
    "aten.matmul.default": "matmul",
    "aten.bmm.default": "matmul",
    "aten.layer_norm.default": "layer_norm",
    "aten.native_layer_norm.default": "layer_norm",
    "aten.softmax.int": "softmax",
    "aten._softmax.default": "softmax",
    "aten.topk.default": "topk",
    "aten.gather.default": "gather_along_axis",
}
RUNS_HERE = sys.platform == "darwin"
PRODUCTS = ("conv", "linear", "matmul")
SINGLE = ("layer_norm", "softmax")  # in a file of half precision


def write(network: nn.Module, card: Card, path: str | Path, options: Options = PLAIN) -> None:
    """Write `network`, as it computes in evaluation mode, for one picture of the card's size.

    "fp16" computes in half precision but for layer norm, softmax and all that comes behind the last
    convolution or linear layer, so a detector's boxes. Needs iOS 17, macOS 14 or later. Errors: ValueError
    where coremltools is missing.
    """
    need_writer("coreml")
    import coremltools

    program, names = _program(network, card)
    model = coremltools.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=_precision(options.precision),
        inputs=[coremltools.TensorType(INPUT, (1, 3, *card.preprocess.size), dtype=np.float32)],
        outputs=[coremltools.TensorType(name) for name in names],
        skip_model_load=True,
    )
    model.user_defined_metadata[KEY] = card.to_json()
    model.save(str(path))
    # Which node of the program became which operator; no part of the model.
    (Path(path) / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _program(network: nn.Module, card: Card) -> tuple[torch.export.ExportedProgram, list[str]]:
    """What the converter is given, in operators that it knows, and the names of its outputs."""
    import torch

    from metamobile.deploy.decoding import output_names

    module, names = output_names(network.cpu().eval(), suppression=True)
    example = torch.zeros(1, 3, *card.preprocess.size)
    program = torch.export.export(module.eval(), (example,), strict=False)
    aten = torch.ops.aten
    known = {
        aten.where.ScalarOther: lambda condition, x, y: torch.where(condition, x, torch.full_like(x, y)),
        # of whole numbers, which the converter divides to floats; exact below 2**24
        aten.floor_divide.default: lambda x, y: (x / y).floor().to(x.dtype),
    }
    return program.run_decompositions(known), names


def _precision(precision: str) -> Any:
    import coremltools

    if precision != "fp16":
        return coremltools.precision.FLOAT32
    before: dict[str, bool] = {}

    def feeds_product(operator: Any) -> bool:
        """Whether it is a product, or one takes what it answers, if through others."""
        if operator.name not in before:
            following = (child for output in operator.outputs for child in output.child_ops)
            before[operator.name] = operator.op_type in PRODUCTS or any(map(feeds_product, following))
        return before[operator.name]

    return coremltools.transform.FP16ComputePrecision(
        lambda operator: operator.op_type not in SINGLE and feeds_product(operator)
    )


class CoreML:
    """A .mlpackage; it runs on macOS."""

    name = "Core ML"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path = Path(path)
        if device not in ("auto", "cpu"):
            raise ValueError(f"Core ML cannot use device {device!r} here; it has auto, cpu")
        self.model = _load(self.path, run=RUNS_HERE, everywhere=device == "auto")
        metadata = self.model.user_defined_metadata
        if KEY not in metadata:
            raise ValueError(
                f"{self.path}: Core ML without a metamobile card; expected a file that `metamobile export` "
                "wrote"
            )
        self.card = Card.from_json(metadata[KEY])
        if UNVERIFIED in metadata:
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, metadata[UNVERIFIED])

    def run(self, batch: Pixels) -> Any:
        if not RUNS_HERE:
            raise ValueError(
                f"{self.path}: Core ML runs on macOS and iOS only, this is {sys.platform}; predict with the "
                "run folder or with a file of another format"
            )
        if batch.shape[1:] != (3, *self.card.preprocess.size):
            expected = (3, *self.card.preprocess.size)
            raise ValueError(f"{self.path} cannot run on {batch.shape} (its pictures are {expected})")
        files = get_files(self.card.task)
        parts: list[dict[str, NDArray[Any]]] = []
        for one in batch:
            try:
                parts.append(self.model.predict({INPUT: one[None]}))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{self.path} cannot run on {batch.shape} ({reason})") from error
        return files.answers([np.concatenate([part[name] for part in parts]) for name in files.OUTPUTS])


open_file = CoreML


def mark(path: str | Path, reason: str) -> None:
    """Say in the file's metadata that it failed its gate."""
    from metamobile.files import aside

    model = _load(Path(path))
    model.user_defined_metadata[UNVERIFIED] = reason
    with aside(path) as part:
        model.save(str(part))


class Received:
    """The program that the converter is given, run by PyTorch one picture at a time: not the file."""

    name = "Core ML's input in PyTorch"

    def __init__(self, network: nn.Module, card: Card) -> None:
        program, _ = _program(network, card)
        self.card = card
        self.module: Any = program.module()

    def run(self, batch: Pixels) -> Any:
        import torch

        from metamobile.deploy.runtimes import to_arrays

        if batch.shape[1:] != (3, *self.card.preprocess.size):
            expected = (3, *self.card.preprocess.size)
            raise ValueError(f"{self.name} cannot run on {batch.shape} (its pictures are {expected})")
        with torch.inference_mode():
            found = [self.module(torch.from_numpy(one[None])) for one in batch]
        parts = [one if isinstance(one, tuple) else (one,) for one in found]
        return get_files(self.card.task).answers(
            [np.concatenate(to_arrays(list(part))) for part in zip(*parts, strict=True)]
        )


received = Received


def read_back(path: str | Path, network: nn.Module, card: Card) -> list[str]:
    """What in the written file is not as it should be; nothing where all is well.

    Read are the card, names and shapes of input and outputs, the number of each heavy operator, and the
    values of all weights of `network`, which is in its deployed form. It is not executed: the order and the
    arguments of operators are not looked at.
    """
    model = _load(Path(path))
    program, names = _program(network, card)
    problems = _other_card(model, card) + _other_ends(model, program, names, card)
    return problems + _other_operators(model, program) + _other_weights(_held(model, path), program)


def _other_card(model: Any, card: Card) -> list[str]:
    text = model.user_defined_metadata.get(KEY)
    if text is None:
        return ["the file has no card"]
    return [] if Card.from_json(text) == card else ["the file's card is not the model's"]


def _other_ends(model: Any, program: torch.export.ExportedProgram, names: list[str], card: Card) -> list[str]:
    """Of input and outputs."""
    found = model.get_spec().description
    last = [node for node in program.graph.nodes if node.op == "output"][0].args[0]
    wanted = {name: tuple(node.meta["val"].shape) for name, node in zip(names, last, strict=True)}
    problems = []
    for what, features, expected in (
        ("input", found.input, {INPUT: (1, 3, *card.preprocess.size)}),
        ("output", found.output, wanted),
    ):
        shapes = {one.name: tuple(one.type.multiArrayType.shape) for one in features}
        if shapes != expected:
            problems.append(f"{what} is {shapes}, expected {expected}")
    return problems


def _other_operators(model: Any, program: torch.export.ExportedProgram) -> list[str]:
    names = (HEAVY.get(str(node.target)) for node in program.graph.nodes)
    expected = Counter(name for name in names if name)
    (main,) = model.get_spec().mlProgram.functions.values()
    (block,) = main.block_specializations.values()
    found = Counter(operator.type for operator in block.operations)
    return [
        f"{found[name]} operators {name}, expected {count}"
        for name, count in expected.items()
        if found[name] != count
    ]


def _held(model: Any, path: str | Path) -> list[NDArray[Any]]:
    """The weights in the file. Errors: ValueError where they cannot be read."""
    from coremltools.optimize.coreml import get_weights_metadata

    try:
        return [entry.val for entry in get_weights_metadata(model, weight_threshold=0).values()]
    except ValueError as error:
        raise ValueError(f"{path}: coremltools cannot read it, {UNREADABLE} ({error})") from error


def _other_weights(held: Sequence[NDArray[Any]], program: torch.export.ExportedProgram) -> list[str]:
    """Each parameter that the program uses must be in the file, value by value, in its own or in half
    precision. What the converter folds, a batch norm into the convolution before it, must be there as it
    comes out, to rounding."""
    single = {value.astype(np.float32).tobytes() for value in held if value.dtype == np.float32}
    half = {value.tobytes() for value in held if value.dtype == np.float16}
    parameters = program.graph_signature.inputs_to_parameters
    folded = _folded(program)
    problems = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in parameters or not node.users:
            continue
        values = folded.get(node.name, _values(program, node))
        if values is None or values.tobytes() in single or values.astype(np.float16).tobytes() in half:
            continue
        if node.name not in folded or not any(_close(one, values) for one in held):
            problems.append(f"the values of {parameters[node.name]} {values.shape} are not in the file")
    return problems


def _folded(program: torch.export.ExportedProgram) -> dict[str, NDArray[np.float32] | None]:
    """By name of the program's inputs: weights of convolutions before a batch norm, by its scale; the norm's
    bias with all that is added; None for what is in these."""
    found: dict[str, NDArray[np.float32] | None] = {}
    for norm in program.graph.nodes:
        conv = norm.args[0] if "batch_norm" in str(norm.target) else None
        if conv is None or "conv2d" not in str(conv.target) or len(conv.users) > 1:
            continue
        _, weight, bias, mean, variance = norm.args[:5]
        if weight is None or bias is None:
            continue
        eps = [value for value in norm.args[5:] if isinstance(value, float)][-1]  # momentum stands before it
        scale = _values(program, weight) / np.sqrt(_values(program, variance) + np.float32(eps))
        before = _values(program, conv.args[2]) if len(conv.args) > 2 and conv.args[2] is not None else 0
        found[conv.args[1].name] = _values(program, conv.args[1]) * scale[:, None, None, None]
        found[bias.name] = _values(program, bias) + (before - _values(program, mean)) * scale
        found |= {one.name: None for one in (weight, conv.args[2] if len(conv.args) > 2 else None) if one}
    return found


def _values(program: torch.export.ExportedProgram, node: Any) -> NDArray[np.float32]:
    """Of a parameter or buffer."""
    signature = program.graph_signature
    name = (signature.inputs_to_parameters | signature.inputs_to_buffers)[node.name]
    values: NDArray[np.float32] = program.state_dict[name].detach().numpy().astype(np.float32)
    return values


def _close(one: NDArray[Any], other: NDArray[np.float32]) -> bool:
    """But for rounding, of the precision that is held."""
    rounding = 1e-5 if one.dtype == np.float32 else 2e-3
    return one.shape == other.shape and np.allclose(one, other, rounding, rounding * np.abs(other).max())


def _load(path: Path, run: bool = False, everywhere: bool = False) -> Any:
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    try:
        import coremltools
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs coremltools: pip install "metamobile[coreml]"') from error
    units = coremltools.ComputeUnit.ALL if everywhere else coremltools.ComputeUnit.CPU_ONLY
    try:
        return coremltools.models.MLModel(str(path), skip_model_load=not run, compute_units=units)
    except (RuntimeError, ValueError, OSError, DecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: coremltools cannot read it, {UNREADABLE} ({reason})") from error
