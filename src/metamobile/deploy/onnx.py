"""A network as one ONNX file: any batch size, a fixed picture size, the card in its metadata."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from metamobile.deploy.dense import add_suppression, output_names
from metamobile.deploy.runtimes import INPUT, UNVERIFIED
from metamobile.models.detection import OneStage
from metamobile.weights.card import KEY, Card


def export_onnx(network: nn.Module, card: Card, path: str | Path) -> None:
    """Write `network`, as it computes in evaluation mode, for pictures of the card's size.

    Input "pixels" (batch, 3, H, W) float32, preprocessed as the card says. Output "logits" (batch, K); of a
    segmenter (batch, K, H, W), and "classes" (batch, H, W), the best of each pixel; a detector's are in
    `add_suppression`.
    Errors: ValueError where a package of the extra `onnx` is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise ValueError(f'export to onnx needs {package}: pip install "metamobile[onnx]"') from error
    import onnx

    # Two pictures, as torch.export takes a size of one for a constant. Batch norm stays: runtimes fold it.
    example = torch.zeros(2, 3, *card.preprocess.size)
    module, names = output_names(network.cpu().eval())
    program = torch.onnx.export(
        module.eval(),
        (example,),
        input_names=[INPUT],
        output_names=names,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # None only from the exporter before dynamo
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with this machine's paths, a seventh of the file
    program.model.metadata_props[KEY] = card.to_json()
    if not isinstance(network, OneStage):
        program.save(str(path), external_data=False)
        return
    model = program.model_proto
    add_suppression(model, network)
    onnx.save(model, path)


def mark_unverified(path: str | Path, reason: str) -> None:
    """Say in the file's metadata that it failed its gate."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {entry.key: entry.value for entry in model.metadata_props} | {UNVERIFIED: reason}
    )
    onnx.save(model, path)
