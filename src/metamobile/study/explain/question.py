"""What is asked about, as one number with a gradient: a class's logit, an object's, a region's.

    classify   the logit of the class
    segment    the mean logit of the class over the pixels that are answered with it
    detect     the class's logit of the anchor that the object came from (one stage), or of the object's box
               as it was found (Mask R-CNN, whose boxes are held while the score is asked for)

Shapes: B batch, K classes, A anchors, h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metamobile.errors import NotFinite
from metamobile.models.detection import OneStage
from metamobile.models.mask_rcnn import MaskRCNN
from metamobile.models.retinanet import pyramid
from metamobile.study.explain.subject import Subject
from metamobile.study.explain.target import SCORES, NothingFound, Target, choose_object


@dataclass
class Question:
    """`answer`: (B, 3, h, w) -> tensors, one a picture; `value`: such a one -> the number asked about."""

    target: Target
    answer: nn.Module
    value: Callable[[Tensor], Tensor]


def ask(subject: Subject, x: Tensor, wanted: str | int | None = None) -> Question:
    """The question about one picture (1, 3, h, w): of the class `wanted`, or of what is answered.

    Of a detector "person:2" is the second-best person. Errors: ValueError for an unknown class;
    NothingFound; NotFinite.
    """
    asked = {"classify": ask_class, "detect": ask_object, "segment": ask_region}[subject.task]
    return asked(subject, x, wanted)


def ask_class(subject: Subject, x: Tensor, wanted: str | int | None) -> Question:
    with torch.no_grad():
        scores = subject.network(x).float().softmax(-1)[0]
    if not torch.isfinite(scores).all():
        raise NotFinite(f"{subject.name}: its answers are infinite or not a number; look at its training")
    index = int(scores.argmax()) if wanted is None else subject.find_class(wanted)
    target = Target(subject.labels[index], index, float(scores[index]), SCORES["classify"])
    return Question(target, subject.network, lambda logits: logits[index])


def ask_region(subject: Subject, x: Tensor, wanted: str | int | None) -> Question:
    with torch.no_grad():
        best = subject.network(x)[0].argmax(0)  # (h, w)
    index = int(best.flatten().bincount().argmax()) if wanted is None else subject.find_class(wanted)
    mask = best == index
    if not mask.any():
        raise NothingFound(f"no pixel is answered with {subject.labels[index]}")
    share = float(mask.float().mean())
    target = Target(subject.labels[index], index, share, SCORES["segment"], mask=mask.cpu().numpy())
    return Question(target, subject.network, lambda logits: logits[index][mask].mean())


def ask_object(subject: Subject, x: Tensor, wanted: str | int | None) -> Question:
    with torch.no_grad():
        found = subject.network(x)[0]
    place = choose_object(subject, found["labels"].tolist(), wanted)
    label, score, box = int(found["labels"][place]), float(found["scores"][place]), found["boxes"][place]
    x1, y1, x2, y2 = box.tolist()
    mask = found["masks"][place].cpu().numpy() if "masks" in found else None
    target = Target(subject.labels[label], label, score, SCORES["detect"], (x1, y1, x2, y2), mask)
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
