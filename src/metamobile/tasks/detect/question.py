"""What a network is asked about, with a gradient: the class's logit of the anchor that an object came from
(one stage), or of the object's box as it was found (Mask R-CNN, whose boxes are held while the score is asked
for).

B batch, K classes, A anchors, h w of the network's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metamobile.models.detection import OneStage
from metamobile.models.mask_rcnn import MaskRCNN
from metamobile.models.retinanet import pyramid
from metamobile.tasks.asked import Question, Target
from metamobile.tasks.detect.asked import SCORE, choose_object

if TYPE_CHECKING:
    from metamobile.study.explain.subject import Subject


def ask(subject: Subject, x: Tensor, wanted: str | int | None) -> Question:
    with torch.no_grad():
        found = subject.network(x)[0]
    place = choose_object(subject, found["labels"].tolist(), wanted)
    label, score, box = int(found["labels"][place]), float(found["scores"][place]), found["boxes"][place]
    x1, y1, x2, y2 = box.tolist()
    mask = found["masks"][place].cpu().numpy() if "masks" in found else None
    target = Target(subject.labels[label], label, score, SCORE, (x1, y1, x2, y2), mask)
    if isinstance(subject.network, MaskRCNN):
        return Question(target, BoxLogits(subject.network, box), lambda logits: logits[label + 1])
    anchor, column = find_anchor(subject.network, x, box, label, score)
    return Question(target, AnchorLogits(subject.network), lambda logits: logits[anchor, column])


def find_anchor(network: OneStage, x: Tensor, box: Tensor, label: int, score: float) -> tuple[int, int]:
    """The anchor that an object came from, and the column of its class in the head's logits."""
    with torch.no_grad():
        boxes, scores = network.dense(x)
        columns = network.raw(x).logits.shape[-1]
    distance = (boxes[0] - box).abs().sum(-1) + (scores[0, :, label] - score).abs()
    return int(distance.argmin()), columns - network.num_classes + label  # a background stands first


class AnchorLogits(nn.Module):
    """(B, 3, h, w) -> (B, A, K), or K + 1: what the head says of every anchor, before decoding."""

    def __init__(self, network: OneStage) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.raw(x).logits


class BoxLogits(nn.Module):
    """(B, 3, h, w) -> (B, K + 1): Mask R-CNN's classes of one box (4,), background first."""

    def __init__(self, network: MaskRCNN, box: Tensor) -> None:
        super().__init__()
        self.network = network
        self.box = box

    def forward(self, x: Tensor) -> Tensor:
        heads: Any = self.network.roi_heads
        features = pyramid(self.network.backbone, self.network.fpn, x)
        sizes = [(x.shape[-2], x.shape[-1])] * len(x)
        pooled = heads.box_roi_pool(features, [self.box[None]] * len(x), sizes)
        return heads.box_predictor(heads.box_head(pooled))[0]
