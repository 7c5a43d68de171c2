"""Small detectors and pictures with known boxes, for the tests of detection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from metamobile.models.detection import Target
from metamobile.models.detectors import create_detector
from metamobile.models.mask_rcnn import BoxPredictor

SMALL: dict[str, Any] = {"depths": (1, 1, 2, 2), "window_size": 2, "drop_path_rate": 0.0}


def create(name: str, head: str, num_classes: int = 3, **args: Any) -> Any:
    """Mask R-CNN with few proposals and narrow linear layers, which would take most of the time."""
    torch.manual_seed(0)
    model: Any = create_detector(name, head, num_classes, **args)
    if head == "mask_rcnn":
        model.rpn._post_nms_top_n = {"training": 100, "testing": 100}
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
        model.roi_heads.box_head = TwoMLPHead(256 * 7 * 7, 32)
        model.roi_heads.box_predictor = BoxPredictor(32, num_classes)
    return model


def small(head: str) -> Any:
    return create("emo_1m", head, **SMALL)


def target(boxes: list[list[float]], labels: list[int], size: tuple[int, int]) -> Target:
    """Masks are the boxes, filled."""
    masks = torch.zeros(len(boxes), *size)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }


def pictures(targets: list[Target], size: tuple[int, int]) -> Tensor:
    """Grey, with each box in a colour of its class."""
    images = torch.zeros(len(targets), 3, *size)
    for image, one in zip(images, targets, strict=True):
        for box, label in zip(one["boxes"].int().tolist(), one["labels"].tolist(), strict=True):
            image[label % 3, box[1] : box[3], box[0] : box[2]] = 2
    return images
