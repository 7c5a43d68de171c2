"""Smaller weights of an ONNX model: half precision, and eight bits with the layers that lose most left out.

Eight bits are ONNX's QDQ form, made by ONNX Runtime's quantiser: each output channel of a weight has a scale
of its own, each activation one scale and zero, from its range over the calibration pictures. Convolutions and
linear layers are quantised; layer norm, softmax and the products of attention stay as they are.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import preprocess
from metamobile.deploy.runtimes import INPUT
from metamobile.weights.card import Card

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LAYERS = ("Conv", "Gemm", "MatMul")
JUDGED_ON = 16  # calibration pictures on which the loss of each layer is measured
KEPT_LOSS, KEPT_WEIGHTS = 0.5, 0.03  # the share of all loss to avoid, with at most this share of the weights
SMALL = 64  # numbers; shorter constants are not worth a node


def half_weights(model: ModelProto) -> ModelProto:
    """Weights in half precision, which a runtime turns back into single at loading: changed in place."""
    from onnx import TensorProto, helper, numpy_helper

    scales = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in scales or np.prod(tensor.dims) < SMALL:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def quantise(model: ModelProto, card: Card, calibration: Sequence[Path], *, outputs: bool) -> ModelProto:
    """`model` in eight bits, all other weights in half precision.

    `outputs` quantises what a layer answers, too, as ONNX Runtime's kernels want it; OpenVINO is faster and
    closer without. Which layers stay in higher precision is measured: see `layers_to_keep`. Errors:
    ValueError without calibration pictures.
    """
    from onnx import shape_inference

    if not calibration:
        raise ValueError("int8 needs calibration pictures, of what the model was trained for; got none")
    model = shape_inference.infer_shapes(model)
    names = layers_of(model)
    ranges = _ranges(model, (_pixels(path, card) for path in calibration))
    seen = calibration[:: max(1, len(calibration) // JUDGED_ON)][:JUDGED_ON]
    kept = layers_to_keep(model, names, ranges, [_pixels(path, card) for path in seen], outputs)
    made = _quantised(model, [name for name in names if name not in kept], ranges, outputs)
    del made.metadata_props[:]  # the quantiser notes itself there
    made.metadata_props.extend(model.metadata_props)
    return _short_names(half_weights(made))


def layers_of(model: ModelProto) -> dict[str, int]:
    """Convolutions and linear layers, by their node's name, and how many weights each has."""
    weights = _weights(model)
    return {
        node.name: int(np.prod(weights[node.input[1]].dims))
        for node in model.graph.node
        if node.op_type in LAYERS and node.input[1] in weights
    }


def layers_to_keep(
    model: ModelProto,
    layers: dict[str, int],
    ranges: Any,
    batches: Sequence[NDArray[np.float32]],
    outputs: bool,
) -> set[str]:
    """The layers that lose most when they alone are quantised, worst first: until those that are left have
    half of the loss, but never with more than 3 % of all weights, for the sake of the file's size.

    Loss is the mean squared change of each output over its variance, summed over outputs.
    """
    plain = _answers(model, batches)
    losses = {}
    for name in layers:
        found = _answers(_quantised(model, [name], ranges, outputs), batches)
        losses[name] = sum(
            float(np.square(ours - theirs).mean() / max(float(ours.var()), 1e-12))
            for ours, theirs in zip(plain, found, strict=True)
        )
    left, room = sum(losses.values()) * (1 - KEPT_LOSS), sum(layers.values()) * KEPT_WEIGHTS
    total, kept = sum(losses.values()), set()
    for name in sorted(losses, key=lambda name: -losses[name]):
        if total <= left:
            break
        if layers[name] <= room:
            kept.add(name)
            room -= layers[name]
            total -= losses[name]
    return kept


def _quantised(model: ModelProto, names: Sequence[str], ranges: Any, outputs: bool) -> ModelProto:
    """A copy in which the layers of these `names` are quantised."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    maker = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(names),
        nodes_to_exclude=[],
        op_types_to_quantize=list(LAYERS),
        extra_options={} if outputs else {"OpTypesToExcludeOutputQuantization": list(LAYERS)},
    )
    maker.quantize_model()
    maker.model.topological_sort()
    made: ModelProto = maker.model.model
    return made


def _short_names(model: ModelProto) -> ModelProto:
    """Names of nodes and inner values, and their shapes, are a tenth of a file in eight bits: changed in
    place."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}
    for node in graph.node:
        node.name = ""
        for place in (node.input, node.output):
            for i, name in enumerate(place):
                if name not in kept:
                    place[i] = names.setdefault(name, f"v{len(names)}")
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    del graph.value_info[:]
    return model


def _ranges(model: ModelProto, batches: Iterable[NDArray[np.float32]]) -> Any:
    """Lowest and highest value of each layer's input and output, as the quantiser takes them."""
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        plain = copy.deepcopy(model)
        del plain.graph.output[:]  # the calibrator keeps every answer, and a segmenter's are large
        onnx.save(plain, path)
        calibrator = create_calibrator(
            path,
            list(LAYERS),
            str(Path(folder) / "augmented.onnx"),
        )
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
        del calibrator  # it holds the files, which Windows would not remove
    return found


def _answers(model: ModelProto, batches: Sequence[NDArray[np.float32]]) -> list[NDArray[Any]]:
    """Each output in single precision over all batches: classes of pixels and the like are left out."""
    import onnxruntime
    from onnx import TensorProto

    names = [
        output.name for output in model.graph.output if output.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [session.run(names, {INPUT: batch}) for batch in batches]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _weights(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _pixels(path: Path, card: Card) -> NDArray[np.float32]:
    """(1, 3, H, W)."""
    return preprocess(read_picture(path), card.preprocess)[None]
