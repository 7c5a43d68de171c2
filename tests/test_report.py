"""The report: every part is there, nothing is fetched, no text of the run is markup, half a run will do."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fake_run import make_dense_run, make_run
from metamobile.data.box_sample import BoxSample
from metamobile.data.masks import MaskSample
from metamobile.report import page as page_module
from metamobile.report import write_report
from metamobile.report.page import duration
from metamobile.tasks import get_results
from metamobile.tasks.detect.metric import Metric as DetectMetric
from metamobile.tasks.detect.results import Detections
from metamobile.tasks.segment.metric import Metric as SegmentMetric
from metamobile.tasks.segment.results import Segmentation

VOID = {"meta", "img", "br", "link", "input"}
EVIL = '"><script>alert(1)</script>'


class Outline(html.parser.HTMLParser):
    """Checks that every element is closed; collects ids, texts of headings and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tips: list[str] = []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                self.addresses.append(value or "")
            if name == "data-tip":
                self.tips.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_every_part_is_there_and_nothing_is_fetched(classes: int, tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "pets", classes=classes))
    assert path == tmp_path / "pets" / "report.html"
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert {"curves", "wrong", "confusion", "classes", "next", "made"} <= set(outline.ids)
    assert all(address.startswith(("#", "data:image/")) for address in outline.addresses)
    assert not re.search(r"url\(|@import|https?://", page)
    assert len(page) < 600_000
    assert page.count("data:image/jpeg;base64,") == 12


def test_figures_are_those_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pets")
    evaluation = json.loads((run / "evaluation.json").read_text())
    page = write_report(run).read_text()
    confusion = evaluation["confusion"]
    wrong = sum(map(sum, confusion)) - sum(row[i] for i, row in enumerate(confusion))
    assert f"{evaluation['top1']:.1f}<small>%" in page
    assert f"{wrong:,} of {sum(map(sum, confusion)):,} validation pictures wrong" in page
    assert "1.23<small>M" in page and "of 40<" in page
    tips = Outline(page).tips
    share = f"{100 * confusion[0][0] / sum(confusion[0]):.1f} %"
    assert f"tench\nnamed tench: {confusion[0][0]} of {sum(confusion[0])} ({share})" in tips
    assert any(tip.startswith("epoch 40\naveraged") and "raw weights" in tip for tip in tips)


def test_texts_of_the_run_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>pets", classes=2)
    evil = '"><script>alert(1)</script>'
    text = (run / "evaluation.json").read_text().replace("tench", json.dumps(evil)[1:-1])
    (run / "evaluation.json").write_text(text)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + f"# {evil}\n")
    page = write_report(run).read_text()
    Outline(page)
    assert "<script>alert" not in page and "<b>pets" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_lost_or_broken_picture_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pets")
    first, second = (
        Path(entry["path"]) for entry in json.loads((run / "evaluation.json").read_text())["wrong"][:2]
    )
    first.unlink()
    second.write_bytes(second.read_bytes()[:60])
    page = write_report(run).read_text()
    assert "the picture is no longer there" in page
    assert page.count("data:image/jpeg;base64,") == 10


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pets", epochs=3, planned=40)
    (run / "evaluation.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "ste')  # killed while writing
    page = write_report(run).read_text()
    outline = Outline(page)
    assert "curves" in outline.ids and "confusion" not in outline.ids
    assert f"stands at epoch 3 of 40: metamobile train --resume {run}" in page


def test_a_run_without_one_epoch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pets", epochs=1)
    (run / "evaluation.json").unlink()
    start = (run / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(start + "\n")
    assert "curves" not in Outline(write_report(run).read_text()).ids


def test_a_later_record_of_an_epoch_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pets", epochs=4)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**last, "top1": 12.5}) + "\n")
    tips = Outline(write_report(run).read_text()).tips
    assert [tip for tip in tips if tip.startswith("epoch 4\naveraged")][0].startswith(
        "epoch 4\naveraged 12.5 %"
    )


@pytest.mark.parametrize(
    ("task", "classes"), [("detect", 1), ("detect", 80), ("segment", 6), ("segment", 150)]
)
def test_dense_runs_have_every_part_and_fetch_nothing(task: str, classes: int, tmp_path: Path) -> None:
    run = make_dense_run(tmp_path / "street", task, classes)
    evaluation = json.loads((run / "evaluation.json").read_text())
    page = write_report(run).read_text(encoding="utf-8")
    outline = Outline(page)
    parts = {"curves", "wrong", "confusion", "classes", "next", "made"}
    assert parts <= set(outline.ids) and ("recall" in outline.ids) == (task == "detect")
    assert all(address.startswith(("#", "data:image/")) for address in outline.addresses)
    assert len(page) < 1_500_000
    assert page.count("data:image/jpeg;base64,") == 12 and "4 more" in page
    assert "no longer there" not in page
    for key, label, unit, note in get_results(task).HEADLINES:
        value = evaluation.get(key)
        shown = "-</p>" if value is None else f"{value:.1f}<small>{unit}</small></p>"
        card = f'<p class="label">{label}</p>\n    <p class="value">{shown}\n    <p class="note">{note}</p>'
        assert (card in page) == (key in evaluation)
    nothing = [value for entry in evaluation["per_class"].values() for value in entry.values()]
    assert page.count("<td data-missing>-</td>") == nothing.count(None)
    assert "smoothed labels" not in page and "validation pictures wrong" not in page
    label = {"detect": "AP", "segment": "mIoU"}[task]
    assert f"chosen by validation {label} of the averaged weights" in page
    assert any(re.match(r"epoch 24\naveraged \d+\.\d %$", tip) for tip in outline.tips)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_names_of_dense_runs_are_escaped(task: str, tmp_path: Path) -> None:
    names = [EVIL, "</style>", "{{ 7 * 7 }}", "<!--", "a & b", "x" * 90, "&lt;", "ещё один"]
    run = make_dense_run(tmp_path / "<i>run", task, names=names)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["wrong"][0] |= {"path": f"{EVIL}/<u>.jpg", "note": EVIL}
    evaluation["wrong"][1]["drawing"] = f"worst/{EVIL}.jpg"
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_report(run).read_text()
    assert not re.search(r"<script>alert|<i>run|<u>|<!--|\b49\b.*named 49", page)
    assert page.count("<style>") == page.count("</style>") == 1
    tips = Outline(page).tips
    assert any(tip.startswith(f"{EVIL}\nnamed {EVIL}: ") for tip in tips)
    assert "{{ 7 * 7 }}" in page and "&amp;lt;" in page and "ещё один" in page


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_dense_runs_with_parts_missing(task: str, tmp_path: Path) -> None:
    run = make_dense_run(tmp_path / "run", task, 6)
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    main, *_ = get_results(task).HEADLINES[0]

    def page_of(evaluation: dict) -> tuple[str, set[str]]:
        path.write_text(json.dumps(evaluation))
        page = write_report(run).read_text()
        return page, set(Outline(page).ids)

    without = {key: value for key, value in evaluation.items() if key not in ("curves", "wrong")}
    _, ids = page_of(without)
    assert {"confusion", "classes"} <= ids and not ids & {"recall", "wrong", "enlarged"}
    page, ids = page_of({key: value for key, value in evaluation.items() if not key.startswith("confusion")})
    assert "confusion" not in ids and "classes" in ids and "Most often taken for" not in page
    page, _ = page_of({**evaluation, main: None})
    assert re.search(r'<p class="value">-</p>', page)
    wrong = [{**evaluation["wrong"][0], "score": None}]
    del wrong[0]["note"]
    page, _ = page_of({**evaluation, "wrong": wrong})
    assert "<b>-</b></p>" in page and "more</summary>" not in page
    path.unlink()
    page = write_report(run).read_text()
    assert not set(Outline(page).ids) & {"confusion", "classes", "recall", "wrong"}
    assert page.count('<p class="label">') == 4  # the best epoch's figure, its number, parameters, time


def test_a_lost_or_broken_drawing_is_said(tmp_path: Path) -> None:
    run = make_dense_run(tmp_path / "run", "segment", 6)
    (run / "worst" / "00.jpg").unlink()
    (run / "worst" / "01.jpg").write_bytes(b"\xff\xd8\xff")
    page = write_report(run).read_text()
    assert page.count("the drawing is no longer there") == 1 and "01.jpg: " in page
    assert page.count("data:image/jpeg;base64,") == 10 and page.count('class="enlarge"') == 10


def test_any_task_that_says_what_its_figures_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The page asks for no task's name: one that does not exist is shown by what it declares."""
    run = make_dense_run(tmp_path / "run", "segment", 3)
    recipe = (run / "recipe.yaml").read_text().replace("task: segment", "task: count")
    (run / "recipe.yaml").write_text(recipe)
    with pytest.raises(ValueError, match="no task is called 'count'"):
        write_report(run)
    asked = []
    results = SimpleNamespace(
        HEADLINES=[("exact", "Exact", "%", "counted right"), ("top3", "Top-3", "%", "no news of 3 classes")],
        CLASS_COLUMNS=[("support", "Crowds", "of this class"), ("hit", "Hit %", "counted right")],
    )
    monkeypatch.setattr(page_module, "get_results", lambda name: asked.append(name) or results)
    per_class = {
        name: {"hit": hit, "support": 10} for name, hit in (("few", 0.5), ("many", 1.0), ("no", 0.9))
    }
    counts = [[5, 5, 0], [0, 10, 0], [1, 0, 9]]
    evaluation = {"exact": 80.0, "top3": 100.0, "per_class": per_class, "confusion": counts}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    lines = [
        {"epoch": i, "exact": e, "train_loss": 1.0, "lr": 1.0} for i, e in enumerate((40, 80, 80, 60), 1)
    ]
    speed = {"kind": "epoch", "seconds": 1.0, "images_per_second": 1.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps({**line, **speed}) + "\n" for line in lines))
    page = write_report(run).read_text()
    assert asked == ["count"]
    assert "80.0<small>%" in page and "6 of 30 validation crowds wrong" in page and "Top-3" not in page
    assert '<p class="value">2<small>of 24' in page and "chosen by validation exact of" in page
    assert re.findall(r'<th scope="row">(\w+)', page) == ["few", "no", "many"]
    assert "Lowest hit first" in page and "many (5)" in page


def test_what_the_metric_of_segments_computes_is_shown(tmp_path: Path) -> None:
    truth = np.array([[0, 0, 1, 1]] * 4, np.uint8)
    Image.fromarray(truth).save(tmp_path / "truth.png")
    metric = SegmentMetric(["road", "sky"], [MaskSample(tmp_path / "a.jpg", tmp_path / "truth.png")])
    metric.update([Segmentation("a.jpg", (4, 4), np.zeros((4, 4), np.uint8), ["road", "sky"])], [0])
    run = make_dense_run(tmp_path / "run", "segment", 2)
    (run / "evaluation.json").write_text(json.dumps(metric.compute()))
    page = write_report(run).read_text()
    # all is named road: IoU 8 / 16 of road, 0 / 8 of sky; precision of sky is a share of nothing
    assert "25.0<small>%" in page and page.count("<td data-missing>-</td>") == 1
    assert "sky\nnamed road: 8 of 8 (100.0 %)" in Outline(page).tips


def test_what_the_metric_of_boxes_computes_is_shown(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 20, 20], [40, 40, 60, 60]], np.float32)
    labels, areas = np.array([0, 1]), np.array([400.0, 400.0])
    sample = BoxSample(tmp_path / "a.jpg", (64, 64), boxes, labels, np.zeros(2, bool), areas, 1)
    metric = DetectMetric(["cat", "dog", "yak"], [sample])
    scores, found = np.array([0.9], np.float32), np.array([0])
    metric.update([Detections("a.jpg", (64, 64), boxes[:1], scores, ["cat"], found)], [0])
    run = make_dense_run(tmp_path / "run", "detect", 3)
    (run / "evaluation.json").write_text(json.dumps(metric.compute()))
    page = write_report(run).read_text()
    outline = Outline(page)
    # the cat is found exactly, the dog missed, and there is no yak: AP is 100, 0 and nothing
    assert "50.0<small>%" in page and "recall" in outline.ids
    assert {"cat\naverage precision 100.0 %", "dog\naverage precision 0.0 %"} <= set(outline.tips)
    assert "mean, IoU 0.75\naverage precision 50.0 %" in outline.tips
    assert "dog\nmissed: 1 of 1 (100.0 %)" in outline.tips
    assert re.search(r"yak</th>\s*<td data-value=\"0\">0</td>\s*<td data-missing>-</td>", page)


def test_what_is_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder: it holds no metrics.jsonl; expected what"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start"}\noops\n{"kind": "start"}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, ("42", "s")), (150, ("2:30", "min")), (6132, ("1:43", "h"))]
)
def test_duration(seconds: float, text: tuple[str, str]) -> None:
    assert duration(seconds) == text
