"""What a detector's and a segmenter's file answers, beside the network itself.

A detector's decoding is in the file: `Candidates` in PyTorch, then suppression, by ONNX's own operator, whose
number of boxes no traced network could have, or elsewhere by `Detections`, with a fixed number of places.
Together they are `metamobile.models.detection.select`.

B batch, H W height and width, A anchors, K classes, C candidates of a picture, M boxes of all pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metamobile.deploy.preprocessing import Scaled
from metamobile.deploy.runtimes import DETECTIONS
from metamobile.models.detection import CANDIDATES, SMALLEST, OneStage
from metamobile.models.segmenters import Segmenter

if TYPE_CHECKING:
    from onnx import ModelProto

CANDIDATE_OUTPUTS = ("candidates", "candidates_apart", "candidate_scores", "candidate_labels")


class WithClasses(nn.Module):
    """A segmenter with the best class of each pixel: (B, 3, H, W) -> logits (B, K, H, W), (B, H, W) int64."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.segmenter(images)
        return logits, logits.argmax(1)


class Candidates(nn.Module):
    """A detector as far as shapes are known: (B, 3, H, W) -> the C best of all levels.

    Boxes (B, C, 4); the same, each class in a place of its own, so that one suppression serves all classes
    as in torchvision's `batched_nms`; scores (B, C), -1 where a box is too small to be one; labels (B, C).
    """

    def __init__(self, detector: OneStage) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        all_boxes, all_scores, levels = self.detector.dense_levels(images)
        classes = all_scores.shape[2]
        found = []
        for boxes, scores in zip(all_boxes.split(levels, 1), all_scores.split(levels, 1), strict=True):
            best, place = scores.flatten(1).topk(min(CANDIDATES, scores.shape[1] * classes))
            anchor = (place // classes)[..., None].expand(-1, -1, 4)
            found.append((boxes.gather(1, anchor), best, place % classes))
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        real = (boxes[..., 2:] - boxes[..., :2] >= SMALLEST).all(-1)
        apart = boxes + (labels * (max(images.shape[-2:]) + 1))[..., None]
        return boxes, apart, torch.where(real, scores, -1.0), labels


class Detections(nn.Module):
    """A detector with all its decoding: (B, 3, H, W) -> boxes (B, M, 4), scores (B, M), labels (B, M) int32.

    M is the most boxes that it may answer; places without one have the score -1. Suppression is written in
    products, as few converters have it: a candidate is dropped if a better one of its class that stays
    overlaps it, found by `ROUNDS` repetitions. Longer chains of boxes, each dropped by the one before, would
    end otherwise; the gate would show it. Of all levels the `BEST` candidates take part.
    """

    BEST, ROUNDS = 1500, 24

    def __init__(self, detector: OneStage) -> None:
        super().__init__()
        self.candidates = Candidates(detector)
        holder: Any = detector.thresholds()
        self.lowest, self.overlap = holder.score_thresh, holder.nms_thresh
        self.limit = holder.detections_per_img

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, apart, scores, labels = self.candidates(images)
        count = min(self.BEST, scores.shape[1])
        scores, place = scores.topk(count)
        where = place[..., None].expand(-1, -1, 4)
        boxes, apart, labels = boxes.gather(1, where), apart.gather(1, where), labels.gather(1, place)
        better = torch.ones(count, count, dtype=boxes.dtype, device=boxes.device).triu(1)
        drops = (overlaps(apart) > self.overlap).to(boxes.dtype) * better  # row over column
        valid = (scores > self.lowest).to(boxes.dtype)
        stays = valid
        for _ in range(self.ROUNDS):
            dropped = (stays[:, None] @ drops)[:, 0]
            stays = valid * (dropped < 0.5).to(boxes.dtype)
        scores = torch.where(stays > 0.5, scores, -1.0)
        scores, place = scores.topk(min(self.limit, count))
        boxes = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        return boxes, scores, labels.gather(1, place).to(torch.int32)


def overlaps(boxes: Tensor) -> Tensor:
    """(B, C, 4) -> intersection over union of each two, (B, C, C)."""
    x1, y1, x2, y2 = (boxes[..., side] for side in range(4))
    wide = torch.minimum(x2[:, :, None], x2[:, None]) - torch.maximum(x1[:, :, None], x1[:, None])
    tall = torch.minimum(y2[:, :, None], y2[:, None]) - torch.maximum(y1[:, :, None], y1[:, None])
    both = wide.clamp(min=0) * tall.clamp(min=0)
    area = (x2 - x1) * (y2 - y1)
    return both / (area[:, :, None] + area[:, None] - both).clamp(min=1e-9)


def output_names(network: nn.Module, *, suppression: bool = False) -> tuple[nn.Module, list[str]]:
    """The module to export, and the names of its outputs; a detector's end in candidates, or with
    `suppression` in boxes."""
    if isinstance(network, Scaled):
        module, names = output_names(network.module, suppression=suppression)
        return network.around(module), names
    if isinstance(network, OneStage):
        if suppression:
            return Detections(network), list(DETECTIONS[:3])
        return Candidates(network), list(CANDIDATE_OUTPUTS)
    if isinstance(network, Segmenter):
        return WithClasses(network), ["logits", "classes"]
    return network, ["logits"]


def add_suppression(model: ModelProto, detector: OneStage) -> None:
    """Put "boxes" (M, 4), "scores" (M,), "labels" (M,), "picture" (M,) in place of the candidates' outputs.

    Picture by picture, of each the best box first. Both suppressions keep a score above the threshold, and
    drop the worse of two boxes with an overlap above theirs; of equal scores the first candidate is better.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    boxes, apart, scores, labels = CANDIDATE_OUTPUTS
    holder = detector.thresholds()
    constants = {
        "nms_limit": torch.tensor([holder.detections_per_img]),
        "nms_iou": torch.tensor([holder.nms_thresh], dtype=torch.float32),
        "nms_score": torch.tensor([holder.score_thresh], dtype=torch.float32),
        "nms_axis": torch.tensor([1]),
        "nms_place": torch.tensor([0, 2]),  # of (picture, class, candidate), which suppression answers
        "nms_picture": torch.tensor(0),
    }
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(v.numpy(), name) for name, v in constants.items())
    by_class = helper.make_node("Unsqueeze", [scores, "nms_axis"], ["nms_scores"])
    inputs = [apart, "nms_scores", "nms_limit", "nms_iou", "nms_score"]
    graph.node.extend(
        [
            by_class,
            helper.make_node("NonMaxSuppression", inputs, ["nms_kept"]),
            helper.make_node("Gather", ["nms_kept", "nms_place"], ["nms_places"], axis=1),
            helper.make_node("Gather", ["nms_kept", "nms_picture"], ["picture"], axis=1),
        ]
    )
    for source, name in ((boxes, "boxes"), (scores, "scores"), (labels, "labels")):
        graph.node.append(helper.make_node("GatherND", [source, "nms_places"], [name]))
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT64)
    each: list[str | int] = ["detections"]
    shapes = ([*each, 4], each, each, each)
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(DETECTIONS, kinds, shapes, strict=True)
    )
    checker.check_model(model)
