"""The weights file: tensors in safetensors, the card in its header. Nothing in it can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from metamobile.files import aside
from metamobile.weights.card import KEY, Card, read_card


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], card: Card, half: bool = False) -> None:
    """Write a state dict and its card; a stop in between leaves the old file whole.

    `half` stores matrices and kernels in half precision; vectors (biases, norms and their statistics) stay
    float32, as they are few and reach far. Errors: ValueError for tensors that are not finite.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        stored = tensor.detach().cpu().contiguous()
        if half and stored.is_floating_point() and stored.dim() > 1:
            stored = stored.half()
        if not torch.isfinite(stored).all():
            raise ValueError(
                f"{name} holds values that are not finite{' in half precision' * half}; not written to {path}"
            )
        tensors[name] = stored.clone() if stored.data_ptr() == tensor.data_ptr() else stored
    with aside(path) as temporary:
        # not `save_file`, whose files only their owner can read
        temporary.write_bytes(save(tensors, metadata={KEY: card.to_json()}))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], Card]:
    """State dict on the CPU, floating point as float32, and the card. Errors: as `read_card`."""
    card = read_card(path)  # names what is wrong with a file better than the library does
    tensors = load_file(path)
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, card
