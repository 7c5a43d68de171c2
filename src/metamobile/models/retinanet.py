"""RetinaNet: a feature pyramid, one stage, focal loss.

Source: RetinaNet (arXiv 1708.02002); settings of the EMO papers' COCO recipes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from metamobile.models.backbone import Backbone
from metamobile.models.detection import OneStage, Raw, StridedAnchors

WIDTH = 256
ANCHOR_STRIDES = (8, 16, 32, 64, 128)
OCTAVE_SCALES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))  # times the stride


class RetinaNet(OneStage):
    """RetinaNet on stages 2, 3 and 4: five levels of 256 channels at strides 8 to 128, 9 anchors a cell.

    Logits have K columns, one sigmoid each. Losses: focal (gamma 2, alpha 0.25) and L1, both over the number
    of positive anchors of the batch; torchvision's mean over pictures would weigh them by how few boxes they
    have. Anchors with an overlap of 0.5 are positive, and the best of each box; below 0.4 negative.
    """

    head_name = "retinanet"
    class_layers = ("head.classification_head.cls_logits.",)
    finest_stride = 8

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        last = LastLevelP6P7(backbone.channels[-1], WIDTH)
        last.use_P5 = False  # P6 comes from stage 4, even where that has 256 channels too
        self.fpn = FeaturePyramidNetwork(backbone.channels[-3:], WIDTH, last)
        self.anchor_generator = StridedAnchors(
            ANCHOR_STRIDES, [[scale * stride for scale in OCTAVE_SCALES] for stride in ANCHOR_STRIDES]
        )
        self.head = RetinaNetHead(WIDTH, self.anchor_generator.num_anchors_per_location()[0], num_classes)
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.proposal_matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self.score_thresh, self.nms_thresh, self.detections_per_img = 0.05, 0.5, 100

    def features(self, images: Tensor) -> list[Tensor]:
        return list(pyramid(self.backbone, self.fpn, images).values())

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def box_losses(
        self, raw: Raw, targets: Sequence[dict[str, Tensor]], matched: list[Tensor]
    ) -> dict[str, Tensor]:
        # the batch as one picture, so that torchvision's loss counts the positives of all
        first = 0
        numbered = []
        for target, match in zip(targets, matched, strict=True):
            numbered.append(torch.where(match >= 0, match + first, match))
            first += len(target["boxes"])
        whole = {key: torch.cat([t[key] for t in targets]) for key in ("boxes", "labels")}
        out = {
            "cls_logits": raw.logits.flatten(0, 1)[None],
            "bbox_regression": raw.deltas.flatten(0, 1)[None],
        }
        anchors = raw.anchors.repeat(len(targets), 1)
        losses = self.head.compute_loss([whole], out, [anchors], [torch.cat(numbered)])
        return {"classification": losses["classification"], "boxes": losses["bbox_regression"]}


def pyramid(backbone: Backbone, fpn: FeaturePyramidNetwork, images: Tensor) -> OrderedDict[str, Tensor]:
    """(B, 3, H, W) -> the pyramid's maps by name. The picture is padded to a multiple of the last stride,
    with zeros at the right and the bottom, so that each map is half of the one before."""
    height, width = images.shape[-2:]
    stride = backbone.strides[-1]
    maps = backbone(F.pad(images, (0, -width % stride, 0, -height % stride)))
    used = maps[-len(fpn.inner_blocks) :]
    return fpn(OrderedDict((str(i), m) for i, m in enumerate(used)))
