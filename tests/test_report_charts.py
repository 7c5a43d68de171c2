"""The report's matrix, tables of classes and charts: what is drawn is what the numbers say."""

from __future__ import annotations

import numpy as np
import pytest

from metamobile.report.charts import Line, line_chart, recall_chart, ticks
from metamobile.report.confusion import Confusion, matrix_view, short
from metamobile.report.evaluation import class_rows, precision_recall

SHARES = [("support", "Pictures", ""), ("recall", "Recall %", ""), ("f1", "F1 %", "")]


def test_matrix_and_rows() -> None:
    view = matrix_view(Confusion([[8, 2], [0, 0]], ["cat", "dog"]))
    assert [(cell["style"], cell["text"]) for cell in view["cells"]] == [("hit", "8"), ("miss", "2")]
    assert [(entry["title"], len(entry["rows"])) for entry in view["lists"]] == [("Most often confused", 1)]
    row = view["lists"][0]["rows"][0]
    assert (row["truth"], row["predicted"], row["count"], row["width"]) == ("cat", "dog", "2", 100.0)
    assert row["note"] == "20.0 % of cat" and not view["notes"]
    figures = {"recall": 0.8, "f1": 0.889, "support": 10}
    nothing = {"recall": 0.0, "f1": 0.0, "support": 0}
    evaluation = {"confusion": [[8, 2], [0, 0]], "per_class": {"cat": figures, "dog": nothing}}
    rows = class_rows(evaluation, SHARES)
    assert [row["name"] for row in rows] == ["dog", "cat"]
    assert (rows[1]["recall"], rows[1]["taken_for"], rows[0]["taken_for"]) == (80.0, "dog (2)", "")


def test_rows_without_a_figure_come_last() -> None:
    per_class = {"a": {"recall": None, "support": 0}, "b": {"recall": 0.5}, "c": {"recall": 0.25, "f1": None}}
    rows = class_rows({"per_class": per_class}, SHARES)
    assert [(row["name"], row["recall"], row["f1"]) for row in rows] == [
        *(("c", 25.0, None), ("b", 50.0, None), ("a", None, None))
    ]


def test_a_background_is_what_is_missed_and_what_is_not_there() -> None:
    """Ten cats: six found, one named dog, three missed; two boxes named dog where nothing is."""
    counts = [[6, 1, 3], [0, 4, 0], [0, 2, 0]]
    view = matrix_view(Confusion(counts, ["cat", "dog", "background"], background=True))
    styles = [(cell["style"], cell["tip"]) for cell in view["cells"]]
    assert styles == [
        ("hit", "cat\nnamed cat: 6 of 10 (60.0 %)"),
        ("miss", "cat\nnamed dog: 1 of 10 (10.0 %)"),
        ("ground", "cat\nmissed: 3 of 10 (30.0 %)"),
        ("hit", "dog\nnamed dog: 4 of 4 (100.0 %)"),
        ("ground", "background\nnamed dog: 2 of 2 (100.0 %)"),
    ]
    lists = [
        [(row["truth"], row["predicted"], row["note"]) for row in part["rows"]] for part in view["lists"]
    ]
    assert lists == [
        [("cat", "dog", "10.0 % of cat")],
        [("cat", "", "30.0 % of cat")],
        [("dog", "", "28.6 % of what was named dog")],
    ]
    evaluation = {"confusion": counts, "confusion_names": ["cat", "dog", "background"]}
    rows = class_rows({**evaluation, "per_class": {"cat": {"recall": 0.6}, "dog": {"recall": 1.0}}}, SHARES)
    assert [row["taken_for"] for row in rows] == ["dog (1)", ""]


def test_a_large_matrix_keeps_the_classes_with_the_most_mistakes() -> None:
    counts = np.diag(np.full(151, 50))
    for i in range(60):  # pairs (149, 0), (148, 1), ...: 30 of them touch the 60 classes 0 to 29, 120 to 149
        counts[149 - i, i] = 1 + (i < 30)
    counts[150, 150] = 0
    counts[7, 150] = counts[150, 8] = 1
    names = [*(f"class {i}" for i in range(150)), "background"]
    view = matrix_view(Confusion(counts.tolist(), names, background=True))
    assert view["names"] == [*(names[:30]), *(names[120:150]), "background"]
    assert view["notes"] == [
        "Of 150 classes, the 60 with the most mistakes are drawn; shares are of all that a row has."
    ]
    assert len(view["cells"]) == 60 + 30 + 2
    assert len(matrix_view(Confusion(counts[:100, :100].tolist(), names[:100]))["names"]) == 100


def test_large_counts_are_told_as_shares() -> None:
    view = matrix_view(Confusion([[1_950_000, 40_000, 10_000], [0, 0, 0], [5, 0, 4]], ["sky", "sea", "sand"]))
    # 10,000 of two million are half a percent, the least that is drawn; 5 of 9 are 56 percent
    assert [cell["text"] for cell in view["cells"]] == ["98", "2", "0", "56", "44"]
    assert view["notes"] == ["Numbers are percent of the row.", "Shares under 0.5 % are left blank."]
    assert [row["count"] for row in view["lists"][0]["rows"]] == ["40 k", "10 k", "5"]
    small = matrix_view(Confusion([[1_990_001, 9_999], [0, 0]], ["sky", "sea"]))
    assert len(small["cells"]) == 1
    assert [short(count) for count in (9_999, 10_000, 1_234_567)] == ["9999", "10 k", "1.23 M"]


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


def test_precision_over_recall_lies_where_its_numbers_say() -> None:
    curves = {"recall": [0, 0.5, 1], "iou50": [1, 0.5, 0], "iou75": [0.5, None, 0]}
    curves["per_class"] = {"low": [0.5, 0, 0], "high": [1, 1, 1]}  # type: ignore[assignment]
    chart = recall_chart("t", *precision_recall(curves))
    assert chart and chart.axes == ("recall", "precision")
    left, right, top, bottom = chart.left, chart.right, chart.top, chart.bottom
    middle = (left + right) / 2, (top + bottom) / 2
    corners = [(left, top), middle, (right, bottom)]
    assert _points(chart.lines[0].path) == pytest.approx(np.array(corners), abs=0.06)
    assert len(_points(chart.lines[1].path)) == 2
    assert [line.tip for line in chart.thin] == [
        "high\naverage precision 100.0 %",
        "low\naverage precision 16.7 %",
    ]
    assert _points(chart.thin[0].path)[:, 1] == pytest.approx(top)
    assert [text for _, text in chart.x_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def _points(path: str) -> np.ndarray:
    return np.array([[float(part) for part in point.split()] for point in path.removeprefix("M").split("L")])


def test_no_chart_of_recall_without_a_curve() -> None:
    empty = {"recall": [0, 0.5, 1], "iou50": [], "iou75": [], "per_class": {}}
    for curves in (None, {}, empty, {**empty, "per_class": {"cat": [None, float("nan"), 0.5]}}):
        assert recall_chart("t", *precision_recall(curves)) is None
