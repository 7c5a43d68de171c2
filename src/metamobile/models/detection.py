"""What every detector shares: targets, results, checks, and the shape of a detector with one stage.

    training     model(images, targets) -> losses by name; their sum is what to minimise
    evaluation   model(images) -> a `Detection` for each picture
    exporting    model.dense(images) -> boxes and scores of all anchors; then `select`   (one stage only)

Images are (B, 3, H, W), normalised, of any one size: preprocessing is a record of the project's own, so
torchvision's resizing and normalising transform is left out. Boxes are (x1, y1, x2, y2) in pixels of these
images. Classes are numbered from 0; a head that has a class for the background keeps it to itself.

Shapes: B batch, H W height and width, A anchors, K classes, n boxes of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from metamobile.models.backbone import Backbone

CANDIDATES = 1000  # per level, before suppression
SMALLEST = 1e-2  # pixels; what lay outside the picture is empty, once cut to it


class _Boxes(TypedDict):
    boxes: Tensor
    labels: Tensor


class Target(_Boxes, total=False):
    """The truth of one picture: boxes (n, 4), labels (n,) from 0, and for Mask R-CNN masks (n, H, W)."""

    masks: Tensor


class Detection(_Boxes, total=False):
    """The answer for one picture, best first: boxes (n, 4), scores (n,), labels (n,), and of Mask R-CNN
    masks (n, H, W), true where the object is."""

    scores: Tensor
    masks: Tensor


class Raw(NamedTuple):
    """What a head with one stage says before decoding: logits (B, A, K), or K + 1 with a background first,
    box deltas (B, A, 4), anchors (A, 4) in pixels, and the number of anchors of each level."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    levels: list[int]


class Detector(nn.Module):
    """A backbone and a head: images (B, 3, H, W) -> losses in training, a list of `Detection` in evaluation.

    `head_name` is its name in `create_detector`. Errors: ValueError for training without targets, and for
    targets that cannot be learned from.
    """

    task = "detect"
    class_layers: tuple[str, ...] = ()  # how the names of what is new with other classes begin
    head_name = ""
    needs_masks = False
    exports = False  # whether `export` can write files of it
    finest_stride = 4  # of the backbone's maps that it uses
    least_batch = 1  # pictures that its norms need in training
    backbone: Backbone
    num_classes: int

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        if not self.training:
            return self.detect(images)
        if targets is None:
            raise ValueError("training needs targets: one dictionary of boxes and labels for each picture")
        check_targets(targets, images, self.num_classes, self.needs_masks)
        typed: Any = [{**t, "boxes": t["boxes"].float(), "labels": t["labels"].long()} for t in targets]
        return self.losses(images, typed)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `create_detector`, but for the backbone's own."""
        return {"head": self.head_name, "num_classes": self.num_classes}

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses by name, each a scalar, weighted already."""
        raise NotImplementedError

    def detect(self, images: Tensor) -> list[Detection]:
        """Boxes above the score threshold that suppression leaves, best first."""
        raise NotImplementedError

    def set_thresholds(
        self, *, score: float | None = None, iou: float | None = None, limit: int | None = None
    ) -> None:
        """Change the lowest score, the overlap at which suppression drops a box, the most boxes a picture."""
        holder: Any = self.thresholds()
        for name, value in (("score_thresh", score), ("nms_thresh", iou), ("detections_per_img", limit)):
            if value is not None:
                setattr(holder, name, value)

    def thresholds(self) -> nn.Module:
        """The module that has score_thresh, nms_thresh and detections_per_img, torchvision's names."""
        return self


class OneStage(Detector):
    """A detector that answers for every anchor at once. Heads give `features`, `scores`, `box_losses`."""

    exports = True
    anchor_generator: Any  # torchvision's, as the next three
    head: Any
    box_coder: Any
    proposal_matcher: Any
    score_thresh: float
    nms_thresh: float
    detections_per_img: int

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps that the head looks at, the finest first."""
        raise NotImplementedError

    def scores(self, logits: Tensor) -> Tensor:
        """Logits of the head -> scores (B, A, K) from 0 to 1, without background."""
        raise NotImplementedError

    def box_losses(
        self, raw: Raw, targets: Sequence[dict[str, Tensor]], matched: list[Tensor]
    ) -> dict[str, Tensor]:
        """Losses, with for each picture the box of each anchor (A,), below zero for none."""
        raise NotImplementedError

    def raw(self, images: Tensor) -> Raw:
        """(B, 3, H, W) -> `Raw`, without decoding."""
        features = self.features(images)
        out = self.head(features)
        size = (images.shape[-2], images.shape[-1])
        anchors = self.anchor_generator(ImageList(images, [size]), features)[0]
        cells = [f.shape[-2] * f.shape[-1] for f in features]
        per_cell = self.anchor_generator.num_anchors_per_location()
        levels = [c * n for c, n in zip(cells, per_cell, strict=True)]
        # under autocast heads answer in half precision, which is too coarse for boxes of hundreds of pixels
        return Raw(out["cls_logits"].float(), out["bbox_regression"].float(), anchors, levels)

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> boxes (B, A, 4) within the picture, scores (B, A, K): plain tensors, to export."""
        boxes, scores, _ = self.dense_levels(images)
        return boxes, scores

    def detect(self, images: Tensor) -> list[Detection]:
        boxes, scores, levels = self.dense_levels(images)
        return [
            select(
                *one,
                levels=levels,
                score_thresh=self.score_thresh,
                nms_thresh=self.nms_thresh,
                limit=self.detections_per_img,
            )
            for one in zip(boxes, scores, strict=True)
        ]

    def dense_levels(self, images: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """As `dense`, with the number of anchors of each level."""
        raw = self.raw(images)
        anchors = raw.anchors.repeat(images.shape[0], 1)  # len() would bake the batch size into an export
        boxes = self.box_coder.decode_single(raw.deltas.flatten(0, 1), anchors).view_as(raw.deltas)
        return clip_boxes_to_image(boxes, images.shape[-2:]), self.scores(raw.logits), raw.levels

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        raw = self.raw(images)
        return self.box_losses(raw, targets, [self._match(t["boxes"], raw.anchors) for t in targets])  # type: ignore[arg-type]

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(n, 4), (A, 4) -> the box of each anchor (A,); torchvision's matcher refuses to match none."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
        return self.proposal_matcher(box_iou(boxes, anchors))


class StridedAnchors(AnchorGenerator):
    """torchvision's anchors with each level's stride given, in place of picture size // map size.

    The two differ where a stride does not divide the size: 800 pixels have 13 cells at stride 64, not 61.
    Anchors keep their fractions of a pixel. Source: MMDetection's anchors, which the papers use.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[Sequence[float]]) -> None:
        super().__init__(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = list(strides)

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Sides (s,) and ratios of height to width (r,) -> boxes (r * s, 4) around (0, 0)."""
        root = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        side = torch.tensor(scales, dtype=dtype, device=device)[None]
        half = torch.stack([side / root, side * root], -1).flatten(0, 1) / 2  # (r * s, 2): width, height
        return torch.cat([-half, half], 1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(s, device=device)] * 2 for s in self.strides]
        anchors = self.grid_anchors([list(f.shape[-2:]) for f in feature_maps], strides)
        return [torch.cat(anchors)] * len(image_list.image_sizes)


def select(
    boxes: Tensor,
    scores: Tensor,
    *,
    levels: Sequence[int],
    score_thresh: float,
    nms_thresh: float,
    limit: int,
) -> Detection:
    """Boxes (A, 4) and scores (A, K) of all anchors of one picture -> its `Detection`.

    On each level the `CANDIDATES` best scores above the threshold go on; within a class, of two boxes that
    overlap by more than `nms_thresh` the better stays.
    """
    found = []
    for box, score in zip(boxes.split(list(levels)), scores.split(list(levels)), strict=True):
        anchor, label = torch.where(score > score_thresh)
        value, best = score[anchor, label].topk(min(CANDIDATES, len(anchor)))
        found.append((box[anchor[best]], value, label[best]))
    box, value, label = (torch.cat(parts) for parts in zip(*found, strict=True))
    real = remove_small_boxes(box, SMALLEST)
    box, value, label = box[real], value[real], label[real]
    keep = batched_nms(box, value, label, nms_thresh)[:limit]
    return {"boxes": box[keep], "scores": value[keep], "labels": label[keep]}


def check_targets(targets: Sequence[Target], images: Tensor, num_classes: int, masks: bool) -> None:
    """Errors: ValueError that names the first target, and its box, that cannot be learned from."""
    if len(targets) != len(images):
        raise ValueError(f"there are {len(targets)} targets for {len(images)} pictures; give one for each")
    for index, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
            raise ValueError(
                f"target {index} has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}; "
                "expected are (n, 4) and (n,), for no object (0, 4) and (0,)"
            )
        flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
        if flat.any():
            raise ValueError(
                f"target {index} has the box {boxes[flat][0].tolist()}; expected is x1 < x2 and y1 < y2: "
                "drop boxes without area after cropping"
            )
        wrong = (labels < 0) | (labels >= num_classes)
        if wrong.any():
            raise ValueError(
                f"target {index} has the label {labels[wrong][0].item()}; "
                f"{num_classes} classes are numbered 0 to {num_classes - 1}"
            )
        if masks and ("masks" not in target or target["masks"].shape != (len(boxes), *images.shape[-2:])):
            shape = tuple(target["masks"].shape) if "masks" in target else None
            raise ValueError(
                f"target {index} has masks {shape}; expected is (n, H, W), a mask for each box: give them, "
                "or take head='ssdlite' or 'retinanet', which learn from boxes alone"
            )
