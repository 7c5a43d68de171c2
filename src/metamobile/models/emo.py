"""EMO and EMOv2: a ResNet-like network made of nothing but iRMBs. Read it from top to bottom.

    picture (B, 3, H, W)
      stage 0  3x3 convolution, stride 2, and a small block without expansion            H/2
      stage 1  iRMBs without attention, batch norm and SiLU                              H/4
      stage 2  iRMBs without attention, batch norm and SiLU                              H/8
      stage 3  iRMBs with attention, layer norm and GELU                                 H/16
      stage 4  iRMBs with attention, layer norm and GELU                                 H/32
      norm, global mean, linear                                                          (B, num_classes)

Importing this module registers every row of `variants.VARIANTS` with timm.
EMOv2 puts its i2RMB in their place: windows cut both ways at once, on expanded values, and layer scale.
Source: EMO (arXiv 2301.01146) section 3.3, EMOv2 (arXiv 2412.06674); details from the official
configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from metamobile.errors import nearest
from metamobile.models.blocks import ConvNormAct, Layer, MetaMobileBlock, batch_norm, irmb, layer_norm
from metamobile.models.operators import WindowAttention
from metamobile.models.pretrained import pretrained_overlay
from metamobile.models.variants import VARIANTS
from metamobile.weights.published import PUBLISHED

REDUCTIONS = (2, 4, 8, 16, 32)
PUBLISHED_WINDOW = 7
NORMS: dict[str, Layer] = {"batch": batch_norm, "layer": layer_norm}
ACTS: dict[str, Layer] = {"silu": nn.SiLU, "gelu": nn.GELU}
HALVING_KERNEL = 5  # of the blocks that take the stride, in a network without other depthwise convolutions

Window = int | tuple[int, int]
WindowSize = Window | str | Sequence[Window]


class EMO(nn.Module):
    """The network: (B, in_chans, H, W) -> (B, num_classes); any H, W of at least 32 pixels.

    Per-stage arguments have four entries, for stages 1 to 4. `window_size` is one side for all stages
    (7: the published function), "auto" for sides that divide the maps of `img_size`, or four sides or pairs.
    `num_classes=0` gives the pooled features. Errors: ValueError for settings that do not fit together.

    What the papers vary, all of it as published unless given: `conv` False leaves the depthwise convolutions
    out, the stem's too, but for those that take a stride, which are 5x5 then; `dilation` spreads all
    depthwise convolutions of stages 1 to 4; `norms` ("batch", "layer") come first in a block and `acts`
    ("silu", "gelu") follow its expansion; `parallel` sums attention and convolution where a block has both.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        expand_ratios: Sequence[float],
        head_dims: Sequence[int],
        kernels: Sequence[int] = (3, 3, 5, 5),
        attention: Sequence[bool] = (False, False, True, True),
        stem_dim: int = 24,
        stem_se: bool = True,
        stem_act: bool = False,
        window_size: WindowSize = PUBLISHED_WINDOW,
        img_size: int | tuple[int, int] | None = None,
        partition: str = "strided",
        order: str = "before",
        conv: bool = True,
        dilation: int = 1,
        norms: Sequence[str] = ("batch", "batch", "layer", "layer"),
        acts: Sequence[str] = ("silu", "silu", "gelu", "gelu"),
        parallel: bool = False,
        layer_scale: float | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.05,
        attn_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.grad_checkpointing = False
        self.window_size = resolve_windows(window_size, img_size)
        norm_layers, act_layers = _layers("norms", norms, NORMS), _layers("acts", acts, ACTS)

        # drop path grows linearly over the blocks of stages 1 to 4; the stem has none
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        stages: list[nn.Module] = [stem(in_chans, stem_dim, stem_se, stem_act, conv)]
        dim = stem_dim
        for stage in range(4):
            blocks = []
            for index in range(depths[stage]):
                down = index == 0
                attends = attention[stage] and not down
                blocks.append(
                    irmb(
                        dim,
                        dims[stage],
                        # the block that takes the stride has no attention and expands twice as far
                        expand_ratio=expand_ratios[stage] * (2 if down else 1),
                        stride=2 if down else 1,
                        attention=attends,
                        conv=conv or down,
                        kernel_size=kernels[stage] if conv else HALVING_KERNEL,
                        dilation=dilation,
                        dim_head=head_dims[stage],
                        window=self.window_size[stage],
                        partition=partition,
                        order=order,
                        parallel=parallel and attends and conv,
                        norm=norm_layers[stage],
                        act=act_layers[stage],
                        drop_path=rates[sum(depths[:stage]) + index],
                        attn_drop=attn_drop_rate,
                        layer_scale=layer_scale,
                    )
                )
                dim = dims[stage]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = layer_norm(dim)
        self.num_features = self.head_hidden_size = dim
        self.head = ClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate)

        channels = (stem_dim, *dims)
        self.feature_info = [
            {"num_chs": c, "reduction": r, "module": f"stages.{i}"}
            for i, (c, r) in enumerate(zip(channels, REDUCTIONS, strict=True))
        ]
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, C4, H/32, W/32), normalised."""
        for stage in self.stages:
            x = self._run(stage, x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C4, h, w) -> (B, num_classes), or the pooled features (B, C4) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

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
        """timm's contract: the maps after the chosen stages, and the final one unless `intermediates_only`.

        `norm` applies the final norm to the last stage's map; earlier maps have other widths.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is unknown; EMO's maps are 'NCHW'")
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        stages = self.stages if not stop_early else self.stages[: last + 1]
        for index, stage in enumerate(stages):
            x = self._run(stage, x)
            if index in take:
                maps.append(self.norm(x) if norm and index == len(self.stages) - 1 else x)
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
            self.reset_classifier(0, "")
        return take

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: stages, or single blocks."""
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stages\.0", "blocks": blocks}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Vectors and biases, which timm's optimiser factory leaves out anyway, are all that EMO exempts."""
        return set()


def stem(in_chans: int, dim: int, se: bool = True, act: bool = False, conv: bool = True) -> nn.Sequential:
    """Stage 0: 3x3 convolution of stride 2 with batch norm, then a block without expansion.

    EMO has squeeze-and-excite here and nowhere else, and *no* activation after the convolution; EMOv2 has
    SiLU there and no squeeze-and-excite. Without `conv` the block is its 1x1 convolution alone.
    Source: official configurations.
    """
    return nn.Sequential(
        ConvNormAct(in_chans, dim, 3, 2, norm=batch_norm, act=nn.SiLU if act else None),
        irmb(dim, expand_ratio=None, attention=False, conv=conv, se=se, norm=None, skip=False),
    )


def _layers(what: str, names: Sequence[str], known: dict[str, Layer]) -> list[Layer]:
    """The layers of stages 1 to 4 by their names. Errors: ValueError for a wrong number, an unknown name."""
    if isinstance(names, str) or len(names) != 4:
        raise ValueError(
            f"{what} is {names!r}; expected four names, one for each stage, of {', '.join(known)}"
        )
    for name in names:
        if name not in known:
            near = nearest(name, known)
            raise ValueError(f"{what} has {name!r}, which is unknown; known are {', '.join(known)}{near}")
    return [known[name] for name in names]


def _init_weights(module: nn.Module) -> None:
    """As the official code: linear layers truncated normal, convolutions as PyTorch leaves them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def resolve_windows(window_size: WindowSize, img_size: int | tuple[int, int] | None) -> list[Window]:
    """One window for each of stages 1 to 4, from any form that `EMO` takes."""
    if isinstance(window_size, str):
        if window_size != "auto":
            raise ValueError(f"window_size {window_size!r} is unknown; give a side, four sides, or 'auto'")
        if img_size is None:
            raise ValueError("window_size='auto' needs img_size, the side of the pictures or (height, width)")
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        return [auto_window(math.ceil(height / r), math.ceil(width / r)) for r in REDUCTIONS[1:]]
    if isinstance(window_size, int):
        return [window_size] * 4
    if isinstance(window_size, tuple) and len(window_size) == 2:
        return [_pair(window_size)] * 4
    if len(window_size) != 4:
        raise ValueError(
            f"window_size has {len(window_size)} entries; give one side, or one for each of 4 stages"
        )
    return [w if isinstance(w, int) else _pair(w) for w in window_size]


def _pair(window: Sequence[Any]) -> tuple[int, int]:
    height, width = window
    return height, width


def auto_window(height: int, width: int) -> tuple[int, int]:
    """Window for a (height, width) map without padding: on each axis the divisor nearest to the published 7.

    A side above 7 keeps several windows where it can; one without a divisor of at least 3 is taken whole.
    """

    def side(size: int) -> int:
        if size <= PUBLISHED_WINDOW:
            return size
        divisors = [d for d in range(3, size) if size % d == 0]
        return min(divisors, key=lambda d: abs(math.log(d / PUBLISHED_WINDOW)), default=size)

    return side(height), side(width)


def padded_share(model: nn.Module, size: int | tuple[int, int]) -> float:
    """Share of attention's tokens, over all attention layers, that are padding at a picture size (H, W)."""
    height, width = (size, size) if isinstance(size, int) else size
    real = total = 0
    for index, stage in enumerate(getattr(model, "stages", ())):
        h, w = (math.ceil(s / REDUCTIONS[index]) for s in (height, width))
        for module in stage.modules():
            if isinstance(module, WindowAttention):
                tall, wide = module.padded_shape(h, w)
                real, total = real + h * w, total + tall * wide
    return 1 - real / total if total else 0.0


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "min_input_size": (3, 32, 32),
        "pool_size": (7, 7),
        "crop_pct": 0.875,  # resize to 256, crop 224
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.0.conv",
        "classifier": "head.fc",
        **kwargs,
    }


def _names(variant: str) -> list[str]:
    """timm's names of a network's weights, `network.tag`; without any, the network's own name."""
    return [name for name in PUBLISHED if name.split(".")[0] == variant] or [variant]


default_cfgs = generate_default_cfgs(
    {name: _cfg(paper_ids=row.paper) for variant, row in VARIANTS.items() for name in _names(variant)}
)

_NOT_ARGUMENTS = ("parameters", "flops", "macs", "top1", "drop_path", "paper")


def _entrypoint(name: str) -> Callable[..., EMO]:
    variant = asdict(VARIANTS[name])
    defaults = {k: v for k, v in variant.items() if k not in _NOT_ARGUMENTS}
    defaults["drop_path_rate"] = variant["drop_path"]

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> EMO:
        overlay = pretrained_cfg_overlay or {}
        # the published weights, unless a record (of a hub's, or a folder's) or a file is given
        if (
            pretrained
            and not overlay.get("file")
            and (pretrained_cfg is None or isinstance(pretrained_cfg, str))
        ):
            weights = f"{name}.{pretrained_cfg}" if pretrained_cfg else name
            asked = 0 if kwargs.get("features_only") else kwargs.get("num_classes")
            overlay = {**pretrained_overlay(weights, asked), **overlay}
        return build_model_with_cfg(
            EMO,
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
            **{**defaults, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = (
        f"{name.upper().replace('_', '-')}: {VARIANTS[name].parameters:,} parameters at 1,000 classes."
    )
    return create


for _name in VARIANTS:
    register_model(_entrypoint(_name))

__all__ = ["EMO", "MetaMobileBlock", "auto_window", "padded_share", "resolve_windows"]
