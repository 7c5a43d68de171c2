"""Mask R-CNN: a feature pyramid, proposals, then a box and a mask of each.

Source: Mask R-CNN (arXiv 1703.06870); settings of the EMO papers' COCO recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from metamobile.models.backbone import STRIDES, Backbone
from metamobile.models.detection import Detection, Detector, StridedAnchors, Target
from metamobile.models.retinanet import WIDTH, pyramid

FULLY_CONNECTED = 1024
ANCHOR_STRIDES = (*STRIDES, 64)
ANCHOR_SCALE = 8  # times the stride

_LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classification",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}


class MaskRCNN(Detector):
    """Mask R-CNN on stages 1 to 4: two linear layers of 1,024, four mask convolutions, a transposed one.

    Settings are torchvision's, but for anchors and for 1,000 proposals in training. Box losses are smooth L1
    (beta 1/9), where MMDetection has L1. `rois` of a picture's proposals are learned from, 512 as published;
    the mask head takes most of a step's time for those on an object, at most a quarter of them.
    """

    head_name = "mask_rcnn"
    class_layers = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    needs_masks = True

    def __init__(self, backbone: Backbone, num_classes: int, rois: int = 512) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.fpn = FeaturePyramidNetwork(backbone.channels[-4:], WIDTH, LastLevelMaxPool())
        anchors = StridedAnchors(ANCHOR_STRIDES, [[ANCHOR_SCALE * stride] for stride in ANCHOR_STRIDES])
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(WIDTH, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 1000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            roi_align(7),
            TwoMLPHead(WIDTH * 7**2, FULLY_CONNECTED),
            BoxPredictor(FULLY_CONNECTED, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=rois,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            mask_roi_pool=roi_align(14),
            mask_head=MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1),
            mask_predictor=MaskPredictor(WIDTH, WIDTH, num_classes),
        )

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        shifted = [{**t, "labels": t["labels"] + 1} for t in targets]
        _, losses = self._run(images, shifted)
        return {_LOSSES[name]: loss for name, loss in losses.items()}

    def detect(self, images: Tensor) -> list[Detection]:
        size = (images.shape[-2], images.shape[-1])
        return [
            {**found, "masks": paste_masks(found["masks"], found["boxes"], size)}
            for found in self.detect_crops(images)
        ]

    def detect_crops(self, images: Tensor) -> list[Detection]:
        """As `detect`, with masks (n, 28, 28) from 0 to 1, each the inside of its box; see `paste_masks`."""
        found, _ = self._run(images, None)
        return [
            {"boxes": f["boxes"], "scores": f["scores"], "labels": f["labels"] - 1, "masks": f["masks"][:, 0]}
            for f in found
        ]

    def thresholds(self) -> nn.Module:
        return self.roi_heads

    def _run(
        self, images: Tensor, targets: list[dict[str, Any]] | None
    ) -> tuple[list[Any], dict[str, Tensor]]:
        features = pyramid(self.backbone, self.fpn, images)
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        # half precision is too coarse for boxes of hundreds of pixels
        with torch.autocast(images.device.type, enabled=False):
            features = type(features)((name, f.float()) for name, f in features.items())
            proposals, losses = self.rpn(ImageList(images, sizes), features, targets)
            found, more = self.roi_heads(features, proposals, sizes, targets)
        return found, losses | more


class BoxPredictor(FastRCNNPredictor):
    """torchvision's, without the weights of a box for the background: zeros stand in its place.

    Nothing reads that box, and only without its weights and the mask's do the published counts come out.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, in_channels) -> logits (n, K + 1), background first, and box deltas (n, 4 * (K + 1))."""
        logits, deltas = super().forward(x)
        return logits, F.pad(deltas, (4, 0))


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's, without the weights of a mask for the background: zeros stand in its place."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, 14, 14) -> logits (n, K + 1, 28, 28), background first."""
        return F.pad(super().forward(x), (0, 0, 0, 0, 1, 0))


def roi_align(side: int) -> MultiScaleRoIAlign:
    """Pools boxes of the four finest maps, with their scales told: it would take them from the first batch,
    where padding makes a small picture's maps too large."""
    pool = MultiScaleRoIAlign([str(i) for i in range(len(STRIDES))], side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = initLevelMapper(2, 5)  # strides 2**2 to 2**5
    return pool


def paste_masks(crops: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks (n, 28, 28) of boxes (n, 4) -> (n, H, W), true where a mask is at least `threshold`.

    For a picture of another size than the network's, give its `size` and the boxes in its pixels.
    """
    return paste_masks_in_image(crops[:, None], boxes, size)[:, 0] >= threshold
