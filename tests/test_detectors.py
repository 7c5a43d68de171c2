"""SSDLite, RetinaNet and Mask R-CNN: truth in and truth out, learning, any backbone and size, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metamobile.models.detection import Raw, Target, select
from metamobile.models.detectors import HEADS, create_detector
from metamobile.models.mask_rcnn import paste_masks
from small_detector import create, pictures, small, target

BACKBONES = [
    "emo_1m",
    "emov2_1m",
    "mobilenetv3_small_050",
    "edgenext_xx_small",
    "resnet18",
    "vit_tiny_patch16_224",
]

every_head = pytest.mark.parametrize("head", HEADS)
one_stage = pytest.mark.parametrize("head", ["ssdlite", "retinanet"])


@every_head
def test_a_network_of_one_stride_has_no_level_that_learns_nothing(head: str) -> None:
    truth = [target([[8, 8, 40, 40]], [0], (64, 64)), target([[20, 10, 60, 50]], [1], (64, 64))]
    model = create("vit_tiny_patch16_224", head, depth=3, embed_dim=32, num_heads=2).train()
    sum(model(pictures(truth, (64, 64)), truth).values()).backward()
    assert [n for n, p in model.backbone.pyramid.named_parameters() if p.grad is None] == []


# --- truth in, truth out ---


def oracle(raw: Raw, targets: list[Target], background: int, variances: tuple[float, float]) -> Raw:
    """The answer of a perfect network: anchors that overlap a box by half say it, with certainty.

    The code of a box is written here as the papers have it: offsets of the centre in sides of the anchor, and
    logarithms of the ratios of sides, each over its variance.
    """
    logits = torch.full_like(raw.logits, -30.0)
    logits[..., :background] = 30.0
    deltas = torch.zeros_like(raw.deltas)
    ax1, ay1, ax2, ay2 = raw.anchors.unbind(1)
    for b, one in enumerate(targets):
        for (x1, y1, x2, y2), label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
            wide = (ax2.clamp(max=x2) - ax1.clamp(min=x1)).clamp(min=0)
            tall = (ay2.clamp(max=y2) - ay1.clamp(min=y1)).clamp(min=0)
            both = wide * tall
            overlap = both / ((ax2 - ax1) * (ay2 - ay1) + (x2 - x1) * (y2 - y1) - both)
            mine = (overlap >= 0.5) | (overlap == overlap.max())
            logits[b, mine] = -30.0
            logits[b, mine, background + label] = 30.0
            code = [
                ((x1 + x2) / 2 - (ax1 + ax2) / 2) / (ax2 - ax1) / variances[0],
                ((y1 + y2) / 2 - (ay1 + ay2) / 2) / (ay2 - ay1) / variances[0],
                ((x2 - x1) / (ax2 - ax1)).log() / variances[1],
                ((y2 - y1) / (ay2 - ay1)).log() / variances[1],
            ]
            deltas[b, mine] = torch.stack(code, 1)[mine]
    return raw._replace(logits=logits, deltas=deltas)


@one_stage
def test_a_perfect_answer_has_no_loss_and_decodes_to_the_truth(head: str, monkeypatch: Any) -> None:
    size = (200, 160)
    truth = [
        target([[10, 20, 60, 70], [70, 90, 150, 190]], [0, 2], size),
        target([], [], size),
        target([[3, 100, 90, 199]], [1], size),
    ]
    images = torch.zeros(3, 3, *size)
    model = small(head).eval()
    background, variances = (1, (0.1, 0.2)) if head == "ssdlite" else (0, (1.0, 1.0))
    perfect = oracle(model.raw(images), truth, background, variances)
    monkeypatch.setattr(model, "raw", lambda x: perfect)
    for name, loss in model.losses(images, truth).items():
        assert loss.item() == pytest.approx(0, abs=1e-4), name
    for found, one in zip(model.detect(images), truth, strict=True):
        order = found["labels"].argsort()
        torch.testing.assert_close(found["boxes"][order], one["boxes"], atol=0.01, rtol=0)
        assert found["labels"][order].tolist() == one["labels"].tolist()
        assert (found["scores"] > 0.99).all()
    # shown the classes in another order, the same answer is wrong
    other = [{**one, "labels": 2 - one["labels"]} for one in truth]
    assert model.losses(images, other)["classification"].item() > 1


def test_mask_rcnn_numbers_classes_from_0_outside() -> None:
    size = (96, 96)
    model = small("mask_rcnn").eval()
    predictor, masks = model.roi_heads.box_predictor, model.roi_heads.mask_predictor.mask_fcn_logits
    for layer in (predictor.cls_score, predictor.bbox_pred, masks):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        predictor.cls_score.bias[1] = 20  # the first class, after the background
        masks.bias.fill_(-20)
        masks.bias[0] = 20  # its mask
    (found,) = model(torch.randn(1, 3, *size))
    assert len(found["labels"]) > 0
    assert (found["labels"] == 0).all()
    assert found["masks"].shape == (len(found["labels"]), *size)
    assert found["masks"].dtype == torch.bool
    rows = torch.arange(96)[:, None] + 0.5
    columns = torch.arange(96)[None] + 0.5
    for (x1, y1, x2, y2), mask in zip(found["boxes"].tolist(), found["masks"], strict=True):
        inside = (columns > x1) & (columns < x2) & (rows > y1) & (rows < y2)
        far = (columns < x1 - 3) | (columns > x2 + 3) | (rows < y1 - 3) | (rows > y2 + 3)
        core = inside & (columns > x1 + 3) & (columns < x2 - 3) & (rows > y1 + 3) & (rows < y2 - 3)
        assert mask[core].all()
        assert not mask[far].any()
    model.train()
    losses = [
        model(torch.zeros(2, 3, *size), [target([[8, 8, 80, 80]], [label], size)] * 2) for label in (0, 1)
    ]
    assert losses[0]["masks"] < losses[1]["masks"] / 2
    assert losses[0]["classification"] < losses[1]["classification"]


def test_masks_are_pasted_at_any_size() -> None:
    half = torch.zeros(1, 28, 28)
    half[:, :, 14:] = 1  # the right half of the box
    (mask,) = paste_masks(half, torch.tensor([[20.0, 10.0, 60.0, 50.0]]), (100, 200))
    assert mask.shape == (100, 200)
    assert mask[12:48, 43:58].all()
    assert not mask[:, :37].any()
    assert not mask[55:].any()


def test_losses_of_retinanet_count_the_batch() -> None:
    """An empty picture beside it does not halve what a box counts."""
    size = (96, 96)
    model = small("retinanet").eval()
    images = torch.randn(2, 3, *size)
    alone = model.losses(images[:1], [target([[8, 8, 80, 80]], [1], size)])
    beside = model.losses(images, [target([[8, 8, 80, 80]], [1], size), target([], [], size)])
    torch.testing.assert_close(alone["boxes"], beside["boxes"])
    assert beside["classification"] > alone["classification"]


# --- learning ---


@every_head
def test_gradients_reach_every_parameter(head: str) -> None:
    side = 320 if head == "ssdlite" else 96  # a head of SSDLite learns from boxes of its level's size
    sides = [s for s in (20, 48, 75, 100, 150, 202, 253, 304) if s < side]
    truth = [
        target([[5, 5, 5 + s, 5 + s] for s in sides], [0] * len(sides), (side, side)),
        target([], [], (side, side)),
        target([[1, side - s, s, side - 1] for s in sides], [2] * len(sides), (side, side)),
    ]
    model = small(head).train()
    losses = model(torch.randn(3, 3, side, side), truth)
    assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # keys' biases shift all scores of a query alike, which softmax does not see
    assert [n for n in missing if not n.endswith("qk.bias")] == []


@every_head
def test_loss_falls_on_one_picture(head: str) -> None:
    size = (64, 64)
    truth = [target([[8, 12, 56, 60]], [1], size)] * 2
    images = pictures(truth, size)
    model = small(head).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if head == "ssdlite" else 2e-4)
    totals = []
    for _ in range(14):
        loss = sum(model(images, truth).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(loss.item())
    assert sum(totals[-3:]) / 3 < 0.6 * totals[0]


@every_head
def test_pictures_without_objects(head: str) -> None:
    size = (64, 64)
    model = small(head).train()
    losses = model(torch.randn(2, 3, *size), [target([], [], size)] * 2)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert losses["boxes"] == 0


# --- any backbone, any size, exported ---


@every_head
@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone(name: str, head: str) -> None:
    size = (70, 97)
    model = create(name, head, 5)
    truth = [target([[8, 12, 60, 64], [30, 2, 95, 40]], [4, 0], size), target([[0, 0, 97, 70]], [2], size)]
    losses = model.train()(torch.randn(2, 3, *size), truth)
    assert all(torch.isfinite(loss) for loss in losses.values())
    limit = 10 if head == "mask_rcnn" else None  # its masks take time
    model.eval().set_thresholds(score=0.0, limit=limit)
    for found in model(torch.randn(2, 3, *size) * 3):
        boxes = found["boxes"]
        assert 0 < len(boxes) <= {"ssdlite": 200, "retinanet": 100, "mask_rcnn": 10}[head]
        assert boxes.shape == (len(found["labels"]), 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2] <= 97).all()
        assert (boxes[:, 3] <= 70).all()
        assert (found["labels"] >= 0).all()
        assert (found["labels"] < 5).all()
        assert (found["scores"].diff() <= 0).all()


@every_head
def test_thresholds_can_be_set(head: str) -> None:
    model = small(head).eval()
    model.set_thresholds(score=0.0, iou=0.99, limit=7)
    images = torch.randn(1, 3, 64, 64)
    assert len(model(images)[0]["boxes"]) == 7
    model.set_thresholds(score=1.0)
    assert len(model(images)[0]["boxes"]) == 0


def test_select_suppresses_within_a_class() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [5, 5, 5, 9]], dtype=torch.float32)
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.3, 0.01], [0.99, 0.0]])
    found = select(boxes, scores, levels=[1, 3], score_thresh=0.02, nms_thresh=0.5, limit=10)
    assert found["labels"].tolist() == [0, 1, 0]  # the second as another class; the last has no area
    assert found["boxes"].tolist() == boxes[[0, 1, 2]].tolist()
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.3]))


@one_stage
def test_half_precision_keeps_boxes_exact(head: str) -> None:
    model = small(head).eval()
    with torch.autocast("cpu", torch.bfloat16):
        raw = model.raw(torch.randn(1, 3, 96, 96))
    assert {raw.logits.dtype, raw.deltas.dtype, raw.anchors.dtype} == {torch.float32}


class Dense(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.detector.dense(x)


@one_stage
def test_dense_answers_can_be_exported(head: str) -> None:
    model = small(head).eval()
    images = torch.randn(1, 3, 96, 128)
    exported = torch.export.export(Dense(model), (images,)).module()
    other = torch.randn(1, 3, 96, 128)
    for ours, theirs in zip(model.dense(other), exported(other), strict=True):
        torch.testing.assert_close(ours, theirs)


# --- errors ---


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        (
            "emo_1m",
            "deeplabv3",
            "head is called 'deeplabv3'; known are ssdlite, retinanet, mask_rcnn",
        ),
        ("emo_1m", "maskrcnn", "did you mean 'mask_rcnn'?"),
        ("emo_1n", "ssdlite", "did you mean 'emo_1m'?"),
    ],
)
def test_a_wrong_pair_names_what_exists(name: str, head: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        create_detector(name, head, 3)
    assert words in str(error.value)


@every_head
def test_a_network_without_the_maps(head: str) -> None:
    with pytest.raises(ValueError, match="expected are 4, 8, 16, 32"):
        create_detector("resnet18", head, 3, output_stride=16)


def test_no_classes() -> None:
    with pytest.raises(ValueError, match="num_classes is 0; a detector needs 1 or more"):
        create_detector("emo_1m", "ssdlite", 0)


def broken(**change: Tensor) -> list[Target]:
    good = target([[8, 8, 30, 30]], [1], (64, 64))
    return [good, {**good, **change}]  # type: ignore[typeddict-item]


@every_head
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (None, "training needs targets"),
        (broken()[:1], "there are 1 targets for 2 pictures"),
        (broken(boxes=torch.zeros(4)), r"target 1 has boxes \(4,\)"),
        (broken(boxes=torch.tensor([[8.0, 8, 8, 30]])), r"target 1 has the box \[8.0, 8.0, 8.0, 30.0\]"),
        (broken(boxes=torch.tensor([[8.0, 8, float("nan"), 30]])), "target 1 has the box"),
        (broken(labels=torch.tensor([3])), "target 1 has the label 3; 3 classes are numbered 0 to 2"),
        (broken(labels=torch.tensor([-1])), "target 1 has the label -1"),
    ],
)
def test_targets_that_cannot_be_learned_from(head: str, targets: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(head).train()(torch.zeros(2, 3, 64, 64), targets)


def test_mask_rcnn_needs_masks() -> None:
    without: list[Target] = [{"boxes": t["boxes"], "labels": t["labels"]} for t in broken()]
    with pytest.raises(ValueError, match="target 0 has masks None; expected is .* head='ssdlite'"):
        small("mask_rcnn").train()(torch.zeros(2, 3, 64, 64), without)


def test_ssdlite_needs_two_pictures() -> None:
    with pytest.raises(ValueError, match="SSDLite trains on 2 pictures a batch or more"):
        small("ssdlite").train()(torch.zeros(1, 3, 64, 64), broken()[:1])
