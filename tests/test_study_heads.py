"""Published detectors and segmenters: every row is reached from our counts by named parts, or is exempt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from metamobile.study import heads
from metamobile.study.heads import PRINTED, HeadRow, as_printed, count_head, study_heads
from metamobile.study.tables import head_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[HeadRow]:
    return study_heads(folder)


def find(rows: list[HeadRow], head: str, model: str) -> HeadRow:
    return next(row for row in rows if (row.head, row.model) == (head, model))


def test_every_row_agrees_or_is_exempt_with_its_reason(rows: list[HeadRow]) -> None:
    assert len(rows) == len(PRINTED) == 48
    assert [(row.head, row.model) for row in rows if not row.agrees] == []
    for row in rows:
        assert (row.flops_agree is None) == bool(row.exempt) == (row.size is None)
    exempt = [(row.head, row.model) for row in rows if row.exempt]
    versions = ["emov2_1m", "emov2_2m", "emov2_5m", "emov2_20m"]
    assert exempt == [("retinanet", name) for name in versions] + [
        ("mask_rcnn", name) for name in ("emo_5m", *versions)
    ]


def test_a_row_by_hand(rows: list[HeadRow]) -> None:
    """DeepLabv3 EMOv2-1M; its auxiliary head is a 3x3 convolution, a norm and a 1x1 with bias."""
    assert find(rows, "ssdlite", "emo_1m").parameters == 2_311_980
    row = find(rows, "deeplabv3", "emov2_1m")
    stage_3, stage_4 = 80, 180  # channels
    auxiliary = stage_3 * 9 * 256 + 2 * 256 + 256 * 150 + 150
    amounts = {part.name: part.amount for part in row.parameter_parts}
    assert amounts == {"the classifier's final norm": 2 * stage_4, "the auxiliary head": -auxiliary}
    # the picture's mean, 256 channels and one value, is resized to 16x16: 4 an element
    assert [part.amount for part in row.flops_parts] == [4 * 256 * 16 * 16]


def test_what_is_said(rows: list[HeadRow]) -> None:
    assert find(rows, "deeplabv3", "emo_1m").explained == ""
    assert find(rows, "mask_rcnn", "emov2_1m").explained == ""
    assert "FLOPs without attention's products (" in find(rows, "fpn", "emo_5m").explained
    assert find(rows, "ssdlite", "emo_5m").explained.endswith("FLOPs rounded, not cut off")


def test_a_wrong_figure_does_not_agree(rows: list[HeadRow]) -> None:
    row = find(rows, "deeplabv3", "emo_5m")
    assert not replace(row, printed_parameters="10.4").agrees
    assert not replace(row, printed_flops="5.9").agrees
    without = replace(row, flops_parts=[])
    assert without.parameters_agree and not without.flops_agree and not without.agrees


def test_digits() -> None:
    assert as_printed(6_077_000, "6.0", 10**6) == "6.0"
    assert as_printed(163_999_999_999, "163", 10**9) == "163"
    assert as_printed(1_760_000_000, "1.8", 10**9) == "1.7"
    assert as_printed(1_760_000_000, "1.8", 10**9, rounded=True) == "1.8"


def test_json(folder: Path, rows: list[HeadRow]) -> None:
    written = json.loads((folder / "heads.json").read_text("utf-8"))
    assert set(written) == {"data", "versions", "rows"}
    assert len(written["rows"]) == len(rows)
    first = written["rows"][0]
    assert (first["model"], first["head"], first["task"]) == ("emo_1m", "deeplabv3", "segment")
    assert (first["size"], first["window"], first["agrees"]) == ([512, 512], 7, True)
    assert first["parameters"] == rows[0].parameters
    assert [path.name for path in folder.iterdir()] == ["heads.json"]


def test_table(rows: list[HeadRow]) -> None:
    _, columns, cells = head_table(rows)
    assert {len(line) for line in cells} == {len(columns)}
    last = dict(zip(columns, cells[-1], strict=True))
    assert last[">px"] == last[">G FLOPs"] == "-"
    assert last[">G FLOPs, paper's"] == "244" and last["agrees"] == "parameters"
    assert last["what the paper's figure counts"] == heads.NOT_STATED


def test_one_row_alone(rows: list[HeadRow]) -> None:
    assert count_head(PRINTED[0]) == rows[0]
