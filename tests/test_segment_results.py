"""Answers of a segmenter: decoded and measured against independent references; drawn, written and told."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from metamobile.data.masks import MaskSample, open_masks
from metamobile.data.preprocess import Preprocess
from metamobile.errors import NotFinite
from metamobile.tasks.drawing import colour
from metamobile.tasks.segment.metric import Metric, confusion_matrix
from metamobile.tasks.segment.results import (
    CLASS_COLUMNS,
    HEADLINES,
    OPACITY,
    OPTIONS,
    Segmentation,
    answers_table,
    best_class,
    class_table,
    configure,
    csv_text,
    decode,
    draw,
    figures_line,
    in_words,
    json_text,
    mask_png,
    resized,
    save_more,
    truth_of,
)
from metamobile.weights.card import Card

NAMES = ["sky", "road", "car"]


def full(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """All strips of `resized` in one array (K, H, W)."""
    out = np.full((len(logits), size[1], size[0]), np.nan, np.float32)
    for rows, channels in resized(logits, size):
        for index, channel in enumerate(channels):
            out[index, rows] = channel
    return out


def answer(mask: list | np.ndarray, names: list[str] = NAMES) -> Segmentation:
    mask = np.asarray(mask, np.uint8)
    return Segmentation("x.png", mask.shape[::-1], mask, list(names))


def sample(folder: Path, mask: list | np.ndarray, name: str = "x") -> MaskSample:
    """A picture with its truth, as files."""
    mask = np.asarray(mask, np.uint8)
    picture, truth = folder / f"{name}.jpg", folder / f"{name}.png"
    Image.new("RGB", mask.shape[::-1], (120, 130, 140)).save(picture)
    Image.fromarray(mask).save(truth)
    return MaskSample(picture, truth)


@pytest.mark.parametrize(
    "shape, size",
    [
        ((16, 20), (133, 201)),  # up, by no whole factor, over several strips
        ((37, 53), (11, 7)),  # down
        ((200, 9), (33, 150)),  # down and up
        ((1, 1), (5, 70)),
        ((5, 6), (1, 1)),
        ((64, 129), (129, 64)),  # equal
    ],
)
def test_decode_equals_torch(shape: tuple[int, int], size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    # in double: in float torch rounds the places themselves, 2e-5 of a pixel at 200 rows
    batch = torch.from_numpy(logits).double()[None]
    theirs = F.interpolate(batch, size[::-1], mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(full(logits, size), theirs, atol=1e-5, rtol=0)
    (result,) = decode(logits[None], [*"abcde"], ["x.jpg"], [size])
    two, one = theirs.topk(2, dim=0).values[[1, 0]]
    clear = (one - two > 2e-5).numpy()  # where rounding cannot decide
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result.mask[clear], theirs.argmax(0).numpy()[clear])
    assert (result.size, result.mask.shape, result.mask.dtype) == (size, size[::-1], np.uint8)


def test_decode_of_many_classes_keeps_255_free() -> None:
    logits = np.zeros((300, 2, 2), np.float32)
    logits[299, 0, 0] = 1
    mask = best_class(logits, (2, 2))
    assert mask.dtype == np.int32
    assert mask.tolist() == [[299, 0], [0, 0]]
    assert best_class(logits[:256], (4, 4)).dtype == np.int32
    assert best_class(logits[:255], (4, 4)).dtype == np.uint8


def test_decode_gives_each_picture_its_own_size_and_names_their_number() -> None:
    logits = [np.eye(3, dtype=np.float32).reshape(3, 1, 3)[:, :, [i, i]] for i in range(2)]
    first, second = decode(logits, ["crane", "sky", "crane"], ["a", "b"], [(4, 2), (3, 5)])
    assert (first.mask.shape, second.mask.shape) == ((2, 4), (5, 3))
    assert (set(first.mask.flat), set(second.mask.flat)) == ({0}, {1})
    assert first.labels == ["crane (0)", "sky", "crane (2)"]


def test_decode_refuses_what_is_not_an_answer() -> None:
    logits = np.zeros((2, 3, 4, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"2 logits of shape \(3, 4, 4\) do not fit 1 pictures and 3 classes"
    ):
        decode(logits, NAMES, ["x"], [(4, 4)])
    with pytest.raises(ValueError, match=r"shape \(3, 4, 4\) do not fit 2 pictures and 2 classes"):
        decode(logits, NAMES[:2], ["x", "y"], [(4, 4)] * 2)
    for bad in (np.nan, np.inf):
        logits[1, 2, 0, 0] = bad
        with pytest.raises(NotFinite, match="not finite for 1 of 2 pictures"):
            decode(logits, NAMES, ["x", "y"], [(4, 4)] * 2)


def test_metric_by_hand(tmp_path: Path) -> None:
    """Truth: 4 sky, 3 road, 1 not labelled; one sky is called car, one road is called sky."""
    truth = [[0, 0, 0, 0], [1, 1, 1, 255]]
    metric = Metric([*NAMES, "tree"], [sample(tmp_path, truth)])
    metric.update([answer([[0, 0, 0, 2], [1, 1, 0, 1]])], [0])
    figures = metric.compute()
    assert figures["confusion"] == [[3, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert figures["per_class"] == {
        "sky": {"iou": 3 / 5, "accuracy": 3 / 4, "precision": 3 / 4, "support": 4},
        "road": {"iou": pytest.approx(2 / 3), "accuracy": pytest.approx(2 / 3), "precision": 1, "support": 3},
        "car": {"iou": 0, "accuracy": None, "precision": 0, "support": 0},
        "tree": {"iou": None, "accuracy": None, "precision": None, "support": 0},
    }
    assert figures["miou"] == pytest.approx(100 * (3 / 5 + 2 / 3 + 0) / 3)
    assert figures["macc"] == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)
    assert figures["aacc"] == pytest.approx(100 * 5 / 7)
    ((index, result, score),) = metric.worst(5)
    assert (index, result.picture, score) == (0, "x.png", pytest.approx((3 / 5 + 2 / 3) / 2))


def test_metric_equals_independent_references(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(7)]
    truths, masks = [], []
    for i in range(6):
        size = (20 + i, 31 - i)
        truths.append(rng.choice([0, 1, 2, 3, 4, 5, 6, 255], size).astype(np.uint8))
        masks.append(np.where(rng.random(size) < 0.5, truths[-1] % 7, rng.integers(0, 7, size)))
    samples = [sample(tmp_path, truth, f"{i}") for i, truth in enumerate(truths)]
    metric = Metric(names, samples)
    order = [4, 0, 2, 1, 5, 3]  # as they come, in batches of two
    for start in range(0, 6, 2):
        batch = order[start : start + 2]
        metric.update([answer(masks[i], names) for i in batch], batch)
    figures = metric.compute()

    true, said = (np.concatenate([mask.ravel() for mask in part]) for part in (truths, masks))
    kept = true != 255
    expected = sklearn.metrics.confusion_matrix(true[kept], said[kept], labels=range(7))
    np.testing.assert_array_equal(figures["confusion"], expected)
    assert figures["aacc"] == pytest.approx(100 * sklearn.metrics.accuracy_score(true[kept], said[kept]))
    assert figures["macc"] == pytest.approx(
        100 * sklearn.metrics.balanced_accuracy_score(true[kept], said[kept])
    )
    jaccard = MulticlassJaccardIndex(7, average=None, ignore_index=255)
    theirs = jaccard(torch.from_numpy(said).long(), torch.from_numpy(true).long())
    np.testing.assert_allclose([figures["per_class"][name]["iou"] for name in names], theirs, rtol=1e-6)
    assert figures["miou"] == pytest.approx(100 * theirs.mean().item())
    json.dumps(figures, allow_nan=False)

    scores = []
    for truth, mask in zip(truths, masks, strict=True):
        here = truth.ravel() != 255
        scores.append(sklearn.metrics.jaccard_score(truth.ravel()[here], mask.ravel()[here], average="macro"))
    found = metric.worst(4)
    assert [index for index, _, _ in found] == np.argsort(scores)[:4].tolist()
    np.testing.assert_allclose([score for _, _, score in found], np.sort(scores)[:4])
    assert all(result.mask is not None and result.size == masks[i].shape[::-1] for i, result, _ in found)


def test_metric_keeps_the_worst_only(tmp_path: Path) -> None:
    """Picture i of 12 has i of its 12 pixels right; a truth without a labelled pixel has no score."""
    truths = [np.zeros((1, 12))] * 12 + [np.full((1, 12), 255)]
    samples = [sample(tmp_path, truth, f"{i}") for i, truth in enumerate(truths)]
    metric = Metric(NAMES, samples, keep=3)
    for i in (7, 12, 2, 11, 0, 5, 9, 1, 3, 4, 6, 8, 10):
        metric.update([answer([[0] * i + [1] * (12 - i)])], [i])
        assert len(metric._worst) <= 3
    assert [(index, score) for index, _, score in metric.worst(24)] == [(0, 0), (1, 1 / 12), (2, 2 / 12)]
    assert [index for index, _, _ in metric.worst(1)] == [0]


def test_metric_tells_equal_pictures_by_their_index(tmp_path: Path) -> None:
    metric = Metric(NAMES, [sample(tmp_path, [[0, 1]])] * 5, keep=2)
    for i in (3, 1, 4, 0, 2):
        metric.update([answer([[1, 1]])], [i])
    assert [index for index, _, _ in metric.worst(5)] == [0, 1]


def test_metric_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    metric = Metric(NAMES, [sample(tmp_path, [[0, 1], [2, 255], [0, 0]]), sample(tmp_path, [[0, 7]], "y")])
    with pytest.raises(ValueError, match=r"x.png: the answer's mask is 3 x 2 pixels, expected 2 x 3"):
        metric.update([answer([[0, 1, 0], [0, 0, 0]])], [0])
    with pytest.raises(ValueError, match="y.png: class 7 in the truth, expected 0 to 2 or 255"):
        metric.update([answer([[0, 1]])], [1])
    with pytest.raises(ValueError, match="class -1 in the answer"):
        confusion_matrix(np.array([[-1]]), np.array([[0]]), 3)
    with pytest.raises(ValueError, match="no picture with a labelled pixel"):
        metric.compute()


def test_truth_as_an_answer(tmp_path: Path) -> None:
    one = sample(tmp_path, [[0, 1], [2, 255], [1, 1]])
    truth = truth_of(one, NAMES)
    assert (truth.picture, truth.size) == (str(one.path), (2, 3))
    assert truth.mask.tolist() == [[0, 1], [2, 255], [1, 1]]
    assert truth.unlabelled().sum() == 1
    assert truth.shares() == [(1, 3 / 6), (0, 1 / 6), (2, 1 / 6)]
    many = truth_of(one, [f"{i}" for i in range(300)])  # 255 is a class of these
    assert many.mask.tolist() == [[0, 1], [2, -1], [1, 1]]
    assert many.shares() == truth.shares()


def test_draw_paints_each_pixel_in_its_class_colour() -> None:
    mask = np.zeros((300, 400), np.uint8)
    mask[:, 100:] = 1
    mask[100:, 250:] = 2
    mask[200:, :100] = 255
    sheet = np.asarray(draw(Image.new("RGB", (400, 300), (200, 100, 50)), answer(mask)))
    assert sheet.shape[1] == 400
    for y, x, index in [(50, 50, 0), (50, 200, 1), (250, 350, 2)]:
        expected = [
            (1 - OPACITY) * a + OPACITY * b for a, b in zip((200, 100, 50), colour(index), strict=True)
        ]
        np.testing.assert_allclose(sheet[y, x], expected, atol=1)
    hatched = np.unique(sheet[210:290, 10:90].reshape(-1, 3), axis=0)  # two tones, no colour of a class
    np.testing.assert_allclose(hatched, [[90, 45, 22], [140, 94, 72]], atol=1)
    line, beside = sheet[50, 99].astype(int), sheet[50, 97].astype(int)
    assert (line > beside).any() and (line >= beside).all()  # a light line where classes meet
    assert (sheet[50, 40:90] == sheet[50, 40]).all()  # and none inside of one
    for index in (0, 1, 2):  # the legend has a full swatch of each
        assert (sheet[300:] == colour(index)).all(axis=2).sum() > 60


def test_draw_enlarges_a_small_picture() -> None:
    mask = np.repeat([[0, 1]], 16, axis=1).reshape(1, 32).repeat(32, axis=0)
    sheet = draw(Image.new("RGB", (32, 32)), answer(mask))
    assert sheet.width == 256
    assert sheet.height > 256 + 14
    expected = [OPACITY * part for part in colour(0)]
    np.testing.assert_allclose(np.asarray(sheet)[4:250, 4:120].reshape(-1, 3).mean(0), expected, atol=1)


def test_draw_shows_at_most_twelve_classes_of_many() -> None:
    names = [f"class {i}" for i in range(300)]
    mask = np.arange(300).repeat(100).reshape(150, 200).astype(np.int32)
    many = Segmentation("x", (200, 150), mask, names)
    sheet = np.asarray(draw(Image.new("RGB", (200, 150)), many))
    strip = sheet[150:]
    shown = [i for i in range(300) if (strip == colour(i)).all(axis=2).sum() > 60]
    assert shown == list(range(12))


def test_draw_refuses_another_picture() -> None:
    with pytest.raises(ValueError, match="the picture is 3 x 2 pixels, expected 2 x 3"):
        draw(Image.new("RGB", (3, 2)), answer(np.zeros((3, 2))))


def test_mask_file_gives_back_the_classes(tmp_path: Path) -> None:
    result = answer([[0, 1, 2], [255, 2, 2]])
    assert "mask" not in result.to_dict()
    mask_png(result, tmp_path / "new" / "x.png")
    picture = Image.open(tmp_path / "new" / "x.png")
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), result.mask)
    shown = np.asarray(picture.convert("RGB"))
    assert [tuple(pixel) for pixel in shown[0]] == [colour(0), colour(1), colour(2)]
    assert shown[1, 0].tolist() == [0, 0, 0]
    assert result.to_dict()["mask"] == str(tmp_path / "new" / "x.png")
    many = Segmentation("y", (2, 1), np.array([[299, -1]], np.int32), [f"{i}" for i in range(300)])
    mask_png(many, tmp_path / "y.png")
    assert np.asarray(Image.open(tmp_path / "y.png")).tolist() == [[299, 65535]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "y.png"]


def test_mask_beside_a_drawing_overwrites_nothing(tmp_path: Path) -> None:
    result = answer([[0, 1]])
    for expected in ("a_mask.png", "a_mask-2.png", "a_mask-3.png"):
        save_more(result, tmp_path / "a.jpg")
        assert result.mask_file == str(tmp_path / expected)
    assert np.asarray(Image.open(tmp_path / "a_mask.png")).tolist() == [[0, 1]]


def test_windows_of_a_large_picture() -> None:
    """The network under test gives each pixel's own value, and only takes windows of 8 pixels."""

    class Runtime:
        name, card = "fake", Card("fake", {}, classes=NAMES, preprocess=Preprocess(size=(13, 21)))
        any_size = True

        def run(self, batch: np.ndarray) -> np.ndarray:
            assert batch.shape[2:] == (8, 8)
            return batch * 2

    pixels = np.random.default_rng(0).normal(size=(2, 3, 13, 21)).astype(np.float32)
    np.testing.assert_allclose(configure(Runtime(), slide=8).run(pixels), 2 * pixels, rtol=1e-6)
    runtime = Runtime()
    assert configure(runtime) is runtime
    with pytest.raises(ValueError, match="slide 0: expected the side of a window in pixels"):
        configure(runtime, slide=0)
    with pytest.raises(ValueError, match="slide 21: .*less than 21, as this model's .* resized to 13x21"):
        configure(runtime, slide=21)
    runtime.any_size = False
    with pytest.raises(ValueError, match="slide 8: a fake file of one size .* 13x21; expected a run folder"):
        configure(runtime, slide=8)
    assert OPTIONS == ("slide",)
    (result,) = decode(pixels[:1], NAMES, ["x"], [(21, 13)], [(13, 21)], slide=8)
    np.testing.assert_array_equal(result.mask, pixels[0].argmax(0))


def test_answers_as_text() -> None:
    mask = np.zeros((20, 50))
    mask[:2] = 2  # 10 %
    mask[19, :5] = 1  # 0.5 %
    result = answer(mask)
    columns, rows = answers_table([result, answer(np.ones((2, 2)))])
    assert len(columns) == 4
    assert in_words(result) == "sky 89.5 %, car 10.0 %, road 0.5 %"
    assert in_words(result, 1) == "sky 89.5 %"
    assert rows == [["x.png", "sky", "89.5 %", "car 10.0 %"], ["x.png", "road", "100.0 %", ""]]

    told = json.loads(json_text([result], {"model": "m"}))
    assert told == {
        "model": "m",
        "results": [
            {"picture": "x.png", "size": [50, 20], "shares": {"sky": 0.895, "car": 0.1, "road": 0.005}}
        ],
    }
    table = list(csv.reader(io.StringIO(csv_text([result], [("y.jpg", "y.jpg: broken, so")]))))
    assert table == [
        ["picture", "class", "share", "error"],
        ["x.png", "sky", "0.895000", ""],
        ["x.png", "car", "0.100000", ""],
        ["x.png", "road", "0.005000", ""],
        ["y.jpg", "", "", "y.jpg: broken, so"],
    ]


def test_figures_as_text(tmp_path: Path) -> None:
    metric = Metric([*NAMES, "tree"], [sample(tmp_path, [[0, 0, 0, 0], [1, 1, 1, 255]])])
    metric.update([answer([[0, 0, 0, 2], [1, 1, 0, 1]])], [0])
    figures = {**metric.compute(), "pictures": 1101}
    assert figures_line(figures) == "mIoU 42.22 %   mAcc 70.83 %   aAcc 71.43 %   1,101 pictures"
    title, columns, rows = class_table(figures)
    assert columns == ["class", ">pixels", ">IoU %", ">accuracy %", ">precision %"]
    assert rows == [
        ["car", "0", "0.0", "-", "0.0"],
        ["sky", "4", "60.0", "75.0", "75.0"],
        ["road", "3", "66.7", "66.7", "100.0"],
        ["tree", "0", "-", "-", "-"],
    ]
    assert {key for key, *_ in HEADLINES} == {"miou", "macc", "aacc"}
    assert {key for key, *_ in CLASS_COLUMNS} == set(figures["per_class"]["sky"])


def test_draw_of_a_real_picture_beside_its_truth(shared: Path) -> None:
    folder = shared / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip(f"needs CamVid at {folder}")
    names = ["sky", "building", "pole", "road", "pavement", "tree"]
    names += ["sign", "fence", "car", "pedestrian", "bicyclist"]
    opened = open_masks(folder, classes=names, ignore=11)
    truth = truth_of(opened.val[0], names)
    path = opened.val[0].path
    metric = Metric(names, opened.val)
    metric.update([truth], [0])
    assert metric.compute()["miou"] == 100
    sheet = draw(Image.open(path).convert("RGB"), truth)
    assert sheet.width == truth.size[0]
    strip = np.asarray(sheet)[truth.size[1] :]
    for index, _ in truth.shares():
        assert (strip == colour(index)).all(axis=2).sum() > 60
