"""The deployed form of a network: the same function, made for running.

Batch norm is folded into the convolutions beside it, layer scale into the shrinking one, attention's scale
into its queries. No tensor has a rank above four, which is the most that ncnn has. Layer norm and attention
work on channels last, with windows cut once, before the projections, by reshapes and transpositions; a map
that whole windows do not cover is padded as a (B, H, W*C) tensor, which every converter takes.

B batch, C channels, H W height and width, N heads, D channels of a head, h w sides of a window, T = h*w
tokens, gh gw windows along each axis, V channels of the values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, LayerScale2d
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from metamobile.models.blocks import ConvNormAct, MetaMobileBlock
from metamobile.models.operators import Cascade, DepthwiseConv, WindowAttention

Network = TypeVar("Network", bound=nn.Module)


def deploy(network: Network) -> Network:
    """A copy of `network` in evaluation mode that answers the same to 1e-4 and runs faster; not for training.

    Any network with `MetaMobileBlock`s: a classifier, a backbone, a detector, a segmenter. In others, batch
    norm right behind a convolution is folded, and branches of timm's that reparameterise are merged. Its
    parameters have other names and shapes: keep the network itself for training and for saving.
    """
    deployed = copy.deepcopy(network)
    reparameterize_model(deployed.eval(), inplace=True)
    _replace(deployed)
    return deployed.eval().requires_grad_(False)


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, MetaMobileBlock) and _has_attention(child):
            setattr(module, name, AttentionBlock(child))
            continue
        _replace(child)
        if isinstance(child, MetaMobileBlock):
            _fold_block(child)
    _fold_neighbours(module)


def _has_attention(block: MetaMobileBlock) -> bool:
    return isinstance(block.operator, Cascade) and block.operator.attention is not None


def _fold_neighbours(module: nn.Module) -> None:
    """Batch norm right behind a convolution, where a module is known to run its children one by one."""
    if not isinstance(module, nn.Sequential | DepthwiseConv):
        return
    names = [name for name, _ in module.named_children()]
    for first, second in zip(names, names[1:], strict=False):
        conv, norm = getattr(module, first), getattr(module, second)
        if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
            setattr(module, first, fuse_conv_bn_eval(conv, norm))
            # timm's norms with an activation keep it
            setattr(module, second, getattr(norm, "act", None) or nn.Identity())


def _fold_block(block: MetaMobileBlock) -> None:
    """Layer scale into the shrinking convolution; batch norm before the expansion into it."""
    if isinstance(block.layer_scale, LayerScale2d):
        block.shrink.conv = _scaled(block.shrink.conv, block.layer_scale.gamma)
        block.layer_scale = nn.Identity()
    if isinstance(block.norm, nn.BatchNorm2d) and isinstance(block.expand, ConvNormAct):
        block.expand.conv = _after_norm(block.expand.conv, block.norm)
        block.norm = nn.Identity()


def _scaled(conv: nn.Conv2d, scale: Tensor) -> nn.Conv2d:
    """The convolution with each output channel times `scale` (out channels,)."""
    conv.weight.data = conv.weight * scale[:, None, None, None]
    if conv.bias is not None:
        conv.bias.data = conv.bias * scale
    return conv


def _after_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A 1x1 convolution, any groups, that takes what `norm` takes."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    groups, each = conv.groups, conv.in_channels // conv.groups
    weight = conv.weight.reshape(groups, -1, each)  # (groups, out / groups, in / groups)
    bias = (weight @ shift.reshape(groups, each, 1)).flatten()
    fused = copy.deepcopy(conv)
    fused.weight.data = (weight * scale.reshape(groups, 1, each)).reshape(conv.weight.shape)
    fused.bias = nn.Parameter(bias if conv.bias is None else bias + conv.bias)
    return fused


class AttentionBlock(nn.Module):
    """A `MetaMobileBlock` whose operator has attention: (B, C, H, W) -> (B, C', H, W).

    Norm and attention see channels last, the convolutions channels first.
    """

    def __init__(self, block: MetaMobileBlock) -> None:
        super().__init__()
        operator = block.operator
        assert isinstance(operator, Cascade) and operator.attention is not None
        self.after = operator.order == "after"
        self.parallel = operator.parallel
        self.skip = block.skip
        self.norm = block.norm
        if isinstance(block.norm, LayerNorm2d):
            self.norm = nn.LayerNorm(block.norm.normalized_shape, block.norm.eps)
            self.norm.weight, self.norm.bias = block.norm.weight, block.norm.bias
        self.attention = Attention(operator.attention)
        _replace(block)
        _fold_block_scale(block)
        self.expand, self.conv, self.shrink = block.expand, operator.conv, block.shrink
        if self.after:
            self.expand = PointwiseLast(block.expand)

    def forward(self, x: Tensor) -> Tensor:
        last = isinstance(self.norm, nn.LayerNorm)
        y = self.norm(x.permute(0, 2, 3, 1)) if last else self.norm(x).permute(0, 2, 3, 1)
        normed = y.permute(0, 3, 1, 2) if self.parallel else y
        y = self.attention(y, self.expand if self.after else None).permute(0, 3, 1, 2)
        if not self.after:
            y = self.expand(y)
        if self.conv is not None:
            y = y + self.conv(normed, self._expand_first) if self.parallel else self.conv(y)
        y = self.shrink(y)
        return x + y if self.skip else y

    def _expand_first(self, x: Tensor) -> Tensor:
        if self.after:
            return self.expand(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.expand(x)


def _fold_block_scale(block: MetaMobileBlock) -> None:
    norm, block.norm = block.norm, nn.Identity()  # attention stands between: its zero padding is not norm's
    _fold_block(block)
    block.norm = norm


class PointwiseLast(nn.Module):
    """1x1 convolution, norm folded, and activation on channels last: (..., C) -> (..., V)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.act: nn.Module = nn.Identity()
        self.linear: nn.Module = nn.Identity()
        self.groups = 1
        if isinstance(layer, ConvNormAct):
            conv = layer.conv
            self.groups = conv.groups
            self.linear = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None)
            self.linear.weight.data = _dense_weight(conv)
            if conv.bias is not None:
                self.linear.bias.data = conv.bias.data
            self.act = getattr(layer, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


def _dense_weight(conv: nn.Conv2d) -> Tensor:
    """(out, in) of a 1x1 convolution, with zeros between groups."""
    weight = conv.weight.data.flatten(1)
    if conv.groups == 1:
        return weight
    return torch.block_diag(*weight.chunk(conv.groups))


class Attention(nn.Module):
    """`WindowAttention` on channels last: (B, H, W, C) -> (B, H, W, V), V those of `expand`."""

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.window_shape = attention.window_shape
        self.cuts = ("strided", "contiguous") if attention.partition == "both" else (attention.partition,)
        half = attention.qk.in_channels
        self.qk = nn.Linear(half, 2 * half, attention.qk.bias is not None)
        scale = attention.qk.weight.new_ones(2 * half)
        scale[:half] = attention.scale
        self.qk.weight.data = attention.qk.weight.data.flatten(1) * scale[:, None]
        if attention.qk.bias is not None:
            self.qk.bias.data = attention.qk.bias.data * scale

    def forward(self, x: Tensor, expand: nn.Module | None = None) -> Tensor:
        height, width, channels = x.shape[1:]
        window = self.window_shape(height, width)
        tall, wide = covering(height, window[0]), covering(width, window[1])
        padded = not same((tall, wide), (height, width))
        if padded:
            x = F.pad(x.flatten(2), (0, (wide - width) * channels, 0, tall - height))
            x = x.reshape(-1, tall, wide, channels)
        whole = same(window, (tall, wide))
        if len(self.cuts) == 1 or whole:
            tokens = cut(x, window, self.cuts[0])  # (B*gh*gw, T, C)
            y = self._attend(self.qk(tokens), tokens if expand is None else expand(tokens))
            y = join(y, window, self.cuts[0], (tall, wide))
            y = y * len(self.cuts) if len(self.cuts) > 1 else y  # both cuts are the whole map
        else:
            qk, v = self.qk(x), x if expand is None else expand(x)
            y = sum_of(
                [
                    join(self._attend(cut(qk, window, one), cut(v, window, one)), window, one, (tall, wide))
                    for one in self.cuts
                ]
            )
        return y[:, :height, :width] if padded else y

    def _attend(self, qk: Tensor, v: Tensor) -> Tensor:
        """(G, T, 2C), (G, T, V) -> (G, T, V), G all windows of the batch."""
        tokens, dim = qk.shape[1], qk.shape[2] // (2 * self.heads)
        qk = qk.reshape(-1, tokens, 2 * self.heads, dim).transpose(1, 2)  # (G, 2N, T, D)
        q, k = qk.chunk(2, 1)
        v = v.reshape(-1, tokens, self.heads, v.shape[2] // self.heads).transpose(1, 2)  # (G, N, T, V/N)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)


def same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether these sizes are known to be equal: asked in any other way, torch.export would take a size that
    it is to leave free for fixed."""
    return all(known(a == b) for a, b in zip(one, other, strict=True))


def known(claim: bool | torch.SymBool) -> bool:
    if not isinstance(claim, torch.SymBool):
        return bool(claim)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(claim)


def covering(size: int, side: int) -> int:
    """A size rounded up to whole windows."""
    if known(size == side):
        return size
    return (size + side - 1) // side * side


def sum_of(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def cut(x: Tensor, window: tuple[int, int], how: str) -> Tensor:
    """(B, H, W, C) -> (B*gh*gw, T, C), as `operators.to_windows` cuts, without its heads."""
    height, width, channels = x.shape[1:]
    h, w = window
    gh, gw = height // h, width // w
    if same((gh, gw), (1, 1)):
        return x.flatten(1, 2)
    if how == "strided":  # rows of one window: 0, gh, 2*gh, ...
        x = x.reshape(-1, h, gh, width * channels).transpose(1, 2)
        x = x.reshape(-1, h * w, gw, channels).transpose(1, 2)
    else:  # rows of one window: 0, 1, ..., h-1
        x = x.reshape(-1, h, gw, w * channels).transpose(1, 2)
    return x.reshape(-1, h * w, channels)


def join(x: Tensor, window: tuple[int, int], how: str, size: tuple[int, int]) -> Tensor:
    """(B*gh*gw, T, C) -> (B, H, W, C): the inverse of `cut`."""
    (height, width), (h, w), channels = size, window, x.shape[2]
    gh, gw = height // h, width // w
    if not same((gh, gw), (1, 1)):
        if how == "strided":
            x = x.reshape(-1, gw, h * w, channels).transpose(1, 2)
            x = x.reshape(-1, gh, h, width * channels).transpose(1, 2)
        else:
            x = x.reshape(-1, gw, h, w * channels).transpose(1, 2)
    return x.reshape(-1, height, width, channels)
