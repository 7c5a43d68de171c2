"""Operators: the F of the Meta Mobile Block, y = x + shrink(F(expand(x))).

Every operator maps (B, C, H, W) to (B, C', H', W'), and tells its multiply-adds and its maximum path
length. It is called with `x` and, optionally, with the block's expansion: most operators work on
`expand(x)` alone, but attention takes its queries and keys from `x` *before* the expansion and its values
*after* it, from one zero-padded map.

Shapes: B batch, C channels, H W height and width, N heads, D channels of a head, T = h*w tokens in a
window, G = gh*gw windows of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor, nn

Expand = Callable[[Tensor], Tensor]
PARTITIONS = ("strided", "contiguous", "both")
BN_EPS = 1e-6  # of every norm in EMO


def _unchanged(x: Tensor) -> Tensor:
    return x


class Operator(nn.Module):
    """Base of all F: `forward(x, expand)` gives F(expand(x))."""

    def forward(self, x: Tensor, expand: Expand = _unchanged) -> Tensor:
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """Parameters of the operator alone, without the block's expansion and shrinking."""
        return sum(p.numel() for p in self.parameters())

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of one picture on a (height, width) input map; norms and activations are free."""
        raise NotImplementedError

    def max_path_length(self, height: int, width: int) -> float:
        """Blocks needed to connect any two positions of the map. Source: EMOv2, table 2."""
        raise NotImplementedError


class Skip(Operator):
    """F = identity: the feed-forward net."""

    def forward(self, x: Tensor, expand: Expand = _unchanged) -> Tensor:
        return expand(x)

    def macs(self, height: int, width: int) -> int:
        return 0

    def max_path_length(self, height: int, width: int) -> float:
        return math.inf


class DepthwiseConv(Operator):
    """Depthwise convolution, norm, activation, optionally squeeze-and-excite, optionally an inner skip.

    (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)). The activation is SiLU in every stage of EMO,
    also in those whose expansion uses GELU. Unlike the official EMO code, the padding follows the dilation.
    Source: EMO section 3.2; paper-wide kernel sizes in `variants`.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        *,
        skip: bool = False,
        se: bool = False,
        act: Callable[..., nn.Module] = nn.SiLU,
        eps: float = BN_EPS,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; an odd one keeps the map centred")
        if skip and stride != 1:
            raise ValueError(f"skip needs stride 1, got stride {stride}")
        self.conv = nn.Conv2d(
            dim, dim, kernel_size, stride, dilation * (kernel_size // 2), dilation, groups=dim, bias=False
        )
        self.norm = nn.BatchNorm2d(dim, eps=eps)
        self.act = act()
        self.se = SqueezeExcite(dim, rd_ratio=1.0, act_layer=nn.SiLU) if se else nn.Identity()
        self.skip = skip

    def forward(self, x: Tensor, expand: Expand = _unchanged) -> Tensor:
        x = expand(x)
        y = self.se(self.act(self.norm(self.conv(x))))
        return x + y if self.skip else y

    def macs(self, height: int, width: int) -> int:
        kernel, stride, dim = self.conv.kernel_size[0], self.conv.stride[0], self.conv.out_channels
        squeeze = 0 if isinstance(self.se, nn.Identity) else 2 * dim * dim
        return kernel**2 * dim * math.ceil(height / stride) * math.ceil(width / stride) + squeeze

    def max_path_length(self, height: int, width: int) -> float:
        reach = (self.conv.kernel_size[0] - 1) * self.conv.dilation[0]
        return 2 * max(height, width) / reach if reach else math.inf


class WindowAttention(Operator):
    """Multi-head attention inside windows: queries and keys from x, values from expand(x). EW-MHSA.

    (B, C, H, W) -> (B, Cv, H, W) with Cv the channels of expand(x); C and Cv must be multiples of the number
    of heads, C / dim_head. `window` is a side, a pair (h, w), or 0 for the whole map. `partition`:

    - "strided": a window holds every gh-th row and every gw-th column, so that it spans the map (EMO);
    - "contiguous": a window is a tile (Swin without shifts);
    - "both": one q, k, v, cut both ways, the two results summed (EMOv2's spanning attention).

    The map is zero-padded at the bottom and right to whole windows before the projections, and nothing is
    masked: padded tokens take part through the biases, as in the official networks.
    Source: EMO section 3.2, official code for partition and padding; EMOv2 section 3.3 for "both".
    """

    def __init__(
        self,
        dim: int,
        dim_head: int = 32,
        window: int | tuple[int, int] = 7,
        partition: str = "strided",
        *,
        bias: bool = True,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % dim_head:
            raise ValueError(f"dim {dim} is not a multiple of dim_head {dim_head}")
        if partition not in PARTITIONS:
            raise ValueError(f"partition {partition!r} is unknown; known are {', '.join(PARTITIONS)}")
        self.num_heads = dim // dim_head
        self.scale = dim_head**-0.5
        self.window = window
        self.partition = partition
        self.attn_drop = attn_drop
        self.qk = nn.Conv2d(dim, 2 * dim, 1, bias=bias)

    def window_shape(self, height: int, width: int) -> tuple[int, int]:
        """Sides (h, w) of a window on a (height, width) map."""
        h, w = self.window if isinstance(self.window, tuple) else (self.window, self.window)
        return h or height, w or width

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) map rounded up to whole windows."""
        h, w = self.window_shape(height, width)
        return height + -height % h, width + -width % w

    def forward(self, x: Tensor, expand: Expand = _unchanged) -> Tensor:
        height, width = x.shape[-2:]
        window = self.window_shape(height, width)
        tall, wide = self.padded_shape(height, width)
        padded = (tall, wide) != (height, width)
        if padded:
            x = F.pad(x, (0, wide - width, 0, tall - height))
        q, k = self.qk(x).chunk(2, dim=1)
        v = expand(x)
        cuts = ("strided", "contiguous") if self.partition == "both" else (self.partition,)
        y = self._attend(q, k, v, window, cuts[0])
        for cut in cuts[1:]:
            y = y + self._attend(q, k, v, window, cut)
        return y[:, :, :height, :width] if padded else y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], cut: str) -> Tensor:
        height, width = v.shape[-2:]
        q, k, v = (to_windows(t, window, cut, self.num_heads) for t in (q, k, v))  # (B*G, N, T, D)
        # Two plain products: in such small windows faster than fused attention, and counters see them.
        weights = (self.scale * q @ k.transpose(-2, -1)).softmax(dim=-1)  # (B*G, N, T, T)
        y = F.dropout(weights, self.attn_drop, self.training) @ v
        return from_windows(y, window, cut, (height, width))

    def macs(self, height: int, width: int, dim_value: int | None = None) -> int:
        """`dim_value`: channels of the values, when the attention works on expanded ones."""
        dim = self.qk.in_channels
        tall, wide = self.padded_shape(height, width)
        h, w = self.window_shape(height, width)
        maps = 2 if self.partition == "both" else 1
        return tall * wide * (2 * dim * dim + maps * h * w * (dim + (dim_value or dim)))

    def max_path_length(self, height: int, width: int) -> float:
        h, w = self.window_shape(height, width)
        return 1 if h >= height and w >= width else math.inf


class Cascade(Operator):
    """Attention, then a depthwise convolution: the operator of the iRMB, and its variations.

    `order` says where attention stands: "before" the expansion (at width C: all published EMO weights) or
    "after" (queries and keys at C, values at the expanded width: EMOv2). `parallel` sums the two branches
    instead. Either component may be None; `dim_value`, the expanded width, is for counting alone.
    Source: EMO section 3.2, F = (DW-Conv, Skip)(EW-MHSA).
    """

    def __init__(
        self,
        attention: WindowAttention | None,
        conv: DepthwiseConv | None,
        *,
        order: str = "before",
        parallel: bool = False,
        dim_value: int | None = None,
    ) -> None:
        super().__init__()
        if order not in ("before", "after"):
            raise ValueError(
                f"order {order!r} is unknown; attention stands 'before' or 'after' the expansion"
            )
        if parallel and (attention is None or conv is None):
            raise ValueError("parallel=True needs both attention and a convolution")
        self.attention = attention
        self.conv = conv
        self.order = order
        self.parallel = parallel
        self.dim_value = dim_value

    def forward(self, x: Tensor, expand: Expand = _unchanged) -> Tensor:
        if self.attention is None:
            y = expand(x)
        elif self.order == "before":
            y = expand(self.attention(x))
        else:
            y = self.attention(x, expand)
        if self.conv is None:
            return y
        return y + self.conv(x, expand) if self.parallel else self.conv(y)

    def macs(self, height: int, width: int) -> int:
        total = 0
        if self.attention is not None:
            wide = self.dim_value if self.order == "after" else None
            total += self.attention.macs(height, width, wide)
        return total + (self.conv.macs(height, width) if self.conv is not None else 0)

    def max_path_length(self, height: int, width: int) -> float:
        if self.attention is None or self.conv is None:
            only = self.attention or self.conv
            return only.max_path_length(height, width) if only is not None else math.inf
        if self.attention.max_path_length(height, width) == 1:
            return 1
        reach = (self.conv.conv.kernel_size[0] - 1) * self.conv.conv.dilation[0]
        window = max(self.attention.window_shape(height, width))
        length = 2 * max(height, width) / (reach + 2 * window)
        # Derived here: side by side, one block makes one of the two steps, so a path takes twice as many.
        return 2 * length if self.parallel else length


def to_windows(x: Tensor, window: tuple[int, int], cut: str, heads: int) -> Tensor:
    """(B, N*D, H, W) -> (B*G, N, T, D): cut a map, whose sides the window divides, into windows."""
    batch, channels, height, width = x.shape
    h, w = window
    gh, gw = height // h, width // w
    dim = channels // heads
    if cut == "strided":  # rows of one window: 0, gh, 2*gh, ...
        x = x.reshape(batch, heads, dim, h, gh, w, gw).permute(0, 4, 6, 1, 3, 5, 2)
    else:  # rows of one window: 0, 1, ..., h-1
        x = x.reshape(batch, heads, dim, gh, h, gw, w).permute(0, 3, 5, 1, 4, 6, 2)
    return x.reshape(batch * gh * gw, heads, h * w, dim)


def from_windows(x: Tensor, window: tuple[int, int], cut: str, size: tuple[int, int]) -> Tensor:
    """(B*G, N, T, D) -> (B, N*D, H, W): the inverse of `to_windows`."""
    (height, width), (h, w) = size, window
    gh, gw = height // h, width // w
    heads, dim = x.shape[1], x.shape[3]
    x = x.reshape(-1, gh, gw, heads, h, w, dim)
    x = x.permute(0, 4, 1, 5, 2, 3, 6) if cut == "strided" else x.permute(0, 1, 4, 2, 5, 3, 6)
    x = x.reshape(-1, height, width, heads * dim)  # channels last: the next 1x1 convolution reads it as it is
    return x.permute(0, 3, 1, 2)
