"""The Meta Mobile Block, y = x + shrink(F(expand(x))), and its instances: IRB, FFN, MHSA and iRMB.

Shapes: B batch, C channels, H W height and width; lambda is the expansion ratio.
"""

from __future__ import annotations

from collections.abc import Callable

from timm.layers import DropPath, LayerNorm2d, LayerScale2d
from torch import Tensor, nn

from metamobile.models.operators import BN_EPS, Cascade, DepthwiseConv, Operator, Skip, WindowAttention

Layer = Callable[..., nn.Module]


def batch_norm(dim: int) -> nn.Module:
    return nn.BatchNorm2d(dim, eps=BN_EPS)


def layer_norm(dim: int) -> nn.Module:
    """Layer norm over the channels of (B, C, H, W)."""
    return LayerNorm2d(dim, eps=BN_EPS)


class ConvNormAct(nn.Sequential):
    """Convolution, then norm and activation where given: (B, dim, H, W) -> (B, out_dim, H', W')."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = True,
        norm: Layer | None = None,
        act: Layer | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
        if norm is not None:
            self.norm = norm(out_dim)
        if act is not None:
            self.act = act()


class MetaMobileBlock(nn.Module):
    """y = x + shrink(F(expand(x))): (B, C, H, W) -> (B, out_dim, H', W').

    `operator` is F and works on int(expand_ratio * dim) channels; `expand_ratio` None leaves the expansion
    out. `norm` comes first (pre-norm); `expand_*` and `shrink_*` say what accompanies the two 1x1
    convolutions. The skip joins where the operator keeps the map and out_dim equals dim, unless `skip` is
    False.
    Source: EMO section 3.1, EMOv2 section 3.1.
    """

    def __init__(
        self,
        dim: int,
        operator: Operator,
        *,
        out_dim: int | None = None,
        expand_ratio: float | None = 4.0,
        stride: int = 1,
        norm: Layer | None = None,
        expand_norm: Layer | None = None,
        expand_act: Layer | None = None,
        expand_bias: bool = True,
        expand_groups: int = 1,
        shrink_norm: Layer | None = None,
        shrink_bias: bool = False,
        skip: bool = True,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        mid = dim if expand_ratio is None else int(dim * expand_ratio)
        self.norm = norm(dim) if norm is not None else nn.Identity()
        self.expand: nn.Module = nn.Identity()
        if expand_ratio is not None:
            self.expand = ConvNormAct(
                dim, mid, groups=expand_groups, bias=expand_bias, norm=expand_norm, act=expand_act
            )
        self.operator = operator
        self.proj_drop = nn.Dropout(proj_drop)
        self.shrink = ConvNormAct(mid, out_dim, bias=shrink_bias, norm=shrink_norm)
        # In EMOv2 on every block, also on those without skip: kept, so that the published weights load.
        self.layer_scale = LayerScale2d(out_dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.skip = skip and stride == 1 and out_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        y = self.operator(self.norm(x), self.expand)
        y = self.layer_scale(self.shrink(self.proj_drop(y)))
        return x + self.drop_path(y) if self.skip else y


def inverted_residual(
    dim: int, out_dim: int, *, stride: int = 1, expand_ratio: float = 6.0, kernel_size: int = 3
) -> MetaMobileBlock:
    """IRB of MobileNetv2 (arXiv 1801.04381): F is a depthwise convolution, lambda above one."""
    mid = int(dim * expand_ratio)
    return MetaMobileBlock(
        dim,
        DepthwiseConv(mid, kernel_size, stride, act=nn.ReLU6, eps=1e-5),
        out_dim=out_dim,
        expand_ratio=None if expand_ratio == 1 else expand_ratio,
        stride=stride,
        expand_norm=nn.BatchNorm2d,
        expand_act=nn.ReLU6,
        expand_bias=False,
        shrink_norm=nn.BatchNorm2d,
    )


def feed_forward(
    dim: int, *, expand_ratio: float = 4.0, norm: Layer | None = None, drop_path: float = 0.0
) -> MetaMobileBlock:
    """FFN of the Transformer: F is the identity, lambda four."""
    return MetaMobileBlock(
        dim,
        Skip(),
        expand_ratio=expand_ratio,
        norm=norm,
        expand_act=nn.GELU,
        shrink_bias=True,
        drop_path=drop_path,
    )


def self_attention(
    dim: int,
    num_heads: int,
    *,
    attention: WindowAttention | None = None,
    qkv_bias: bool = True,
    norm: Layer | None = None,
    drop_path: float = 0.0,
) -> MetaMobileBlock:
    """MHSA of the Transformer: F multiplies by the attention map, lambda one.

    It looks at all H*W positions, unless `attention` says otherwise.
    """
    return MetaMobileBlock(
        dim,
        attention or WindowAttention(dim, dim // num_heads, window=0, bias=qkv_bias),
        expand_ratio=1.0,
        norm=norm,
        expand_bias=qkv_bias,
        shrink_bias=True,
        drop_path=drop_path,
    )


def irmb(
    dim: int,
    out_dim: int | None = None,
    *,
    expand_ratio: float | None = 4.0,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    attention: bool = True,
    conv: bool = True,
    dim_head: int = 32,
    window: int | tuple[int, int] = 7,
    partition: str = "strided",
    order: str = "before",
    parallel: bool = False,
    value_groups: bool = False,
    se: bool = False,
    norm: Layer | None = layer_norm,
    act: Layer = nn.GELU,
    skip: bool = True,
    drop_path: float = 0.0,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    layer_scale: float | None = None,
) -> MetaMobileBlock:
    """iRMB: windowed attention and a depthwise convolution in one block.

    `expand_ratio` multiplies the input width. `value_groups` gives the expansion one group a head, as in the
    proposition that moves attention before it. `partition="both"` with `order="after"` is EMOv2's i2RMB.
    Without `conv` a stride cannot be taken. Source: EMO section 3.2 and the official configuration.
    """
    out_dim = out_dim or dim
    if stride != 1 and not conv:
        raise ValueError(f"stride {stride} is taken by the depthwise convolution; conv=False needs stride 1")
    if parallel and stride != 1:
        raise ValueError(f"parallel=True needs stride 1, as attention keeps the map; got stride {stride}")
    mid = dim if expand_ratio is None else int(dim * expand_ratio)
    if attention and order == "after" and mid % (dim // dim_head):
        raise ValueError(
            f"order 'after' shares {mid} expanded channels among {dim // dim_head} heads, which do not "
            f"divide them; give another dim_head than {dim_head}, or order 'before'"
        )
    keeps_shape = skip and stride == 1 and out_dim == dim
    operator = Cascade(
        WindowAttention(dim, dim_head, window, partition, attn_drop=attn_drop) if attention else None,
        DepthwiseConv(mid, kernel_size, stride, dilation, skip=keeps_shape, se=se) if conv else None,
        order=order,
        parallel=parallel,
        dim_value=mid,
    )
    return MetaMobileBlock(
        dim,
        operator,
        out_dim=out_dim,
        expand_ratio=expand_ratio,
        stride=stride,
        norm=norm,
        expand_act=act,
        expand_groups=dim // dim_head if value_groups else 1,
        skip=skip,
        drop_path=drop_path,
        proj_drop=proj_drop,
        layer_scale=layer_scale,
    )
