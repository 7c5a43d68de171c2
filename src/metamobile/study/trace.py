"""What a network computes, without data: its operators by kind, and its blocks by what is in them.

A network on the meta device runs once; nothing is computed and no memory is used. Only what depends on the
picture counts: an exporter folds what depends on weights and sizes alone, such as a table of positions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# The stated set, by aten's names. Elementwise functions are those that PyTorch tags as pointwise.
CONVOLUTION = {"convolution", "_convolution"}
MATMUL = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"}
NORM = {
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "native_layer_norm",
    "native_group_norm",
    "_fused_rms_norm",
    "var",
    "var_mean",
    "std",
}
POOLING = {
    "mean",
    "sum",
    "max",
    "amax",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d",
    "max_pool2d_with_indices",
    "adaptive_max_pool2d",
}
SOFTMAX = {"_softmax", "_safe_softmax", "_log_softmax"}
UNTAGGED_ELEMENTWISE = {"hardswish", "prelu", "_prelu_kernel", "glu", "log_sigmoid_forward"}

# Movement in order, as a reshape, a transposition, a slice, padding or joining gives; each is a copy.
COPIES = {
    "clone",
    "copy",
    "_to_copy",
    "cat",
    "stack",
    "repeat",
    "constant_pad_nd",
    "reflection_pad2d",
    "replication_pad2d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "native_channel_shuffle",
}
# Movement to or from computed positions.
INDEXED = {
    "roll",
    "flip",
    "gather",
    "index",
    "index_select",
    "index_put",
    "index_add",
    "scatter",
    "scatter_add",
    "embedding",
    "take",
    "im2col",
    "col2im",
}
UNTAGGED_VIEWS = {"_unsafe_view", "as_strided", "_reshape_alias", "detach", "alias", "lift_fresh"}

CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Traced:
    """Calls of each operator in one forward pass, by class; and what each named block contains.

    `macs` are multiply-adds of convolutions, linear layers and matrix products, as in `study.complexity`.
    """

    inside: dict[str, int]
    other: dict[str, int]
    indexed: dict[str, int]
    copies: dict[str, int]
    macs: int
    contents: dict[str, tuple[str, ...]]


def sort_operator(name: str, pointwise: bool, view: bool) -> str:
    """ "inside" the stated set, "other" arithmetic, "indexed" movement, "copies", or "view" (free)."""
    if name in COPIES:  # before the tag: PyTorch calls a clone pointwise
        return "copies"
    if name in INDEXED:
        return "indexed"
    if view or name in UNTAGGED_VIEWS:
        return "view"
    stated = CONVOLUTION | MATMUL | NORM | POOLING | SOFTMAX | UNTAGGED_ELEMENTWISE
    return "inside" if pointwise or name in stated else "other"


class Recorder(TorchDispatchMode):
    """Counts the operators on tensors that come from `x`, and notes what the block that runs contains."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.calls: dict[str, Counter[str]] = defaultdict(Counter)
        self.contents: dict[str, set[str]] = {}
        self.block: str | None = None
        self.flops = 0
        self._live: dict[int, Tensor] = {}  # by storage, which views share; held, so that no key comes twice
        self._hold(x)

    def _hold(self, tensor: Tensor) -> None:
        self._live[tensor.untyped_storage()._cdata] = tensor

    def _is_live(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:  # PyTorch's own formulas
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        name = func.name().split("::")[-1].split(".")[0]
        name = name.removesuffix("_")  # in place or not
        live = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and self._is_live(t)]
        # new_zeros and zeros_like take a tensor for its shape alone
        if not live or name.startswith("new_") or name.endswith("_like"):
            return out
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        group = sort_operator(name, torch.Tag.pointwise in func.tags, func.is_view)
        self.calls[group][name] += 1
        if self.block is not None:
            self._note(self.contents[self.block], name, group, args, len(live))
        return out

    def _note(self, contents: set[str], name: str, group: str, args: Any, live: int) -> None:
        """What tells kinds of blocks apart: how positions and channels are mixed, not norms, not sizes."""
        if name in CONVOLUTION:
            weight, groups = args[1], args[8]
            if weight.shape[2:].numel() == 1:
                contents.add("1x1")
            else:
                contents.add("depthwise" if groups > 1 and weight.shape[1] == 1 else "convolution")
        elif name in MATMUL:  # by a weight it is a linear layer, the same as a 1x1 convolution
            contents.add("1x1" if live == 1 else "attention")
        elif name in SOFTMAX:
            contents.add("attention")
        elif name in POOLING:
            contents.add("pooling")
        elif group == "other":
            contents.add(name)


def trace(model: nn.Module, size: tuple[int, int], blocks: dict[str, nn.Module] | None = None) -> Traced:
    """Run `model`, on the meta device, on a picture (H, W); `blocks` are submodules of it, by name."""
    x = torch.empty(1, getattr(model, "in_chans", 3), *size, device="meta")
    recorder = Recorder(x)

    def enter(name: str) -> None:
        recorder.block = name
        recorder.contents.setdefault(name, set())

    def leave() -> None:
        recorder.block = None

    hooks = []
    for name, block in (blocks or {}).items():
        hooks.append(block.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        hooks.append(block.register_forward_hook(lambda *_: leave()))
    try:
        with torch.no_grad(), recorder:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    groups = ("inside", "other", "indexed", "copies")
    counts = {group: dict(sorted(recorder.calls[group].items())) for group in groups}
    contents = {name: tuple(sorted(found)) for name, found in recorder.contents.items()}
    return Traced(**counts, macs=recorder.flops // 2, contents=contents)


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated units of a network, by name.

    Lists of modules (Sequential, ModuleList) in the network hold its blocks, directly or as stages: a stage
    is a list again, or a module that holds a list of modules. An item of such a list is a block if it has at
    least two convolutions or linear layers; one alone is a layer, as in a stem. A network that keeps its
    blocks in another way has none by this rule.
    """
    found = {}
    for name, item, in_stage in _items(model):
        lists = {} if in_stage else _lists_of_blocks(item)
        for inner, block, _ in _items(item) if lists else [("", item, True)]:
            if count_layers(block) >= 2:
                found[f"{name}.{inner}".rstrip(".")] = block
    return found


def count_layers(module: nn.Module) -> int:
    return sum(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)) for m in module.modules())


def _lists_of_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The children that are lists, where one of the items could be a block."""
    return {
        name: child
        for name, child in module.named_children()
        if type(child) in CONTAINERS and any(count_layers(item) >= 2 for _, item, _ in _flat(child))
    }


def _flat(container: nn.Module, nested: bool = False) -> Iterator[tuple[str, nn.Module, bool]]:
    """Items of a list and of the lists in it, and whether one lies in a list in the list."""
    for name, item in container.named_children():
        if type(item) in CONTAINERS:
            yield from ((f"{name}.{inner}", found, True) for inner, found, _ in _flat(item, True))
        else:
            yield name, item, nested


def _items(module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    for name, container in _lists_of_blocks(module).items():
        yield from ((f"{name}.{inner}", item, nested) for inner, item, nested in _flat(container))
