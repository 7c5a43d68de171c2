"""The Meta Mobile Block's instances against independent implementations, and the iRMB's options."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from metamobile.models.blocks import batch_norm, feed_forward, inverted_residual, irmb, self_attention
from metamobile.models.operators import (
    Cascade,
    DepthwiseConv,
    Skip,
    WindowAttention,
    from_windows,
    to_windows,
)


def randomise(module: nn.Module) -> nn.Module:
    """Parameters and BN statistics away from their defaults, in float64, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith("running_var") else (-0.5, 0.5)
            tensor.data.uniform_(low, high, generator=generator)
    return module.double().eval()


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize(
    ("out_dim", "stride", "ratio"), [(16, 1, 6), (24, 1, 6), (16, 2, 4), (24, 2, 1), (16, 1, 1)]
)
def test_irb_is_torchvisions_inverted_residual(out_dim: int, stride: int, ratio: int) -> None:
    reference = randomise(InvertedResidual(16, out_dim, stride, ratio))
    ours = inverted_residual(16, out_dim, stride=stride, expand_ratio=ratio).double().eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), _irb_tensors(reference), strict=True)))
    x = torch.randn(2, 16, 13, 9, dtype=torch.float64)
    assert relative_difference(ours(x), reference(x)) < 1e-6


def _irb_tensors(block: InvertedResidual) -> list[Tensor]:
    return list(block.state_dict().values())


@pytest.mark.parametrize("bias", [True, False])
def test_mhsa_is_timms_attention(bias: bool) -> None:
    reference = randomise(Attention(24, num_heads=3, qkv_bias=bias))
    ours = self_attention(24, 3, qkv_bias=bias).double().eval()
    state = ours.state_dict()
    for leaf in ("weight", "bias") if bias else ("weight",):
        qkv = getattr(reference.qkv, leaf)
        state[f"operator.qk.{leaf}"] = qkv[:48].reshape(state[f"operator.qk.{leaf}"].shape)
        state[f"expand.conv.{leaf}"] = qkv[48:].reshape(state[f"expand.conv.{leaf}"].shape)
    state["shrink.conv.weight"] = reference.proj.weight[:, :, None, None]
    state["shrink.conv.bias"] = reference.proj.bias
    ours.load_state_dict(state)
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    expected = tokens + reference(tokens)  # the block brings the residual that Attention leaves to its caller
    assert relative_difference(ours(x).flatten(2).transpose(1, 2), expected) < 1e-6


def test_ffn_is_timms_mlp_with_its_residual() -> None:
    reference = randomise(Mlp(24, 96))
    ours = feed_forward(24).double().eval()
    ours.load_state_dict(
        {
            "expand.conv.weight": reference.fc1.weight[:, :, None, None],
            "expand.conv.bias": reference.fc1.bias,
            "shrink.conv.weight": reference.fc2.weight[:, :, None, None],
            "shrink.conv.bias": reference.fc2.bias,
        }
    )
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    tokens = x.permute(0, 2, 3, 1)
    assert relative_difference(ours(x).permute(0, 2, 3, 1), tokens + reference(tokens)) < 1e-6


def test_windows_strided_and_contiguous() -> None:
    """On a 4x4 map with 2x2 windows: the official EMO takes pixels 0, 2, 8, 10 first, a tiling 0, 1, 4, 5."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert to_windows(x, (2, 2), "strided", 1)[0].flatten().tolist() == [0, 2, 8, 10]
    assert to_windows(x, (2, 2), "contiguous", 1)[0].flatten().tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("cut", ["strided", "contiguous"])
def test_from_windows_inverts(cut: str) -> None:
    x = torch.randn(2, 12, 6, 20)
    assert torch.equal(from_windows(to_windows(x, (3, 5), cut, 4), (3, 5), cut, (6, 20)), x)


def _window_attention_reference(attention: WindowAttention, x: Tensor, value: nn.Module, cut: str) -> Tensor:
    """By loops over windows and heads, from the definition."""
    h, w = attention.window_shape(*x.shape[-2:])
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % w, 0, -height % h))
    gh, gw = x.shape[2] // h, x.shape[3] // w
    q, k = attention.qk(x).chunk(2, dim=1)
    v = value(x)
    out = torch.zeros_like(v)
    for i, j, n in itertools.product(range(gh), range(gw), range(attention.num_heads)):
        if cut == "strided":
            rows, columns = slice(i, None, gh), slice(j, None, gw)
        else:
            rows, columns = slice(i * h, (i + 1) * h), slice(j * w, (j + 1) * w)

        def tokens(t: Tensor, rows: slice = rows, columns: slice = columns, n: int = n) -> Tensor:
            d = t.shape[1] // attention.num_heads
            return t[:, n * d : (n + 1) * d, rows, columns].flatten(2).transpose(1, 2)

        scores = tokens(q) @ tokens(k).transpose(1, 2) / math.sqrt(q.shape[1] // attention.num_heads)
        result = scores.softmax(-1) @ tokens(v)
        d = v.shape[1] // attention.num_heads
        out[:, n * d : (n + 1) * d, rows, columns] = result.transpose(1, 2).reshape(x.shape[0], d, h, w)
    return out[:, :, :height, :width]


@pytest.mark.parametrize("partition", ["strided", "contiguous", "both"])
@pytest.mark.parametrize("window", [3, (2, 5), 0, 16])
@pytest.mark.parametrize("order", ["before", "after"])
def test_attention_equals_its_definition(partition: str, window: int | tuple[int, int], order: str) -> None:
    """Odd sizes that no window divides, so that padding takes part."""
    attention = randomise(WindowAttention(12, 4, window, partition))
    value = randomise(nn.Sequential(nn.Conv2d(12, 24, 1), nn.GELU()))
    given = value if order == "after" else nn.Identity()
    x = torch.randn(2, 12, 7, 11, dtype=torch.float64)
    cuts = ("strided", "contiguous") if partition == "both" else (partition,)
    expected = sum(_window_attention_reference(attention, x, given, cut) for cut in cuts)
    assert relative_difference(attention(x, given), expected) < 1e-12


OPTIONS = [
    {},
    {"order": "after"},
    {"partition": "contiguous"},
    {"partition": "both", "order": "after"},
    {"window": 0},
    {"window": 3},
    {"value_groups": True},
    {"kernel_size": 5, "dilation": 2},
    {"se": True},
    {"parallel": True},
    {"parallel": True, "order": "after"},
    {"attention": False},
    {"conv": False},
    {"attention": False, "conv": False},
    {"norm": batch_norm, "act": nn.SiLU},
    {"layer_scale": 1e-6},
    {"stride": 2, "attention": False, "out_dim": 40},
    {"expand_ratio": None, "attention": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "default")
def test_irmb_options_compute_what_they_say(options: dict) -> None:
    """Each option written out by hand from the block's parts."""
    block = randomise(irmb(32, dim_head=8, **options))
    x = torch.randn(2, 32, 9, 10, dtype=torch.float64)
    operator = block.operator
    assert isinstance(operator, Cascade)
    z, expand = block.norm(x), block.expand
    order = options.get("order", "before")
    if options.get("attention", True):
        y = expand(operator.attention(z)) if order == "before" else operator.attention(z, expand)
    else:
        y = expand(z)
    if options.get("conv", True):
        conv = operator.conv
        source = expand(z) if options.get("parallel") else y
        local = conv.se(F.silu(conv.norm(conv.conv(source))))
        local = local + source if options.get("stride", 1) == 1 else local
        y = y + local if options.get("parallel") else local
    y = block.layer_scale(block.shrink(y))
    expected = x + y if options.get("stride", 1) == 1 else y
    assert relative_difference(block(x), expected) < 1e-12
    assert block(x).shape == (2, options.get("out_dim", 32), *((5, 5) if "stride" in options else (9, 10)))


def test_pre_attention_is_equivalent_with_grouped_linear_values() -> None:
    """The paper's proposition: with one group a head and no activation, attention and expansion commute."""
    before = randomise(irmb(32, dim_head=8, value_groups=True, act=nn.Identity, order="before", window=5))
    after = irmb(32, dim_head=8, value_groups=True, act=nn.Identity, order="after", window=5).double().eval()
    after.load_state_dict(before.state_dict())
    x = torch.randn(1, 32, 10, 10, dtype=torch.float64)
    assert relative_difference(after(x), before(x)) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": 30, "dim_head": 8}, "not a multiple of dim_head 8"),
        ({"dim": 32, "partition": "stride"}, "known are strided, contiguous, both"),
        ({"dim": 32, "order": "first"}, "'before' or 'after'"),
        ({"dim": 32, "conv": False, "stride": 2}, "conv=False needs stride 1"),
        ({"dim": 32, "kernel_size": 4}, "kernel_size 4 is even"),
        ({"dim": 32, "parallel": True, "conv": False}, "needs both"),
        ({"dim": 32, "parallel": True, "stride": 2}, "parallel=True needs stride 1"),
    ],
)
def test_impossible_options_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        irmb(**arguments)


def test_operators_tell_their_cost() -> None:
    attention, conv = WindowAttention(32, 8, 7), DepthwiseConv(96, 5)
    assert attention.num_parameters == 2 * 32 * 32 + 2 * 32
    assert attention.macs(14, 14) == 196 * (2 * 32 * 32 + 2 * 49 * 32)
    assert attention.max_path_length(14, 14) == math.inf
    assert attention.max_path_length(7, 7) == 1
    assert conv.macs(14, 14) == 25 * 96 * 196
    assert conv.max_path_length(14, 14) == 2 * 14 / 4
    cascade = Cascade(attention, conv)
    assert cascade.macs(14, 14) == attention.macs(14, 14) + conv.macs(14, 14)
    assert cascade.max_path_length(14, 14) == 2 * 14 / (4 + 2 * 7)
    assert Skip().macs(14, 14) == 0
    after = irmb(32, dim_head=8, expand_ratio=3, conv=False, order="after").operator
    assert after.macs(14, 14) == 196 * (2 * 32 * 32 + 49 * (32 + 96))
