"""Eight bits for ExecuTorch: XNNPACK's quantiser, and which layers it leaves in single precision.

Convolutions and linear layers are quantised: weights with a scale each output channel, what goes in and out
with one each tensor, from its range over the calibration pictures. All else stays in single precision: layer
norm, softmax, attention's products, activations, sums.

What else was tried, of EMO-1M at 128 px on one thread (x86 with AVX-512), as shares of single precision:
- this, without layers that stay: 0.77 of the time; with 0.5 % of the weights in such layers the same, at less
  than half of the loss, but 0.302 of the size
- depthwise convolutions in single precision: 0.76 of the time, but 0.35 of the size
- sums and pooling quantised too: 0.82 of the time, and twice the largest difference
- scales of activations found as it runs, of linear layers: 0.96 of the time; of most 1x1 convolutions too:
  0.93. Those right behind a permutation XNNPACK cannot run in this way.

H W height and width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import preprocess
from metamobile.weights.card import Card

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ATEN = torch.ops.aten
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
JUDGED_ON = 8  # calibration pictures on which the loss of each layer is measured
# The share of all weights that may stay in single precision: more, and the file is above 0.3 of the size.
KEPT_WEIGHTS = 0.002
# Activations that XNNPACK computes within the layer before.
FUSED = (ATEN.relu.default, ATEN.relu_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default)


def quantise(program: ExportedProgram, card: Card, calibration: Sequence[Path]) -> ExportedProgram:
    """`program` in eight bits but for the layers that `layers_to_keep` finds. Errors: ValueError without
    `calibration` pictures."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    if not calibration:
        raise ValueError("int8 for executorch needs calibration pictures, of what the model was trained for")
    prepared = prepare(program)
    with torch.no_grad():
        for picture in calibration:
            prepared(_pixels(picture, card))
    seen = calibration[:: max(1, len(calibration) // JUDGED_ON)][:JUDGED_ON]
    losses = measure(prepared, [_pixels(path, card) for path in seen])
    release(prepared, layers_to_keep(losses, sizes_of(prepared)))
    quantised = convert_pt2e(prepared)
    move_exported_model_to_eval(quantised)
    example = torch.zeros(1, 3, *card.preprocess.size)
    return torch.export.export(quantised, (example,), strict=False)


def prepare(program: ExportedProgram) -> GraphModule:
    """The graph with an observer wherever a value may become eight bits."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    quantizer = XNNPACKQuantizer()
    config = get_symmetric_quantization_config(is_per_channel=True)
    for layer in LAYERS:
        quantizer.set_operator_type(layer, config)
    prepared: GraphModule = prepare_pt2e(program.module(), quantizer)
    return prepared


def layers_of(module: GraphModule) -> list[Node]:
    """Convolutions and linear layers."""
    return [node for node in module.graph.nodes if node.target in LAYERS]


def sizes_of(module: GraphModule) -> dict[str, int]:
    """How many weights each layer has."""
    weights = {layer.name: _behind(layer.args[1]) for layer in layers_of(module)}
    return {name: weight.meta["val"].numel() for name, weight in weights.items()}


def _behind(node: Any) -> Any:
    """What an observer observes, or the node itself."""
    return node.args[0] if node.op == "call_module" else node


def layers_to_keep(losses: dict[str, float], sizes: dict[str, int]) -> set[str]:
    """The layers that lose most for each weight that they have: as many as have `KEPT_WEIGHTS` of all."""
    room, kept = sum(sizes.values()) * KEPT_WEIGHTS, set()
    for name in sorted(losses, key=lambda name: -losses[name] / sizes[name]):
        if sizes[name] <= room:
            kept.add(name)
            room -= sizes[name]
    return kept


class Rounded(nn.Module):
    """In place of an observer: what eight bits make of a value, or with `on` False the value itself."""

    def __init__(self, observer: Any) -> None:
        super().__init__()
        self.on = False
        self.channel = getattr(observer, "ch_axis", -1) if "channel" in str(observer.qscheme) else None
        scale, zero = observer.calculate_qparams()
        self.scale, self.zero = scale.detach(), zero.detach().to(torch.int32)
        self.lowest, self.highest = observer.quant_min, observer.quant_max

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        if self.channel is not None:
            return torch.fake_quantize_per_channel_affine(
                x, self.scale, self.zero, self.channel, self.lowest, self.highest
            )
        return torch.fake_quantize_per_tensor_affine(
            x, float(self.scale), int(self.zero), self.lowest, self.highest
        )


def measure(prepared: GraphModule, pictures: Sequence[Tensor]) -> dict[str, float]:
    """What each layer costs when it alone is quantised: the mean squared change of each last layer's answer
    over that answer's variance, summed over them.

    A last layer is one that no other follows: a classifier's head, or each of a detector's, whose boxes, once
    suppressed, could not be compared.
    """
    module = copy.deepcopy(prepared)
    for name, observer in module.named_children():
        if hasattr(observer, "calculate_qparams"):
            setattr(module, name, Rounded(observer))
    layers = layers_of(module)
    _answer_with(module, _last(layers))
    plain = _answers(module, pictures)
    losses = {}
    for layer in layers:
        rounded: list[Any] = [module.get_submodule(str(node.target)) for node in observers_at(layer)]
        for one in rounded:
            one.on = True
        found = _answers(module, pictures)
        for one in rounded:
            one.on = False
        losses[layer.name] = sum(
            float((theirs - ours).square().mean() / ours.var().clamp(min=1e-12))
            for ours, theirs in zip(plain, found, strict=True)
        )
    return losses


def observers_at(layer: Node) -> list[Node]:
    """Those of what a layer takes and of what it answers."""
    around = [*layer.all_input_nodes, *_end(layer).users]
    return [node for node in around if node.op == "call_module"]


def _end(layer: Node) -> Node:
    """Where a layer's answer is observed: behind an activation that is fused with it."""
    users = list(layer.users)
    return users[0] if len(users) == 1 and users[0].target in FUSED else layer


def release(module: GraphModule, names: Iterable[str]) -> None:
    """Take the observers from the layers of these names, unless a neighbour needs them."""
    kept = [layer for layer in layers_of(module) if layer.name in set(names)]
    for layer in kept:
        for node in layer.all_input_nodes:
            if node.op == "call_module":
                layer.replace_input_with(node, _behind(node))
    for layer in kept:
        for node in [node for node in _end(layer).users if node.op == "call_module"]:
            if not any(user.target in LAYERS for user in node.users):
                node.replace_all_uses_with(_behind(node))
    module.graph.eliminate_dead_code()
    module.recompile()


def _last(layers: Sequence[Node]) -> list[Node]:
    """The layers that no other follows."""
    leads: dict[Node, bool] = {}  # to a layer

    def lead(node: Node) -> bool:
        if node not in leads:
            leads[node] = any(user.target in LAYERS or lead(user) for user in node.users)
        return leads[node]

    return [layer for layer in layers if not lead(layer)]


def _answer_with(module: GraphModule, nodes: Sequence[Node]) -> None:
    """Make the graph end in these nodes, or in their observers."""
    ends = [next((user for user in _end(node).users if user.op == "call_module"), node) for node in nodes]
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = (tuple(ends),)
    module.graph.set_codegen(torch.fx.CodeGen())  # the program's own gives back what the program answers
    module.graph.eliminate_dead_code()
    module.recompile()


def _answers(module: GraphModule, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Each end's answers to all pictures."""
    with torch.no_grad():
        parts = [module(one) for one in pictures]
    return [torch.cat([value.flatten(1) for value in values]) for values in zip(*parts, strict=True)]


def _pixels(path: Path, card: Card) -> Tensor:
    """(1, 3, H, W)."""
    return torch.from_numpy(preprocess(read_picture(path), card.preprocess)[None])
