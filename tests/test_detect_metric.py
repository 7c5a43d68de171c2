"""A detector's figures equal pycocotools' on real truths; what was taken for what, counted by hand."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metamobile.data.box_sample import BoxSample
from metamobile.errors import DataError
from metamobile.tasks import make_metric
from metamobile.tasks.detect.metric import FIGURES, Metric, box_iou
from metamobile.tasks.detect.results import Detections, run_lengths, truth_of

SIZE = (100, 80)
NAMES = ["cat", "dog", "cow"]


def sample_of(
    boxes: Sequence, labels: Sequence[int], crowd: Sequence[bool] = (), number: int = 0, **more: Any
) -> BoxSample:
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    return BoxSample(
        Path(f"{number}.jpg"),
        more.get("size", SIZE),
        corners,
        np.asarray(labels, np.int64),
        np.asarray(crowd, bool) if len(crowd) else np.zeros(len(corners), bool),
        np.asarray(more.get("areas", (corners[:, 2:] - corners[:, :2]).prod(axis=1)), np.float64),
        number,
        more.get("segmentations"),
    )


def found_of(boxes: Sequence, labels: Sequence[int], scores: Sequence[float], **more: Any) -> Detections:
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    names = [str(label) for label in labels]
    indices, size = np.asarray(labels, np.int64), more.get("size", SIZE)
    return Detections("", size, corners, np.asarray(scores, np.float32), names, indices, more.get("masks"))


def measured(samples: Sequence[BoxSample], found: Sequence[Detections], names: Sequence[str] = NAMES) -> dict:
    metric = Metric(names, samples)
    metric.update(found, range(len(samples)))
    return metric.compute()


def pycocotools(truth: dict, found: list[dict], kind: str) -> tuple[list[float], dict[int, list[float]]]:
    """The twelve figures as shares, -1 for none; AP and AP50 of each category."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluated = COCOeval(coco, coco.loadRes(found), kind)
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    precision = evaluated.eval["precision"][..., 0, -1]
    means = [[part[part > -1] for part in (p, p[0])] for p in np.moveaxis(precision, 2, 0)]
    classes = [[part.mean() if part.size else -1 for part in parts] for parts in means]
    return list(evaluated.stats), dict(zip(evaluated.params.catIds, classes, strict=True))


def assert_equal(figures: dict, theirs: Sequence[float], prefix: str = "") -> None:
    assert len(theirs) == len(FIGURES)
    for key, value in zip(FIGURES, theirs, strict=True):
        ours = figures[prefix + key]
        assert (ours is None) == (value == -1), key
        assert ours is None or ours == pytest.approx(100 * value, abs=1e-6), key


def invent(
    rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, size: tuple, classes: int
) -> tuple:
    """Jittered boxes, some of another class, some missing, and false ones: boxes, labels, scores."""
    kept = rng.random(len(boxes)) < 0.85
    boxes, labels = boxes[kept], labels[kept].copy()
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = boxes + rng.normal(0, 0.06, boxes.shape) * sides
    others = rng.random(len(labels)) < 0.1
    labels[others] = rng.integers(0, classes, int(others.sum()))
    false = rng.random((int(rng.integers(0, 9)), 4)) * (size * 2)
    false = np.hstack([np.minimum(false[:, :2], false[:, 2:]), np.maximum(false[:, :2], false[:, 2:]) + 1])
    boxes = np.vstack([boxes, false]).clip(0, size * 2).astype(np.float32)
    labels = np.concatenate([labels, rng.integers(0, classes, len(false))])
    return boxes, labels, rng.random(len(boxes)).round(2)  # of which some are equal


def xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]


def test_figures_equal_pycocotools_on_real_boxes(shared: Path) -> None:
    truth = json.loads((shared / "data/coco128/annotations/instances_train2017.json").read_text())
    ids = [category["id"] for category in truth["categories"]]
    names = [category["name"] for category in truth["categories"]]
    assert len(names) == 80
    # a crowd of the first picture's class, around half of it
    first = next(row for row in truth["annotations"] if row["image_id"] == truth["images"][0]["id"])
    crowd = {**first, "id": 10**6, "bbox": [0, 0, 500.0, 300.0], "area": 90000.0, "iscrowd": 1}
    truth["annotations"].append(crowd)

    rng = np.random.default_rng(0)
    samples, found, theirs = [], [], []
    for picture in truth["images"]:
        rows = [row for row in truth["annotations"] if row["image_id"] == picture["id"]]
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([ids.index(row["category_id"]) for row in rows], np.int64)
        size = (picture["width"], picture["height"])
        flags, areas = [bool(row["iscrowd"]) for row in rows], [row["area"] for row in rows]
        samples.append(sample_of(boxes, labels, flags, picture["id"], size=size, areas=areas))
        answer = invent(rng, boxes, labels, size, len(names))
        found.append(found_of(*answer, size=size))
        theirs += [
            {"image_id": picture["id"], "category_id": ids[label], "bbox": xywh(box), "score": float(score)}
            for box, label, score in zip(*answer[:2], found[-1].scores, strict=True)
        ]
    metric = make_metric("detect", names, samples)
    for start in range(0, len(samples), 32):
        metric.update(found[start : start + 32], range(start, min(start + 32, len(samples))))
    figures = metric.compute()

    stats, classes = pycocotools(truth, theirs, "bbox")
    assert 0.3 < stats[0] < 0.9  # neither perfect nor nothing
    assert_equal(figures, stats)
    for name, number in zip(names, ids, strict=True):
        for key, value in zip(("ap", "ap50"), classes[number], strict=True):
            ours = figures["per_class"][name][key]
            assert (ours is None) == (value == -1)
            assert ours is None or ours == pytest.approx(value, abs=1e-8), name
    assert None in [entry["ap"] for entry in figures["per_class"].values()]  # coco128 lacks some classes
    assert sum(entry["support"] for entry in figures["per_class"].values()) == len(truth["annotations"]) - 1
    json.dumps(figures, allow_nan=False)


def ellipse(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).ellipse([float(value) for value in box], fill=1)
    return np.asarray(mask)


def invent_masks(rng: np.random.Generator) -> tuple[list[BoxSample], list[Detections], dict, list[dict]]:
    """Pictures with polygons, a packed and a plain run-length code, a crowd; answers with ellipses."""
    size, samples, found, theirs = (160, 120), [], [], []
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    for number in range(12):
        boxes = rng.random((6, 4)) * (100, 70, 50, 40)
        boxes[:, 2:] += boxes[:, :2] + 6
        labels = rng.integers(0, 3, 6)
        masks = np.array([ellipse(box, size) for box in boxes])
        shapes: list[Any] = [
            [[float(v) for v in (x1, y1, x2, y1, x2, y2, x1, (y1 + y2) / 2)]] for x1, y1, x2, y2 in boxes
        ]
        packed = coco_mask.encode(np.asfortranarray(masks[4].astype(np.uint8)))
        shapes[4] = {**packed, "counts": packed["counts"].decode()}
        flat = masks[5].flatten(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [-1]])))
        shapes[5] = {"size": [120, 160], "counts": np.diff(np.concatenate([[0], edges])).tolist()}
        crowd, areas = [i == 5 and number % 2 == 0 for i in range(6)], masks.sum(axis=(1, 2)).astype(float)
        samples.append(
            sample_of(boxes, labels, crowd, number, size=size, areas=areas, segmentations=tuple(shapes))
        )
        truth["images"].append({"id": number, "width": 160, "height": 120})
        for i in range(6):
            entry = {"id": 6 * number + i + 1, "image_id": number, "category_id": int(labels[i]) + 1}
            entry |= {"bbox": xywh(samples[-1].boxes[i]), "area": areas[i], "iscrowd": int(crowd[i])}
            truth["annotations"].append({**entry, "segmentation": shapes[i]})

        boxes, labels, scores = invent(rng, boxes, labels, size, 3)
        masks = np.array([ellipse(box, size) for box in boxes]).reshape(-1, 120, 160)
        found.append(found_of(boxes, labels, scores, size=size, masks=masks))
        for i, mask in enumerate(masks):
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            entry = {"image_id": number, "category_id": int(labels[i]) + 1, "bbox": xywh(boxes[i])}
            theirs.append({**entry, "score": float(found[-1].scores[i]), "segmentation": code})
    return samples, found, truth, theirs


def test_masks_equal_pycocotools() -> None:
    samples, found, truth, theirs = invent_masks(np.random.default_rng(1))
    figures = measured(samples, found)
    boxes, _ = pycocotools(truth, [{**entry} for entry in theirs], "bbox")
    assert_equal(figures, boxes)
    # without the box, pycocotools takes the mask's own area
    masks, _ = pycocotools(truth, [{k: v for k, v in e.items() if k != "bbox"} for e in theirs], "segm")
    assert 0.02 < masks[0] < 0.9 and abs(masks[0] - boxes[0]) > 0.01
    assert_equal(figures, masks, "mask_")


def test_masks_are_measured_only_where_answers_and_truths_have_them() -> None:
    samples, found, _, _ = invent_masks(np.random.default_rng(2))
    bare = [found_of(f.boxes, f.indices, f.scores, size=f.size) for f in found]
    assert "mask_ap" not in measured(samples, bare)
    maskless = [sample_of(s.boxes, s.labels, s.crowd, size=s.size) for s in samples]
    assert "mask_ap" not in measured(maskless, found)
    nothing = found_of([], [], [], size=(160, 120), masks=np.zeros((0, 120, 160), bool))
    assert measured(samples[:1], [nothing])["mask_ap"] == 0


def test_masks_of_some_boxes_only_are_refused() -> None:
    sample = sample_of([[0, 0, 9, 9], [20, 20, 40, 40]], [0, 1], segmentations=([[0, 0, 9, 0, 9, 9]], None))
    answer = found_of([[0, 0, 9, 9]], [0], [0.9], masks=np.ones((1, 80, 100), bool))
    with pytest.raises(DataError, match=r"^0\.jpg: some boxes have no mask; add them, or leave all out$"):
        Metric(NAMES, [sample]).update([answer], [0])
    assert measured([sample], [found_of([[0, 0, 9, 9]], [0], [0.9])])["ap"] is not None


@pytest.fixture
def by_hand() -> tuple[list[BoxSample], list[Detections]]:
    """Three classes; every way to be right or wrong once."""
    truth = [
        sample_of([[0, 0, 20, 20], [30, 0, 50, 20], [60, 0, 80, 20]], [0, 1, 2]),
        sample_of([[0, 0, 20, 20], [40, 40, 99, 79]], [0, 1], [False, True], 1),
        sample_of([], [], number=2),
        sample_of([[10, 10, 30, 30]], [2], number=3),
    ]
    found = [
        found_of(
            # right; a dog taken for a cow; the cow, too low a score; overlaps the cat by 1/3 only
            [[0, 0, 20, 20], [30, 0, 50, 20], [60, 0, 80, 20], [10, 0, 30, 20]],
            [0, 2, 2, 0],
            [0.9, 0.8, 0.24, 0.25],
        ),
        # better fitting and surer, but a dog; the cat; inside a crowd of dogs; a cat inside that crowd
        found_of(
            [[0, 0, 20, 20], [0, 0, 20, 18], [50, 50, 60, 60], [70, 50, 80, 60]],
            [1, 0, 1, 0],
            [0.9, 0.5, 0.8, 0.7],
        ),
        found_of([], [], []),
        found_of([[10, 10, 30, 30], [10, 10, 30, 29]], [2, 2], [0.6, 0.7]),  # the same cow twice
    ]
    return truth, found


def test_confusion_by_hand(by_hand) -> None:
    figures = measured(*by_hand)
    assert figures["confusion_names"] == ["cat", "dog", "cow", "background"]
    assert figures["confusion"] == [
        [2, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],  # the cow of 0.24 is missed
        [2, 1, 1, 0],  # cat of 1/3, cat in a crowd of dogs; dog where the cat is taken; second cow
    ]
    classes = figures["per_class"]
    shares = {name: (entry["recall"], entry["precision"]) for name, entry in classes.items()}
    assert shares == {"cat": (1, 0.5), "dog": (0, 0), "cow": (0.5, 1 / 3)}
    assert [entry["support"] for entry in classes.values()] == [2, 1, 2]


def test_worst_by_hand(by_hand) -> None:
    truth, found = by_hand
    metric = Metric(NAMES, truth)
    metric.update(found, range(4))
    worst = metric.worst(9)
    # 1 right of 3 found and 3 there; 1 of 3 and 1 (the one in the crowd is not counted); 1 of 2 and 1
    assert [(index, score) for index, _, score in worst] == [
        (0, pytest.approx(2 / 6)),
        (1, pytest.approx(2 / 4)),
        (3, pytest.approx(2 / 3)),
    ]
    assert worst[0][1].scores.tolist() == pytest.approx([0.9, 0.8, 0.25])  # not the one of 0.24
    assert [index for index, _, _ in metric.worst(1)] == [0]


def test_worst_has_the_most_wrong_first_and_keeps_masks() -> None:
    truth = [
        sample_of([[0, 0, 9, 9]] * n, [0] * n, segmentations=([[0, 0, 9, 0, 9, 9]],) * n) for n in (1, 3)
    ]
    masks = np.zeros((2, 80, 100), bool)
    masks[0, 40:60, 10:30] = True
    metric = Metric(NAMES, truth)
    answer = found_of([[10, 40, 30, 60], [0, 0, 1, 1]], [1, 0], [0.5, 0.1], masks=masks)
    metric.update([answer, found_of([], [], [], masks=masks[:0])], [0, 1])
    (first, nothing, low), (second, dog, same) = metric.worst(2)
    assert (first, second, low, same) == (1, 0, 0, 0)  # three missed, then one missed and one false
    assert len(nothing) == 0 and nothing.masks is not None and nothing.masks.shape == (0, 80, 100)
    assert dog.masks is not None
    np.testing.assert_array_equal(dog.masks, masks[:1])


def test_a_perfect_answer() -> None:
    truth = [sample_of([[0, 0, 20, 20], [30, 0, 50, 20]], [0, 1]), sample_of([[5, 5, 60, 70]], [1], number=1)]
    metric = Metric(NAMES, truth)
    metric.update([truth_of(sample, NAMES) for sample in truth], [0, 1])
    figures = metric.compute()
    assert figures["ap"] == figures["ap50"] == figures["ar_100"] == figures["ap_small"] == pytest.approx(100)
    assert figures["ap_large"] is None  # 3,575 pixels are medium
    assert figures["per_class"]["cow"] == dict.fromkeys(("ap", "ap50", "recall", "precision")) | {
        "support": 0
    }
    assert metric.worst(5) == []


def test_areas_of_the_data_decide_what_is_small() -> None:
    """A box of 40 x 40 around a mask of 500 pixels is a small object."""
    figures = measured(
        [sample_of([[0, 0, 40, 40]], [0], areas=[500])], [found_of([[0, 0, 40, 40]], [0], [0.9])]
    )
    assert (figures["ap_small"], figures["ap_medium"]) == (pytest.approx(100), None)


def test_curves_by_hand() -> None:
    """Of two cats one is found, after a false one, and the other overlaps by 0.6: half precision."""
    truth = sample_of([[0, 0, 20, 20], [40, 0, 60, 20]], [0, 0])
    found = found_of([[70, 40, 90, 60], [0, 0, 20, 20], [40, 0, 60, 12]], [0, 0, 0], [0.9, 0.8, 0.7])
    curves = measured([truth], [found])["curves"]
    assert curves["recall"] == [round(i / 100, 2) for i in range(101)]
    assert curves["iou50"] == curves["per_class"]["cat"] == [0.6667] * 101  # 2 of 3 at full recall, so before
    assert curves["iou75"] == [0.5] * 51 + [0] * 50  # 1 of 2 up to a recall of one half
    assert list(curves["per_class"]) == ["cat"]


def test_curves_are_of_the_twenty_largest_classes() -> None:
    names = [f"class {i}" for i in range(25)]
    labels = [i for i in range(25) for _ in range(1 + (i >= 5))]  # classes 5 to 24 have two boxes each
    boxes = [[3 * i, 0, 3 * i + 2, 9] for i in range(len(labels))]
    curves = measured(
        [sample_of(boxes, labels, size=(200, 10))], [found_of([], [], [], size=(200, 10))], names
    )
    assert list(curves["curves"]["per_class"]) == names[5:]


def test_nothing_found_and_nothing_there() -> None:
    missed = measured([sample_of([[0, 0, 9, 9]], [0])], [found_of([], [], [])])
    assert (missed["ap"], missed["per_class"]["cat"]["recall"]) == (0, 0)
    assert missed["per_class"]["cat"]["precision"] is None
    empty = measured([sample_of([], [])], [found_of([[0, 0, 9, 9]], [0], [0.9])])
    assert [empty[key] for key in FIGURES] == [None] * 12
    assert empty["confusion"][3] == [1, 0, 0, 0]
    assert empty["curves"]["iou50"] == [] and empty["curves"]["per_class"] == {}
    json.dumps([missed, empty], allow_nan=False)
    with pytest.raises(ValueError, match="^nothing was measured: no picture was given$"):
        Metric(NAMES, []).compute()


def test_only_given_pictures_count_and_each_once() -> None:
    truth = [sample_of([[0, 0, 9, 9]], [0], number=i) for i in range(3)]
    metric = Metric(NAMES, truth)
    right = found_of([[0, 0, 9, 9]], [0], [0.9])
    metric.update([found_of([], [], []), right], [2, 0])
    assert metric.compute()["ar_100"] == pytest.approx(50)
    metric.update([right], [2])
    figures = metric.compute()
    assert figures["ar_100"] == pytest.approx(100)
    assert figures["confusion"][0] == [2, 0, 0, 0]


def test_classes_of_one_name_stay_apart() -> None:
    figures = measured([sample_of([], [])], [found_of([], [], [])], ["crane", "church", "crane"])
    assert list(figures["per_class"]) == ["crane (0)", "church", "crane (2)"]


@pytest.mark.parametrize(
    "answer, message",
    [
        (
            found_of([], [], [], size=(80, 100)),
            "^0.jpg: the answer is for 80 x 100 pixels, expected 100 x 80$",
        ),
        (found_of([[0, 0, 1, 1]], [3], [0.5]), "^0.jpg: class 3 in the answer, expected 0 to 2$"),
        (found_of([[0, 0, 1, 1]], [-1], [0.5]), "^0.jpg: class -1 in the answer, expected 0 to 2$"),
    ],
)
def test_what_is_refused(answer: Detections, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Metric(NAMES, [sample_of([], [])]).update([answer], [0])


def test_overlaps_equal_pycocotools() -> None:
    rng = np.random.default_rng(3)
    boxes = rng.random((2, 20, 4)) * 50
    boxes[..., 2:] += boxes[..., :2]
    boxes[0, 0, 2:] = boxes[0, 0, :2]  # without an area
    ours, others = ([xywh(box) for box in some] for some in boxes)
    for crowd in (False, True):
        theirs = coco_mask.iou(ours, others, [int(crowd)] * 20)
        np.testing.assert_allclose(box_iou(*boxes, crowd=crowd)[1:], theirs[1:], atol=1e-12)
        assert (box_iou(*boxes, crowd=crowd)[0] == 0).all()


def test_run_length_codes_equal_pycocotools() -> None:
    masks = np.random.default_rng(4).random((5, 30, 40)) < 0.4
    codes = run_lengths(masks)
    theirs = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    assert [code["counts"] for code in codes] == [code["counts"].decode() for code in theirs]
    assert [list(code["size"]) for code in codes] == [[30, 40]] * 5
