"""Segmenters: any backbone and one of four heads, from a picture to a class for each pixel.

    deeplabv3   stage 4, dilated 3x3 convolutions side by side (ASPP)      auxiliary head while training
    pspnet      stage 4, pooled to 1, 2, 3 and 6 cells a side (PPM)        auxiliary head while training
    fpn         stages 1 to 4, a pyramid of 256 channels (Semantic FPN)
    segformer   stages 1 to 4, 1x1 convolutions alone

The heads are those of EMO and EMOv2 on ADE20K: no stage is dilated (stage 4 keeps stride 32), all 3x3
convolutions are full ones, logits are resized bilinearly. torchvision's DeepLabv3 joins its branches by a 1x1
convolution and would have 2.3 M parameters fewer. Convolutions before a norm have no bias.

Shapes: B batch, C channels, K classes, H W height and width of the picture, h w of a map.
Source: EMO (arXiv 2301.01146) and EMOv2 (arXiv 2412.06674) section 4, official configurations; DeepLabv3
(arXiv 1706.05587), PSPNet (arXiv 1612.01105), Panoptic FPN (arXiv 1901.02446), SegFormer (arXiv 2105.15203).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from metamobile.errors import nearest
from metamobile.models.backbone import Backbone, make_backbone

DILATIONS = (12, 24, 36)  # of DeepLabv3's 3x3 branches
POOLED_SIDES = (1, 2, 3, 6)  # of PSPNet's pooled maps
PYRAMID_CHANNELS = 256  # of the feature pyramid under Semantic FPN
AUXILIARY_CHANNELS = 256  # of the auxiliary head, which is on stage 3


class Logits(NamedTuple):
    """What a segmenter gives while training: (B, K, H, W) each; no auxiliary ones if it has no such head."""

    main: Tensor
    auxiliary: Tensor | None


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the height and width of another map."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class Classify(nn.Sequential):
    """Dropout of whole channels, then a 1x1 convolution: (B, dim, h, w) -> (B, K, h, w)."""

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        conv = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(conv.weight, std=0.01)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        super().__init__(nn.Dropout2d(dropout), conv)


def conv_norm_relu(in_dim: int, dim: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; the size stays."""
    layers = Conv2dNormActivation(in_dim, dim, kernel_size, dilation=dilation)
    nn.init.kaiming_normal_(layers[0].weight, mode="fan_out", nonlinearity="relu")
    return layers


class Head(nn.Module):
    """Base of all heads: maps up to stage 4, whose channels are `dims`, -> logits (B, K, h, w)."""

    least_batch = 1  # pictures that its norms need in training

    def __init__(self, dims: list[int], num_classes: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.classify = Classify(dim, num_classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        raise NotImplementedError


class DeepLabv3Head(Head):
    """ASPP: a 1x1, three dilated 3x3 and the picture's mean side by side, joined by a 3x3 convolution."""

    least_batch = 2

    def __init__(self, dims: list[int], num_classes: int, dim: int, dropout: float) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm_relu(dims[-1], dim, 1))
        dilated = [conv_norm_relu(dims[-1], dim, 3, dilation) for dilation in DILATIONS]
        self.branches = nn.ModuleList([conv_norm_relu(dims[-1], dim, 1), *dilated])
        self.join = conv_norm_relu(dim * (2 + len(DILATIONS)), dim, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        joined = torch.cat([resize(self.mean(x), x), *[branch(x) for branch in self.branches]], 1)
        return self.classify(self.join(joined))


class PSPNetHead(Head):
    """Pyramid pooling: means over grids of 1, 2, 3 and 6 cells a side beside the map, joined by a 3x3."""

    least_batch = 2

    def __init__(self, dims: list[int], num_classes: int, dim: int, dropout: float) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), conv_norm_relu(dims[-1], dim, 1))
            for side in POOLED_SIDES
        )
        self.join = conv_norm_relu(dims[-1] + dim * len(POOLED_SIDES), dim, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        joined = torch.cat([x, *[resize(pool(x), x) for pool in self.pooled]], 1)
        return self.classify(self.join(joined))


class SemanticFPNHead(Head):
    """A feature pyramid, whose levels go up to stride 4 and are summed."""

    def __init__(self, dims: list[int], num_classes: int, dim: int, dropout: float) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.pyramid = FeaturePyramidNetwork(dims, PYRAMID_CHANNELS)
        self.levels = nn.ModuleList(
            Ascent(PYRAMID_CHANNELS, dim, doublings) for doublings in range(len(dims))
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        pyramid = self.pyramid(OrderedDict((str(index), x) for index, x in enumerate(maps)))
        levels = [level(x, maps) for level, x in zip(self.levels, pyramid.values(), strict=True)]
        return self.classify(sum(levels[1:], levels[0]))


class Ascent(nn.Module):
    """A 3x3 convolution before each doubling of the size, and one where there is none to do."""

    def __init__(self, in_dim: int, dim: int, doublings: int) -> None:
        super().__init__()
        self.doublings = doublings
        self.convs = nn.ModuleList(
            conv_norm_relu(dim if index else in_dim, dim, 3) for index in range(max(doublings, 1))
        )

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """`maps` tell the sizes on the way, coarsest last: doubled ones, but for sides rounded up."""
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if self.doublings:
                x = resize(x, maps[self.doublings - 1 - index])
        return x


class SegFormerHead(Head):
    """A 1x1 convolution a stage, all resized to stride 4, joined by another 1x1."""

    def __init__(self, dims: list[int], num_classes: int, dim: int, dropout: float) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.levels = nn.ModuleList(conv_norm_relu(stage, dim, 1) for stage in dims)
        self.join = conv_norm_relu(dim * len(dims), dim, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        levels = [resize(level(x), maps[0]) for level, x in zip(self.levels, maps, strict=True)]
        return self.classify(self.join(torch.cat(levels, 1)))


class AuxiliaryHead(nn.Sequential):
    """FCN on one stage, for a second loss: a 3x3 convolution, then the classes."""

    def __init__(self, in_dim: int, num_classes: int, dropout: float) -> None:
        super().__init__(
            conv_norm_relu(in_dim, AUXILIARY_CHANNELS, 3), Classify(AUXILIARY_CHANNELS, num_classes, dropout)
        )


@dataclass(frozen=True)
class HeadRow:
    """A head, its channels, the finest stride it uses, and whether its published recipe has an auxiliary one.

    With the auxiliary head the finest stride is at most 16, that of stage 3.
    """

    head: type[Head]
    channels: int
    finest_stride: int
    auxiliary: bool


HEADS: dict[str, HeadRow] = {
    "deeplabv3": HeadRow(DeepLabv3Head, 256, 16, auxiliary=True),
    "pspnet": HeadRow(PSPNetHead, 256, 16, auxiliary=True),
    "fpn": HeadRow(SemanticFPNHead, 128, 4, auxiliary=False),
    "segformer": HeadRow(SegFormerHead, 288, 4, auxiliary=False),
}
# where a published configuration has other channels than `HEADS`
_OTHER_CHANNELS = {("emov2_1m", "segformer"): 180}


class Segmenter(nn.Module):
    """(B, 3, H, W) -> logits (B, K, H, W) in evaluation, `Logits` while training; any H, W of the backbone's.

    `settings` are the arguments of `create_segmenter`, but for the backbone's own.
    """

    task = "segment"
    class_layers = ("head.classify.", "auxiliary.1.")  # what is new with other classes

    def __init__(
        self, backbone: Backbone, head: str, num_classes: int, channels: int, auxiliary: bool, dropout: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.in_chans = backbone.in_chans
        self.pretrained_cfg = backbone.pretrained_cfg
        self.settings: dict[str, Any] = {
            "head": head,
            "num_classes": num_classes,
            "head_channels": channels,
            "auxiliary": auxiliary,
            "dropout": dropout,
        }
        dims = backbone.channels[-4:]
        self.head = HEADS[head].head(dims, num_classes, channels, dropout)
        self.least_batch = self.head.least_batch
        self.auxiliary = AuxiliaryHead(dims[-2], num_classes, dropout) if auxiliary else None

    def forward(self, x: Tensor) -> Tensor | Logits:
        maps = self.backbone(x)[-4:]  # up to stage 4
        main = resize(self.head(maps), x)
        if not self.training:
            return main
        if self.auxiliary is None:
            return Logits(main, None)
        return Logits(main, resize(self.auxiliary(maps[-2]), x))


def create_segmenter(
    name: str,
    head: str = "deeplabv3",
    num_classes: int = 150,
    *,
    pretrained: bool = False,
    head_channels: int | None = None,
    auxiliary: bool | None = None,
    dropout: float = 0.1,
    **backbone_args: Any,
) -> Segmenter:
    """A segmenter on any network that can be a backbone.

    `pretrained` loads the backbone's classification weights. `head_channels` and `auxiliary` are the head's
    published ones unless given; `dropout` acts before the last convolution. Other arguments go to the
    network; its published `window_size` is 7 (EMO-1M, 2M), 16 (EMO-5M) or 10 (EMOv2). The auxiliary logits
    are for a second loss, of weight 0.4 in the papers.

    Errors: ValueError for an unknown head or network, with the nearest name, and a pair that cannot be.
    """
    if head not in HEADS:
        raise ValueError(
            f"no segmentation head is called {head!r}; there are {', '.join(HEADS)}{nearest(head, HEADS)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a segmenter needs at least 1")
    row = HEADS[head]
    backbone = make_backbone(name, pretrained=pretrained, finest_stride=row.finest_stride, **backbone_args)
    if head_channels is None:
        architecture = timm.models.get_arch_name(name)
        head_channels = _OTHER_CHANNELS.get((architecture, head), row.channels)
    auxiliary = row.auxiliary if auxiliary is None else auxiliary
    return Segmenter(backbone, head, num_classes, head_channels, auxiliary, dropout)
