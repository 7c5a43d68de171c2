"""Answers of a classifier: decoded and measured against independent references; drawn at any size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy

from metamobile.data.preprocess import Preprocess
from metamobile.tasks.classify.metric import Metric
from metamobile.tasks.classify.results import Classification, decode, draw
from metamobile.weights.card import Card

NAMES = ["tench", "springer", "chain saw", "church", "horn", "truck", "pump", "golf ball"]


def make_card(names: list[str]) -> Card:
    return Card(
        "emo_1m", {}, classes=[f"n{i}" for i in range(len(names))], names=names, preprocess=Preprocess()
    )


@pytest.fixture
def measured() -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets: class 7 is never true, class 6 hardly ever predicted."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 7, 500)
    logits = rng.normal(size=(500, 8)).astype(np.float32) * 2
    logits[np.arange(500), targets] += 1.5
    logits[:, 6] -= 9
    return logits, targets


def test_decode_equals_torch(measured) -> None:
    logits, _ = measured
    answers = decode(logits, NAMES, [f"{i}.jpg" for i in range(500)], top=3)
    scores, indices = torch.from_numpy(logits).double().softmax(1).topk(3)
    assert [answer.indices for answer in answers] == indices.tolist()
    np.testing.assert_allclose([answer.scores for answer in answers], scores, rtol=1e-12)
    assert answers[4].labels == [NAMES[i] for i in indices[4]]
    assert answers[4].picture == "4.jpg"
    json.dumps(answers[4].to_dict())  # plain numbers, not NumPy's


def test_decode_of_fewer_classes_than_asked() -> None:
    (answer,) = decode([[0.0, 1.0]], ["a", "b"], ["x"], top=5)
    assert answer.labels == ["b", "a"]


def test_decode_refuses_what_is_not_an_answer() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\) do not fit 1 pictures and 2 classes"):
        decode([[0.0, 1.0, 2.0]], ["a", "b"], ["x"])
    with pytest.raises(ValueError, match="not finite for 1 of 2 pictures"):
        decode([[0.0, 1.0], [np.nan, 0.0]], ["a", "b"], ["x", "y"])


def test_metric_equals_independent_references(measured) -> None:
    logits, targets = measured
    metric = Metric(NAMES)
    for start in range(0, 500, 64):
        metric.update(logits[start : start + 64], targets[start : start + 64])
    figures = metric.compute()

    scores, true = torch.from_numpy(logits), torch.from_numpy(targets)
    for k, key in ((1, "top1"), (5, "top5")):
        theirs = MulticlassAccuracy(num_classes=8, top_k=k, average="micro")(scores, true)
        assert figures[key] == pytest.approx(100 * theirs.item(), abs=1e-4)
    assert figures["loss"] == pytest.approx(torch.nn.functional.cross_entropy(scores.double(), true).item())
    assert (
        figures["confusion"] == sklearn.metrics.confusion_matrix(targets, logits.argmax(1), labels=range(8))
    ).all()
    theirs = sklearn.metrics.classification_report(
        targets, logits.argmax(1), labels=range(8), target_names=NAMES, output_dict=True, zero_division=0
    )
    for name in NAMES:
        ours = figures["per_class"][name]
        for key, other in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("support",) * 2):
            assert ours[key] == pytest.approx(theirs[name][other]), (name, key)
    json.dumps(figures, allow_nan=False)


def test_metric_gives_equal_logits_no_credit() -> None:
    """A network that always answers the same is right by chance only."""
    metric = Metric([str(i) for i in range(10)])
    metric.update(np.zeros((10, 10)), np.arange(10))
    figures = metric.compute()
    assert (figures["top1"], figures["top5"]) == (10, 50)


def test_metric_tells_equal_names_apart() -> None:
    metric = Metric(["crane", "church", "crane"])
    metric.update(np.eye(3), [0, 1, 2])
    assert list(metric.compute()["per_class"]) == ["crane (0)", "church", "crane (2)"]


def test_metric_of_nothing() -> None:
    with pytest.raises(ValueError, match="no picture was given"):
        Metric(NAMES).compute()


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (640, 480), (40, 900), (4000, 3000), (3000, 60)])
def test_draw_keeps_the_picture_and_adds_a_strip(size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    answer = Classification("x", ["a long label " * 20, "short", "дом"], [0.9, 0.07, 0.03], [0, 1, 2])
    sheet = draw(picture, answer)
    scale = max(1, 256 // max(size))
    assert sheet.width == max(256, size[0] * scale)
    assert sheet.height >= size[1] * scale + 3 * 20  # three rows that can be read
    left = (sheet.width - size[0] * scale) // 2
    shown = sheet.crop((left, 0, left + size[0] * scale, size[1] * scale)).resize(
        size, Image.Resampling.NEAREST
    )
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(picture))


def test_draw_fits_labels_of_any_length() -> None:
    """The strip's margins stay free of letters."""
    for label in ("W" * 300, "x", ""):
        sheet = np.asarray(draw(Image.new("RGB", (64, 64)), Classification("x", [label], [0.5], [0])))
        assert (sheet[256:, :4] < 60).all()
        assert (sheet[256:, -4:] < 60).all()
