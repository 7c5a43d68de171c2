"""DeiT-Tiny and PVT-Tiny, and both with iRMB or i2RMB in place of their Transformer blocks.

All six are one network, `Pyramid`, of Meta Mobile Blocks: a Transformer block is two of them, an iRMB is one.
Importing this module registers them with timm. The plain ones are exact: deit_tiny is timm's
deit_tiny_patch16_224, pvt_tiny has PVT v1's 13,229,288 parameters.

How the paper built the transplanted ones is not published. These came nearest among what was tried
(parameters in M, FLOPs in G at 224 px by the papers' rule; the paper cuts parameters off after one decimal):

    name              published   here             difference       iRMBs
    deit_tiny          5.7  1.3    5.717  1.258
    deit_tiny_irmb     4.9  1.1    4.922  1.095    +0.5 %  -0.4 %   3x3, attention over the whole map
    deit_tiny_i2rmb    5.0  1.3    5.070  1.301    +1.4 %  +0.1 %   5x5, the same, both cuts
    pvt_tiny          13.2  1.9   13.229  1.943
    pvt_tiny_irmb     11.7  1.8   11.785  1.838    +0.7 %  +2.1 %   3x3, attention to PVT's reduced maps
    pvt_tiny_i2rmb    11.9  1.9   11.941  1.932    +0.3 %  +1.7 %   5x5, the same, both cuts in stage 4

All differences lie within the printed digits. Common to the four: attention before the expansion, the patches
and position embeddings of the original, no class token, no layer scale. PVT keeps its spatial reductions and
its ratios 8, 8, 4, 4, although the paper speaks of ratio 4.

What fits less, by parameters where they differ and FLOPs. DeiT: window 7, 0.963 (i2RMB 1.036); attention
after the expansion, 1.361 (1.833), and with window 7, 1.029 (1.169); i2RMB with one cut, 1.124. PVT: window
7 in place of the reductions, 9.914 and 1.826 (10.070 and 1.991), at ratio 4 9.568 and 1.389; reductions at
ratio 4, 11.439 and 1.401; attention after the expansion, 1.555 (1.656); i2RMB with both cuts of every
reduced map, 2.003 (by hand).

So, of these, only i2RMBs fit whose window is the whole map, where both cuts are the same and their sum is
twice one; nothing published confirms that. `window=7` gives DeiT's two cuts that differ, at 1.036 G.

Source: EMOv2 (arXiv 2412.06674) table 3; DeiT (arXiv 2012.12877); PVT (arXiv 2102.12122).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from metamobile.models.blocks import MetaMobileBlock, feed_forward, layer_norm, self_attention
from metamobile.models.emo import _cfg
from metamobile.models.operators import (
    Cascade,
    DepthwiseConv,
    Expand,
    WindowAttention,
    _unchanged,
    from_windows,
    to_windows,
)

IMG_SIZE = 224  # of the pictures that the position embeddings are made for
REDUCE_EPS = 1e-5  # of the norms after PVT's strided convolutions; all others have 1e-6


class ReducedAttention(WindowAttention):
    """Attention of every position to a map that a strided convolution and a norm have reduced.

    (B, C, H, W) -> (B, Cv, H, W) with Cv the channels of expand(x); keys and values come from the reduced
    map, (B, C, H // reduction, W // reduction). Source: PVT (arXiv 2102.12122) section 3.3.
    """

    def __init__(self, dim: int, dim_head: int, reduction: int) -> None:
        super().__init__(dim, dim_head, window=0)
        self.reduction = reduction
        self.reduce = nn.Sequential(
            nn.Conv2d(dim, dim, reduction, reduction), LayerNorm2d(dim, eps=REDUCE_EPS)
        )

    def forward(self, x: Tensor, expand: Expand = _unchanged) -> Tensor:
        reduced = self.reduce(x)
        assert self.qk.bias is not None
        (weight_q, weight_k), (bias_q, bias_k) = self.qk.weight.chunk(2), self.qk.bias.chunk(2)
        maps = F.conv2d(x, weight_q, bias_q), F.conv2d(reduced, weight_k, bias_k), expand(reduced)
        # each map is one window: q (B, N, H*W, D), k and v (B, N, h*w, D)
        q, k, v = (to_windows(t, (t.shape[2], t.shape[3]), "contiguous", self.num_heads) for t in maps)
        weights = (self.scale * q @ k.transpose(-2, -1)).softmax(dim=-1)  # (B, N, H*W, h*w)
        size = (x.shape[2], x.shape[3])
        return from_windows(weights @ v, size, "contiguous", size)

    def macs(self, height: int, width: int, dim_value: int | None = None) -> int:
        dim, full = self.qk.in_channels, height * width
        small = (height // self.reduction) * (width // self.reduction)
        projections = dim * dim * (full + small + self.reduction**2 * small)
        return projections + full * small * (dim + (dim_value or dim))


class Stage(nn.Module):
    """Patches, their positions, blocks: (B, C, H, W) -> (B, dim, H // patch, W // patch).

    With `class_token`, the blocks see a map of one row, and (B, dim, 1, T) comes out, the class token first.
    `side` is that of the table of position embeddings; maps of another shape resample it (bicubic).
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        blocks: Sequence[nn.Module],
        *,
        patch: int,
        side: int,
        patch_norm: bool,
        class_token: bool,
    ) -> None:
        super().__init__()
        self.patch_size = patch
        self.patch = nn.Conv2d(in_dim, dim, patch, patch)
        self.patch_norm = LayerNorm2d(dim, eps=REDUCE_EPS) if patch_norm else nn.Identity()
        self.position = nn.Parameter(torch.empty(1, dim, side, side))
        self.class_token = nn.Parameter(torch.empty(1, dim, 1)) if class_token else None
        self.class_position = nn.Parameter(torch.empty(1, dim, 1)) if class_token else None
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_norm(self.patch(x))
        position: Tensor = self.position
        if position.shape[-2:] != x.shape[-2:]:
            position = F.interpolate(position, x.shape[-2:], mode="bicubic")
        x = x + position
        if self.class_token is not None and self.class_position is not None:
            token = (self.class_token + self.class_position).expand(x.shape[0], -1, -1)
            x = torch.cat([token, x.flatten(2)], dim=2).unsqueeze(2)  # (B, C, 1, T)
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class Pyramid(nn.Module):
    """The network: (B, in_chans, H, W) -> (B, num_classes); H, W at least the product of all `patches`.

    Per-stage arguments have one entry a stage; DeiT is a pyramid of one. `reductions` shrink the map that
    attention looks at; `expand_ratios` are those of the MLP or the iRMB. `block` is "transformer" (class
    token in the last stage) or "irmb" (mean over the map), whose `kernel_size`, `partition`, `order` and
    `window` (on maps that are not reduced; 0: the whole) are those of `blocks.irmb`. Position embeddings
    have the shape for 224 px; other pictures resample them. Errors: ValueError for settings that do not
    fit.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        expand_ratios: Sequence[float],
        patches: Sequence[int],
        reductions: Sequence[int],
        patch_norm: bool,
        block: str = "transformer",
        kernel_size: int = 3,
        partition: str = "strided",
        order: str = "before",
        window: int = 0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if block not in ("transformer", "irmb"):
            raise ValueError(f"block {block!r} is unknown; known are 'transformer' and 'irmb'")
        self.class_token = block == "transformer"
        if self.class_token and reductions[-1] != 1:
            raise ValueError(
                f"the last of reductions is {reductions[-1]}; a class token is not on the map, so expected 1"
            )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.feature_info: list[dict[str, Any]] = []
        self.stages = nn.Sequential()
        last = max(sum(depths) - 1, 1)
        rates = (drop_path_rate * i / last for i in range(sum(depths)))  # grows linearly
        for index, dim in enumerate(dims):
            blocks: list[nn.Module] = []
            for _ in range(depths[index]):
                settings = {"expand_ratio": expand_ratios[index], "drop_path": next(rates)}
                dim_head = dim // heads[index]
                attention = (
                    ReducedAttention(dim, dim_head, reductions[index])
                    if reductions[index] > 1
                    else WindowAttention(dim, dim_head, window, partition)
                )
                if block == "transformer":
                    blocks += transformer_block(dim, attention, **settings)
                else:
                    blocks.append(irmb_block(dim, attention, kernel_size, order, **settings))
            stride = math.prod(patches[: index + 1])
            self.stages.append(
                Stage(
                    dims[index - 1] if index else in_chans,
                    dim,
                    blocks,
                    patch=patches[index],
                    side=IMG_SIZE // stride,
                    patch_norm=patch_norm,
                    class_token=self.class_token and index == len(dims) - 1,
                )
            )
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{index}"})
        self.norm = layer_norm(dims[-1])
        self.num_features = self.head_hidden_size = dims[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)
        if block == "transformer":  # iRMBs start as in EMO, with PyTorch's convolutions
            self.stages.apply(_init_linear)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the last stage's output, normalised: a map, or tokens (B, C, 1, T)."""
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_classes), or the features of the whole picture (B, C) with `pre_logits`."""
        x = self.head_drop(x[:, :, 0, 0] if self.class_token else x.mean((2, 3)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's contract: the maps after the chosen stages, without the class token, and the final output.

        `norm` applies the final norm to the last stage's map; earlier maps have other widths.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is unknown; the maps are 'NCHW'")
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        stages = self.stages if not stop_early else self.stages[: last + 1]
        for index, stage in enumerate(stages):
            assert isinstance(stage, Stage)
            size = [side // stage.patch_size for side in x.shape[-2:]]
            x = stage(x)
            if index in take:
                y = self.norm(x) if norm and index == len(self.stages) - 1 else x
                maps.append(y if stage.class_token is None else y[:, :, 0, 1:].unflatten(2, size))
        if intermediates_only:
            return maps
        return (self.norm(x) if len(stages) == len(self.stages) else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's contract: drop the stages after the last one asked for."""
        take, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """`global_pool` has no effect: the block decides between class token and mean."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _init_linear(self.head)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: stages, or single blocks."""
        # -1: a stage's patches come before its first block
        blocks = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)", (-1,))]
        if coarse:
            blocks = [(r"^stages\.(\d+)", None)]
        return {"stem": r"^stages\.0\.(?:patch|position|class)", "blocks": [*blocks, (r"^norm", (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Position embeddings and the class token."""
        return {name for name, _ in self.named_parameters() if name.endswith(("position", "class_token"))}


def transformer_block(
    dim: int, attention: WindowAttention, *, expand_ratio: float, drop_path: float
) -> list[MetaMobileBlock]:
    """The Transformer's two: MHSA and FFN, both pre-norm."""
    return [
        self_attention(dim, attention.num_heads, attention=attention, norm=layer_norm, drop_path=drop_path),
        feed_forward(dim, expand_ratio=expand_ratio, norm=layer_norm, drop_path=drop_path),
    ]


def irmb_block(
    dim: int,
    attention: WindowAttention,
    kernel_size: int,
    order: str,
    *,
    expand_ratio: float,
    drop_path: float,
) -> MetaMobileBlock:
    """`blocks.irmb` around an attention that may be reduced."""
    mid = int(dim * expand_ratio)
    conv = DepthwiseConv(mid, kernel_size, skip=True)
    return MetaMobileBlock(
        dim,
        Cascade(attention, conv, order=order, dim_value=mid),
        expand_ratio=expand_ratio,
        norm=layer_norm,
        expand_act=nn.GELU,
        drop_path=drop_path,
    )


def _init_linear(module: nn.Module) -> None:
    """Linear layers, which the blocks write as 1x1 convolutions: truncated normal, biases zero."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_DEIT: dict[str, Any] = {
    "dims": (192,),
    "depths": (12,),
    "heads": (3,),
    "expand_ratios": (4,),
    "patches": (16,),
    "reductions": (1,),
    "patch_norm": False,
}
_PVT: dict[str, Any] = {
    "dims": (64, 128, 320, 512),
    "depths": (2, 2, 2, 2),
    "heads": (1, 2, 5, 8),
    "expand_ratios": (8, 8, 4, 4),
    "patches": (4, 2, 2, 2),
    "reductions": (8, 4, 2, 1),
    "patch_norm": True,
}
_IRMB: dict[str, Any] = {"block": "irmb"}
_I2RMB: dict[str, Any] = {"block": "irmb", "kernel_size": 5, "partition": "both"}

TRANSPLANTS: dict[str, dict[str, Any]] = {
    "deit_tiny": _DEIT,
    "deit_tiny_irmb": _DEIT | _IRMB,
    "deit_tiny_i2rmb": _DEIT | _I2RMB,
    "pvt_tiny": _PVT,
    "pvt_tiny_irmb": _PVT | _IRMB,
    "pvt_tiny_i2rmb": _PVT | _I2RMB,
}
default_cfgs = generate_default_cfgs(
    {name: _cfg(first_conv="stages.0.patch", classifier="head", pool_size=None) for name in TRANSPLANTS}
)


def _entrypoint(name: str) -> Callable[..., Pyramid]:
    def create(pretrained: bool = False, **kwargs: Any) -> Pyramid:
        return build_model_with_cfg(
            Pyramid,
            name,
            pretrained,
            feature_cfg={
                "out_indices": tuple(range(len(TRANSPLANTS[name]["dims"]))),
                "feature_cls": "getter",
            },
            **{**TRANSPLANTS[name], **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{name}: see the module's table."
    return create


for _name in TRANSPLANTS:
    register_model(_entrypoint(_name))
