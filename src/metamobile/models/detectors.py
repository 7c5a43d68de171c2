"""Detectors by name: any network as the backbone, with one of three heads."""

from __future__ import annotations

from typing import Any

from metamobile.errors import nearest
from metamobile.models.backbone import make_backbone
from metamobile.models.detection import Detector
from metamobile.models.mask_rcnn import MaskRCNN
from metamobile.models.retinanet import RetinaNet
from metamobile.models.ssdlite import SSDLite

HEADS: dict[str, type[Detector]] = {head.head_name: head for head in (SSDLite, RetinaNet, MaskRCNN)}


def create_detector(
    name: str,
    head: str = "ssdlite",
    num_classes: int = 80,
    *,
    pretrained: bool = False,
    rois: int | None = None,
    **args: Any,
) -> Detector:
    """A network of ours or of timm's with the head "ssdlite", "retinanet" or "mask_rcnn".

    `pretrained` loads the backbone's classification weights; `rois` is Mask R-CNN's (see there); other
    arguments, such as EMO's `window_size`, go to `make_backbone`. Errors: ValueError for a head or a network
    that does not exist, and for a network without maps at strides 4, 8, 16 and 32.
    """
    if head not in HEADS:
        raise ValueError(
            f"no detection head is called {head!r}; known are {', '.join(HEADS)}" + nearest(head, HEADS)
        )
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a detector needs 1 or more")
    if rois is not None and (head != MaskRCNN.head_name or rois < 4):
        raise ValueError(f"rois {rois}: only {MaskRCNN.head_name} has them, and learns from 4 or more")
    own: dict[str, Any] = {} if rois is None else {"rois": rois}
    kind = HEADS[head]
    backbone = make_backbone(name, pretrained=pretrained, finest_stride=kind.finest_stride, **args)
    return kind(backbone, num_classes, **own)
