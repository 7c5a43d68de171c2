"""Suppression in numpy against the detectors' own in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from metamobile.deploy.suppression import Suppression
from metamobile.models.detection import select
from small_dense import make_dense

RECORD = Suppression((300, 60), score=0.3, iou=0.5, limit=20, candidates=1000, smallest=1e-2)


def crowd(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (count, 4) in few places, so that many overlap, some of them empty; scores (count, classes)."""
    generator = torch.Generator().manual_seed(seed)
    corner = (
        torch.randint(0, 4, (count, 2), generator=generator) * 30
        + torch.rand(count, 2, generator=generator) * 20
    )
    side = torch.rand(count, 2, generator=generator) * 40
    side[::17] = 0
    return torch.cat([corner, corner + side], 1), torch.rand(count, classes, generator=generator)


@pytest.mark.parametrize("limit", [20, 100_000])
@pytest.mark.parametrize("candidates", [50, 1000])
def test_it_selects_as_pytorch_does(limit: int, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metamobile.models.detection.CANDIDATES", candidates)
    record = replace(RECORD, limit=limit, candidates=candidates)
    for seed in range(3):
        boxes, scores = crowd(360, 4, seed)
        expected = select(
            boxes, scores, levels=record.levels, score_thresh=record.score, nms_thresh=record.iou, limit=limit
        )
        assert 0 < len(expected["boxes"]) < (scores > record.score).sum()
        found = record.select(boxes.numpy(), scores.numpy())
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value.numpy())


def test_by_hand() -> None:
    """The second overlaps the first by 0.6, the third is of another class, the fourth scores too little."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores = np.array([[0.9, 0], [0.8, 0], [0, 0.7], [0.3, 0]], np.float32)
    found = replace(RECORD, levels=(4,)).select(boxes, scores)
    assert found["scores"].tolist() == [np.float32(0.9), np.float32(0.7)]
    assert found["labels"].tolist() == [0, 1]
    kept = replace(RECORD, levels=(4,), iou=0.6).select(boxes, scores)  # not more than 0.6
    assert len(kept["boxes"]) == 3


def test_nothing_found() -> None:
    found = replace(RECORD, levels=(2,)).select(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))
    assert found["boxes"].shape == (0, 4) and found["labels"].dtype == np.int64


def test_a_detectors_own() -> None:
    detector = make_dense("ssdlite")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        boxes, scores, levels = detector.dense_levels(images)
        (expected,) = detector.detect(images)
    assert len(expected["boxes"])
    record = Suppression.from_json(Suppression.of(detector, levels).to_json())
    found = record.select(boxes[0].numpy(), scores[0].numpy())
    np.testing.assert_array_equal(found["boxes"], expected["boxes"].numpy())
    np.testing.assert_array_equal(found["labels"], expected["labels"].numpy())


def test_a_broken_record_is_one_line() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Suppression.from_json('{"levels": [3]}')
