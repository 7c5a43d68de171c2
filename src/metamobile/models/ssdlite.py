"""SSDLite: light heads on the maps of stages 3 and 4 and four more, for small pictures.

Source: MobileNetV2 (arXiv 1801.04381) section 6.2; settings of the EMO papers' COCO recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from metamobile.models.backbone import Backbone
from metamobile.models.detection import CANDIDATES, OneStage, Raw, Target

EXTRA_CHANNELS = (512, 256, 256, 128)
# In pixels and the same for pictures of every size, as published: 107 is not the stride of a map, and of
# 512 pixels the cells of the last levels cover the upper left part.
ANCHOR_STRIDES = (16, 32, 64, 107, 160, 320)
ANCHOR_SIZES = (48, 100, 150, 202, 253, 304, 320)  # a level's smallest; the next is its largest
ANCHOR_RATIOS = (2, 3)


class SSDLite(OneStage, SSD):
    """SSDLite with torchvision's loss: cross-entropy with the 3 hardest negatives a positive, and smooth L1.

    Anchors with an overlap of 0.5 are positive, and the best one of each box. Logits have K + 1 columns, the
    background first. A map of the last level has a single cell for pictures up to 320 pixels, so batch norm
    needs two pictures in training (`least_batch`). Errors: ValueError for a batch of one there.
    """

    head_name = "ssdlite"
    class_layers = ("head.classification_head.",)
    finest_stride = 16
    least_batch = 2

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)
        channels = [*backbone.channels[-2:], *EXTRA_CHANNELS]
        anchors = PixelBoxes()
        head = SSDLiteHead(channels, anchors.num_anchors_per_location(), num_classes + 1, norm)
        super().__init__(
            backbone,
            anchors,
            size=(1, 1),  # of the transform, which goes
            num_classes=num_classes + 1,
            head=head,
            score_thresh=0.02,
            nms_thresh=0.45,
            detections_per_img=200,
            iou_thresh=0.5,
            topk_candidates=CANDIDATES,
            positive_fraction=0.25,
        )
        del self.transform
        self.num_classes = num_classes
        self.extra = nn.ModuleList(
            extra_level(channels[i + 1], EXTRA_CHANNELS[i], norm) for i in range(len(EXTRA_CHANNELS))
        )

    def features(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(images)[-2:]
        for level in self.extra:
            maps.append(level(maps[-1]))
        return maps

    def scores(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, -1)[..., 1:]

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        if len(images) == 1:
            raise ValueError("SSDLite trains on 2 pictures a batch or more, for its batch norm; this has 1")
        return super().losses(images, targets)

    def box_losses(
        self, raw: Raw, targets: Sequence[dict[str, Tensor]], matched: list[Tensor]
    ) -> dict[str, Tensor]:
        shifted = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in targets]
        out = {"cls_logits": raw.logits, "bbox_regression": raw.deltas}
        losses = SSD.compute_loss(self, shifted, out, [raw.anchors] * len(targets), matched)
        return {"classification": losses["classification"], "boxes": losses["bbox_regression"]}


def extra_level(in_channels: int, channels: int, norm: partial[nn.BatchNorm2d]) -> nn.Sequential:
    """(B, in_channels, h, w) -> (B, channels, h / 2, w / 2): 1x1 to half the width, depthwise 3x3, 1x1."""
    half = channels // 2
    layer = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.ReLU6)
    block = nn.Sequential(
        layer(in_channels, half, 1), layer(half, half, 3, 2, groups=half), layer(half, channels, 1)
    )
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.03)  # as the heads
    return block


class PixelBoxes(DefaultBoxGenerator):
    """torchvision's default boxes, whose unit is the picture's side, with pixels as the unit.

    Each cell has squares of the level's smallest size and of the geometric mean of its smallest and largest,
    then boxes as large as the first with sides 2:1, 1:2, 3:1 and 1:3.
    """

    def __init__(self) -> None:
        levels = len(ANCHOR_STRIDES)
        super().__init__(
            [list(ANCHOR_RATIOS)] * levels, scales=list(ANCHOR_SIZES), steps=list(ANCHOR_STRIDES), clip=False
        )

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        pixel = ImageList(image_list.tensors[..., :1, :1], image_list.image_sizes)
        maps = [torch.empty_like(f[:1, :1], dtype=torch.float32) for f in feature_maps]
        return super().forward(pixel, maps)
