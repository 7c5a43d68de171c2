"""Answers of a detector: in the picture's pixels, drawn so that tags can be read, in COCO's form."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from metamobile.data.box_sample import BoxSample
from metamobile.data.pictures import read_picture
from metamobile.errors import NotFinite
from metamobile.tasks import ResultsModule
from metamobile.tasks.detect import results
from metamobile.tasks.detect.drawing import _placed
from metamobile.tasks.detect.metric import FIGURES
from metamobile.tasks.detect.results import (
    Detections,
    answers_table,
    class_table,
    configure,
    csv_text,
    decode,
    draw,
    figures_line,
    in_words,
    json_text,
    resized_masks,
    to_coco,
    truth_of,
)
from metamobile.tasks.drawing import colour, font

NAMES = ["cat", "dog", "cow"]
FOUND: dict[str, Any] = {
    # in an input of 64 x 64: inside; reaching out; wholly outside; too low a score for some tests
    "boxes": np.array([[8, 16, 24, 32], [-8, 32, 80, 70], [70, 0, 90, 20], [0, 0, 32, 32]], np.float32),
    "scores": np.array([0.5, 0.9, 0.8, 0.2], np.float32),
    "labels": np.array([0, 2, 1, 1]),
}


def detections(count: int, size: tuple[int, int], seed: int = 0, masks: bool = False) -> Detections:
    rng = np.random.default_rng(seed)
    boxes = rng.random((count, 4)) * (size * 2)
    boxes = np.hstack([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:]) + 1])
    labels = rng.integers(0, 3, count)
    drawn = rng.random((count, size[1], size[0])) < 0.5 if masks else None
    scores = np.sort(rng.random(count))[::-1]
    names = [NAMES[label] for label in labels]
    boxes = boxes.clip(0, size * 2).astype(np.float32)
    return Detections("x.jpg", size, boxes, scores.astype(np.float32), names, labels, drawn)


def test_decode_scales_and_clips_by_hand() -> None:
    """A picture of 128 x 96 in an input of 64 x 64: x times 2, y times 1.5."""
    (answer,) = decode([FOUND], NAMES, ["a.jpg"], [(128, 96)], [(64, 64)], conf=0.0)
    assert (answer.picture, answer.size) == ("a.jpg", (128, 96))
    assert answer.boxes.tolist() == [[0, 48, 128, 96], [16, 24, 48, 48], [0, 0, 64, 48]]
    assert answer.boxes.dtype == np.float32
    assert answer.labels == ["cow", "cat", "dog"] and answer.indices.tolist() == [2, 0, 1]
    assert answer.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert answer.masks is None


def test_decode_of_several_pictures_of_different_shapes() -> None:
    """The second is 5 times its input of 128 x 64, in which the box at the right is inside."""
    sizes, shapes = [(64, 64), (640, 320)], [(64, 64), (64, 128)]
    answers = decode([FOUND, FOUND], NAMES, ["a", "b"], sizes, shapes, conf=0.5)
    assert answers[0].boxes.tolist() == [[0, 32, 64, 64], [8, 16, 24, 32]]  # 0.5 itself is not under 0.5
    assert answers[1].boxes.tolist() == [[0, 160, 400, 320], [350, 0, 450, 100], [40, 80, 120, 160]]


def test_decode_of_nothing() -> None:
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    (answer,) = decode([nothing], NAMES, ["a"], [(10, 20)], [(64, 64)])
    assert answer.boxes.shape == (0, 4) and answer.labels == []
    (answer,) = decode(
        [{**nothing, "masks": np.zeros((0, 64, 64), bool)}], NAMES, ["a"], [(10, 20)], [(64, 64)]
    )
    assert answer.masks is not None and answer.masks.shape == (0, 20, 10)


def test_decode_keeps_masks_with_their_boxes() -> None:
    masks = np.zeros((4, 64, 64), bool)
    for i, (x1, y1, x2, y2) in enumerate(FOUND["boxes"].clip(0, 64).astype(int)):
        masks[i, y1:y2, x1:x2] = True
    (answer,) = decode([{**FOUND, "masks": masks}], NAMES, ["a"], [(128, 96)], [(64, 64)], conf=0.3)
    assert answer.masks is not None and answer.masks.shape == (2, 96, 128)
    for mask, (x1, y1, x2, y2) in zip(answer.masks, answer.boxes.astype(int), strict=True):
        truth = np.zeros((96, 128), bool)
        truth[y1:y2, x1:x2] = True
        np.testing.assert_array_equal(mask, truth)


def test_masks_shrink_to_what_covers_half_of_a_pixel() -> None:
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :, :3] = True
    mask[0, 2:, 2] = False
    assert resized_masks(mask, (4, 4)).tolist() == mask.tolist()
    assert resized_masks(mask, (2, 2))[0, :, 0].tolist() == [True, True]
    assert not resized_masks(mask, (2, 2))[0, 1, 1]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"boxes": np.full((4, 4), np.nan)}, r"^a.jpg: the network's output is not finite for 4 of 4 boxes$"),
        ({"scores": np.array([1, np.inf, 0, 0])}, "not finite for 1 of 4 boxes$"),
        ({"labels": np.array([0, 1, 2, 3])}, "^a.jpg: class 3 in the output, expected 0 to 2$"),
        ({"scores": np.ones(3)}, "^a.jpg: 4 boxes, 3 scores, 4 labels$"),
        ({"masks": np.ones((1, 9, 9))}, "^a.jpg: 4 boxes, 4 scores, 4 labels, 1 masks$"),
    ],
)
def test_decode_refuses_what_is_not_an_answer(changed: dict, message: str) -> None:
    kind = NotFinite if "finite" in message else ValueError
    with pytest.raises(kind, match=message):
        decode([{**FOUND, **changed}], NAMES, ["a.jpg"], [(64, 64)], [(64, 64)])


def test_decode_refuses_another_number_of_pictures() -> None:
    with pytest.raises(
        ValueError, match="^1 outputs, 2 sizes and 1 shapes do not fit 2 pictures; expected one"
    ):
        decode([FOUND], NAMES, ["a", "b"], [(64, 64)] * 2, [(64, 64)])


class Network:
    """Remembers its thresholds at each run."""

    name, card = "PyTorch", "card"

    def __init__(self) -> None:
        self.holder = SimpleNamespace(score_thresh=0.05, nms_thresh=0.5)
        self.network = SimpleNamespace(thresholds=lambda: self.holder)
        self.seen: list[tuple[float, float]] = []

    def set_thresholds(self, *, score: float | None = None, iou: float | None = None) -> None:
        self.holder.score_thresh = self.holder.score_thresh if score is None else score
        self.holder.nms_thresh = self.holder.nms_thresh if iou is None else iou

    def run(self, batch: Any) -> Any:
        self.seen.append((self.holder.score_thresh, self.holder.nms_thresh))
        if batch is None:
            raise ValueError("no batch")
        return batch


def test_thresholds_hold_for_one_runtime_only() -> None:
    network: Any = Network()
    assert configure(network) is network
    assert configure(network, conf=0.01).run(1) == 1
    with pytest.raises(ValueError, match="no batch"):
        configure(network, conf=0.3, iou=0.7).run(None)  # type: ignore[arg-type]
    network.run(1)
    assert network.seen == [(0.01, 0.5), (0.3, 0.7), (0.05, 0.5)]


def test_overlap_of_an_exported_file_is_fixed() -> None:
    exported: Any = SimpleNamespace(name="ONNX Runtime", card="card")
    assert configure(exported, conf=0.4) is exported
    with pytest.raises(
        ValueError, match="^iou 0.7: in a file for ONNX Runtime the overlap is fixed; expected"
    ):
        configure(exported, iou=0.7)


def test_truth_as_an_answer() -> None:
    boxes = np.array([[0, 0, 8, 8], [2, 2, 9, 5]], np.float32)
    polygons = ([[0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0]], [[2.0, 2.0, 9.0, 2.0, 9.0, 5.0, 2.0, 5.0]])
    sample = BoxSample(
        Path("a.jpg"), (12, 10), boxes, np.array([1, 0]), np.array([False, True]), np.ones(2), 4, polygons
    )
    truth = truth_of(sample, NAMES)
    assert (truth.picture, truth.size, truth.labels) == ("a.jpg", (12, 10), ["dog", "cat (crowd)"])
    assert truth.scores.tolist() == [1, 1] and truth.indices.tolist() == [1, 0]
    np.testing.assert_array_equal(truth.boxes, boxes)
    assert truth.masks is not None
    assert truth.masks.sum(axis=(1, 2)).tolist() == [64, 21]
    assert truth_of(replace(sample, segmentations=None), NAMES).masks is None
    assert truth_of(replace(sample, segmentations=(polygons[0], None)), NAMES).masks is None


def test_a_dictionary_of_plain_numbers() -> None:
    answer = detections(2, (20, 10), masks=True)
    found = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert found["boxes"] == [pytest.approx(box, abs=1e-3) for box in answer.boxes.tolist()]
    assert (found["size"], found["labels"], len(found["scores"])) == ([20, 10], answer.labels, 2)
    assert answer.masks is not None
    np.testing.assert_array_equal(coco_mask.decode(found["masks"]).transpose(2, 0, 1), answer.masks)


def test_json_loads_with_pycocotools() -> None:
    answers = [
        replace(detections(3, (40, 30), masks=True), picture="some/000000000009.jpg"),
        replace(detections(2, (40, 30), 1, masks=True), picture="000000000025.png"),
        replace(detections(0, (40, 30), masks=True), picture="30.png"),
    ]
    content = json_text(answers, {"model": "m", "classes": NAMES, "category_ids": [17, 18, 21]})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "width": 40, "height": 30} for number in (9, 25, 30)],
        "categories": [
            {"id": number, "name": name} for number, name in zip((17, 18, 21), NAMES, strict=True)
        ],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        loaded = coco.loadRes(json.loads(content))
    assert [len(loaded.getAnnIds(imgIds=[number])) for number in (9, 25, 30)] == [3, 2, 0]
    first, answer = loaded.anns[1], answers[0]
    x1, y1, x2, y2 = answer.boxes[0].tolist()
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
    assert first["category_id"] == (17, 18, 21)[answer.indices[0]]
    assert first["score"] == pytest.approx(float(answer.scores[0]), abs=1e-6)
    assert answer.masks is not None
    np.testing.assert_array_equal(loaded.annToMask(first), answer.masks[0])


def test_numbers_of_pictures_and_classes_in_json() -> None:
    answers = [
        replace(detections(1, (9, 9), i), picture=p) for i, p in enumerate(["a/0012.jpg", "b7.jpg", "²"])
    ]
    assert [entry["image_id"] for entry in to_coco(answers)] == [12, "b7", "²"]
    assert [e["category_id"] for e in to_coco(answers)] == [int(a.indices[0]) + 1 for a in answers]
    assert [entry["image_id"] for entry in to_coco(answers, image_ids=[5, 6, 7])] == [5, 6, 7]
    assert all("segmentation" not in entry for entry in to_coco(answers))
    assert json.loads(json_text(answers, {"image_ids": [5, 6, 7]}))[2]["image_id"] == 7
    assert json.loads(json_text([], {})) == []
    assert json.loads(json_text(answers[:1], {"category_ids": []}))[0]["category_id"] in (1, 2, 3)


def test_csv_has_a_row_a_box() -> None:
    box = np.array([[1, 2, 30.126, 40]], np.float32)
    answer = Detections("a, b.jpg", (50, 50), box, np.array([0.5]), ["cat"], np.array([0]))
    text = csv_text([answer, detections(0, (9, 9))], [("c.jpg", "broken")])
    assert list(csv.reader(io.StringIO(text))) == [
        ["picture", "label", "score", "x1", "y1", "x2", "y2", "error"],
        ["a, b.jpg", "cat", "0.500000", "1.00", "2.00", "30.13", "40.00", ""],
        ["c.jpg", "", "", "", "", "", "", "broken"],
    ]


def test_answers_in_words_and_in_a_table() -> None:
    boxes, scores = np.zeros((3, 4), np.float32), np.array([0.987, 0.5, 0.4])
    answer = Detections("a.jpg", (9, 9), boxes, scores, ["dog", "cat", "cat"], np.array([1, 0, 0]))
    nothing = detections(0, (9, 9))
    assert (in_words(answer), in_words(nothing)) == ("2 cat, 1 dog", "nothing")
    columns, rows = answers_table([answer, nothing])
    assert columns == ["picture", ">objects", "found", ">best score"]
    assert rows == [["a.jpg", "3", "2 cat, 1 dog", "98.7 %"], ["x.jpg", "0", "nothing", "-"]]


def test_figures_in_a_line_and_a_table() -> None:
    figures: dict[str, Any] = {"ap": 41.256, "ap50": 60.0, "ap75": None, "pictures": 1234}
    assert figures_line(figures) == "AP 41.26 %   AP50 60.00 %   AP75 -   1,234 pictures"
    assert "Mask AP 30.00 %" in figures_line({**figures, "mask_ap": 30.0})
    nine = dict(zip(list(FIGURES)[3:], (None, 1.0, 2.0, 3.0, 4.0, 5.0, None, 6.0, 7.0), strict=True))
    first, second = figures_line({**figures, **nine}).splitlines()
    assert first == figures_line(figures)
    assert second == (
        "AP small -, medium 1.00 %, large 2.00 %   AR of 1 box 3.00 %, of 10 4.00 %, of 100 5.00 %   "
        "AR small -, medium 6.00 %, large 7.00 %"
    )
    masks = {f"mask_{key}": value for key, value in nine.items()}
    third = figures_line({**figures, **nine, **masks}).splitlines()[2]
    assert third.startswith("Mask AP small -, medium 1.00 %, large 2.00 %   Mask AR of 1 box 3.00 %")
    entry = {"ap": 0.5, "ap50": 0.75, "recall": 0.625, "precision": None, "support": 1500}
    none = dict.fromkeys(("ap", "ap50", "recall", "precision")) | {"support": 0}
    title, columns, rows = class_table(
        {"per_class": {"cow": none, "cat": entry, "dog": {**entry, "ap": 0.25}}}
    )
    assert title == "Classes, lowest AP first"
    assert [row[0] for row in rows] == ["dog", "cat", "cow"]
    assert rows[1] == ["cat", "1,500", "50.0", "75.0", "62.5", "-"]
    assert rows[2][1:] == ["0", "-", "-", "-", "-"] and len(columns) == 6


@pytest.mark.parametrize("size", [(1, 1), (64, 48), (40, 900), (900, 30), (640, 480), (2000, 1500)])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_draw_at_any_size(size: tuple[int, int], count: int) -> None:
    answer = detections(count, size, masks=count == 1)
    scale = max(1, 256 // max(size))
    sheet = draw(Image.new("RGB", size, (200, 200, 200)), answer)
    assert sheet.width == max(256, size[0] * scale)
    assert sheet.height >= size[1] * scale + 14  # a legend


def test_draw_shows_boxes_and_masks_in_their_class_colour() -> None:
    size, box = (600, 400), np.array([[100, 200, 300, 350]], np.float32)
    mask = np.zeros((1, 400, 600), bool)
    mask[0, 250:300, 150:250] = True
    answer = Detections("", size, box, np.array([0.9]), ["dog"], np.array([1]), mask)
    sheet = np.asarray(draw(Image.new("RGB", size, (200, 200, 200)), answer)).astype(int)
    assert [sheet[y, x].tolist() for x, y in ((100, 275), (299, 275), (200, 349), (250, 200))] == [
        list(colour(1))
    ] * 4
    assert np.abs(sheet[275, 200] - (np.array(colour(1)) + 200) / 2).max() <= 2  # half transparent
    assert sheet[275, 150].tolist() == list(colour(1))  # its outline
    for x, y in ((125, 275), (320, 275), (90, 275), (200, 360)):  # inside the box, and outside of it
        assert sheet[y, x].tolist() == [200, 200, 200]


def test_draw_leaves_the_picture_and_the_answer_alone() -> None:
    picture = Image.new("RGB", (300, 300), (1, 2, 3))
    answer = detections(5, (300, 300), masks=True)
    before = answer.boxes.copy()
    draw(picture, answer)
    assert picture.getcolors() == [(90000, (1, 2, 3))]
    np.testing.assert_array_equal(answer.boxes, before)


def test_draw_refuses_another_picture() -> None:
    with pytest.raises(ValueError, match="^x.jpg: the picture is 30 x 40 pixels, expected 40 x 30$"):
        draw(Image.new("RGB", (30, 40)), detections(1, (40, 30)))


@pytest.mark.parametrize("size", [(640, 480), (256, 192), (60, 900)])
@pytest.mark.parametrize("count", [1, 10, 100])
def test_tags_stay_inside_and_hide_no_other(size: tuple[int, int], count: int) -> None:
    answer = detections(count, size, seed=count)
    places = _placed(answer, answer.boxes, font(14), size)
    assert places[0][0] == 0  # the best one has a tag
    taken = np.zeros(size[::-1], int)
    for _, text, (x1, y1, x2, y2) in places:
        assert 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]
        assert font(14).getlength(text) <= x2 - x1
        taken[y1:y2, x1:x2] += 1
    assert taken.max() == 1


def test_tags_become_short_before_they_vanish() -> None:
    """Many boxes in one place: label and score, then the score, then none; no box is without a line."""
    boxes = np.tile(np.array([[100, 100, 130, 130]], np.float32), (40, 1))
    scores = np.linspace(0.99, 0.5, 40)
    answer = Detections("", (640, 480), boxes, scores, ["dog"] * 40, np.ones(40, int))
    texts = [text for _, text, _ in _placed(answer, boxes, font(14), (640, 480))]
    assert texts[0] == "dog 99 %" and len(texts) < 40
    assert any(text.isdigit() for text in texts)


def test_tags_of_a_truth_have_no_score() -> None:
    answer = detections(3, (640, 480))
    answer.scores = np.ones(3)
    texts = [text for _, text, _ in _placed(answer, answer.boxes, font(14), (640, 480))]
    assert texts == answer.labels


def test_draw_on_a_real_picture(shared: Path) -> None:
    """The picture stays what it is beside the boxes; equal answers give equal drawings."""
    path = next((shared / "data/coco128/train2017").glob("*.jpg"))
    picture = read_picture(path)
    box = np.array([[50, 50, 200, 200]], np.float32)
    answer = Detections("", picture.size, box, np.array([0.9]), ["dog"], np.array([1]))
    sheet = draw(picture, answer)
    region = (0, 210, picture.width, picture.height)
    np.testing.assert_array_equal(np.asarray(sheet.crop(region)), np.asarray(picture.crop(region)))
    assert sheet.tobytes() == draw(picture, answer).tobytes()


def test_without_torch() -> None:
    code = (
        "import sys, metamobile_cli\n"
        "import metamobile.tasks.detect.results, metamobile.tasks.detect.metric\n"
        "print(*{'torch', 'torchvision', 'timm'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not ran.stdout.strip()


def test_all_that_a_results_module_has() -> None:
    expected = {*vars(ResultsModule), *ResultsModule.__annotations__}
    lacking = [name for name in expected if name[0] != "_" and not hasattr(results, name)]
    assert not lacking
    assert results.HEADLINES[0][0] == "ap"
