"""The report: every part is there, nothing is fetched, no text of the run is markup, half a run will do."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest

from fake_run import make_run
from metamobile.report import write_report
from metamobile.report.charts import Line, line_chart, ticks
from metamobile.report.evaluation import class_rows, matrix_view
from metamobile.report.page import duration

VOID = {"meta", "img", "br", "link", "input"}


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


def test_what_is_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder: it holds no metrics.jsonl; expected what"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start"}\noops\n{"kind": "start"}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        write_report(tmp_path)


def test_matrix_and_rows() -> None:
    names = ["cat", "dog"]
    view = matrix_view([[8, 2], [0, 0]], names)
    assert [(cell["style"], cell["text"]) for cell in view["cells"]] == [("hit", "8"), ("miss", "2")]
    assert view["pairs"] == [
        {"truth": "cat", "predicted": "dog", "count": 2, "share": "20.0 %", "width": 100.0}
    ]
    figures = {"precision": 1.0, "recall": 0.8, "f1": 0.889, "support": 10}
    nothing = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    rows = class_rows({"confusion": [[8, 2], [0, 0]], "per_class": {"cat": figures, "dog": nothing}}, names)
    assert [row["name"] for row in rows] == ["dog", "cat"]
    assert (rows[1]["recall"], rows[1]["taken_for"], rows[0]["taken_for"]) == (80.0, "dog (2)", "")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.31, 2.2, [0, 0.5, 1, 1.5, 2, 2.5]),
        (1e-6, 2e-3, [0, 5e-4, 1e-3, 1.5e-3, 2e-3]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_chart_of_nothing_of_a_point_and_of_nan() -> None:
    assert line_chart("t", [Line("a", "main", [])]) is None
    assert line_chart("t", [Line("a", "main", [(1, 5.0)])]) is None
    assert line_chart("t", [Line("a", "main", [(1, float("nan")), (2, 5.0)])]) is None
    chart = line_chart("t", [Line("a", "main", [(1, 5.0), (2, 5.0)])], best_epoch=1)
    assert chart and chart.mark and chart.columns[0]["tip"] == "epoch 1\na 5"


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, ("42", "s")), (150, ("2:30", "min")), (6132, ("1:43", "h"))]
)
def test_duration(seconds: float, text: tuple[str, str]) -> None:
    assert duration(seconds) == text
