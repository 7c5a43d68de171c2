"""Parameters and operations of a network, by two named rules.

- `macs`: multiply-adds of convolutions, linear layers and matrix products, attention included, fused or not.
- `flops_paper`: the count of the EMO papers, `macs` plus 2 per element in batch norm and 5 in layer norm
  (the rules of fvcore, which their logs use).

Activations, softmax, additions and pooling are free in both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from metamobile.models.create import create_model

aten = torch.ops.aten


@dataclass(frozen=True)
class Complexity:
    """Of one module: exact parameters, multiply-adds, and FLOPs by the papers' rule, for one picture."""

    name: str
    parameters: int
    macs: int
    flops_paper: int


def _cpu_attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    """torch's counter takes fused attention on the CPU for free; it costs what its two products cost."""
    return sdpa_flop_count(q, k, v)


def _norm(cost: int) -> Any:
    def count(x: Any, *args: Any, **kwargs: Any) -> int:
        return 2 * cost * math.prod(x)  # twice, as the counter's unit is half a multiply-add

    return count


_ATTENTION = {aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}
_NORMS = {
    aten.native_batch_norm: _norm(2),
    aten._native_batch_norm_legit_no_training: _norm(2),
    aten.native_layer_norm: _norm(5),
}


def _count(model: nn.Module, x: torch.Tensor, mapping: dict[Any, Any]) -> dict[str, int]:
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        model(x)
    root = type(model).__name__
    counts = {
        name.removeprefix(root).removeprefix("."): sum(c.values())
        for name, c in counter.get_flop_counts().items()
    }
    return counts | {"": counter.get_total_flops()}


def complexity(
    model: nn.Module, size: int | tuple[int, int] = 224, modules: Sequence[str] = ("",)
) -> list[Complexity]:
    """Count a model at a picture size (H, W), for the named submodules ("" is the whole).

    Errors: ValueError for a submodule that the model does not have.
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(model, "in_chans", 3)
    parameter = next(model.parameters())
    x = torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    macs = _count(model, x, _ATTENTION)
    paper = _count(model, x, _ATTENTION | _NORMS)
    model.train(training)
    rows = []
    for name in modules:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            known = ", ".join(n for n, _ in model.named_children())
            raise ValueError(f"the model has no part {name!r}; its first parts are {known}") from None
        rows.append(
            Complexity(
                name or type(model).__name__,
                sum(p.numel() for p in module.parameters()),
                macs.get(name, 0) // 2,
                paper.get(name, 0) // 2,
            )
        )
    return rows


def count_network(name: str, size: int = 224, **args: Any) -> Complexity:
    """Of a network by name, with arguments that JSON can hold; on shapes alone, and once for all tables."""
    return _count_once(name, size, json.dumps(args, sort_keys=True))


@cache
def _count_once(name: str, size: int, args: str) -> Complexity:
    network = create_model(name, **json.loads(args)).eval().to("meta")
    return complexity(network, size)[0]
