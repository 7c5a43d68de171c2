"""The operators: formulas against counters, and reach against graphs written from definitions."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metamobile
from metamobile.models.blocks import irmb
from metamobile.models.operators import Cascade
from metamobile.study.operators import count_flops, operator_kinds, study_complexity
from metamobile.study.reach import measure_path_length, reached
from metamobile_cli import run

SETTINGS = [{"window": 4}, {"window": 5, "kernel": 5, "expand_ratio": 3}]
every_kind = pytest.mark.parametrize("name", operator_kinds())


@every_kind
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("channels", "windows"), [(8, 1), (24, 3)])
def test_formulas_equal_the_counts(name: str, settings: dict, channels: int, windows: int) -> None:
    kind = operator_kinds(**settings)[name]
    side = windows * settings["window"]
    with torch.device("meta"):
        module = kind.make(channels)
    assert kind.parameters(channels) == sum(p.numel() for p in module.parameters())
    assert kind.flops(channels, side**2) == count_flops(module, channels, side)


def test_the_papers_formulas_by_hand() -> None:
    """Table 2 at C = 10, a 6x6 map, 3x3 windows, k = 5."""
    kinds = operator_kinds(window=3, kernel=5)
    figures = {name: (kind.parameters(10), kind.flops(10, 36), kind.path(6)) for name, kind in kinds.items()}
    assert figures["MHSA"] == (440, 28_800 + 51_840 + 3_888, 1)
    assert figures["W-MHSA"] == (440, 28_800 + 12_960 + 972, math.inf)
    assert figures["Conv"] == (2_510, 180_000, 3)
    assert figures["DW-Conv"] == (260, 18_000, 3)
    assert figures["iRMB, strided windows"][2] == 12 / 10


def steps(side: int, window: int | None, cut: str, kernel: int | None) -> np.ndarray:
    """(L, L): 1 where one module leads from a position to another, by definition of windows and kernels."""
    rows, columns = np.divmod(np.arange(side * side), side)
    reach = np.eye(side * side)
    if window is not None:
        groups = side // window
        label = {"strided": lambda at: at % groups, "contiguous": lambda at: at // window}[cut]
        cell = label(rows) * side + label(columns)
        reach = (cell[:, None] == cell[None]).astype(float)
    if kernel is not None:
        near = [np.abs(at[:, None] - at[None]) <= kernel // 2 for at in (rows, columns)]
        reach = reach @ (near[0] & near[1])
    return (reach > 0).astype(float)


def least_power(step: np.ndarray) -> float:
    power = step
    for count in range(1, len(step) + 1):
        if (power > 0).all():
            return count
        power = (power @ step > 0).astype(float)
    return math.inf


@pytest.mark.parametrize(("side", "window"), [(4, 4), (8, 4), (12, 3), (12, 2)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_reach_is_that_of_the_definitions(side: int, window: int, kernel: int) -> None:
    kinds = operator_kinds(window, kernel)
    expected = {
        "MHSA": 1,
        "W-MHSA": least_power(steps(side, window, "contiguous", None)),
        "Conv": least_power(steps(side, None, "", kernel)),
        "DW-Conv": least_power(steps(side, None, "", kernel)),
        "iRMB, contiguous windows": least_power(steps(side, window, "contiguous", kernel)),
        "iRMB, strided windows": least_power(steps(side, window, "strided", kernel)),
    }
    assert expected == {
        name: measure_path_length(partial(kind.make, 2), 2, side) for name, kind in kinds.items()
    }


def test_what_is_said_of_reach() -> None:
    """A window a block where they lie side by side; a convolution's reach alone, rounded up."""
    assert least_power(steps(28, 7, "contiguous", 3)) == 28 // 7
    assert (
        least_power(steps(28, 7, "strided", 3)) == 2 < operator_kinds(7, 3)["iRMB, strided windows"].path(28)
    )
    assert least_power(steps(13, None, "", 5)) == math.ceil(2 * 12 / 4)


def test_reached_names_the_neighbours() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1).double()
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    found = reached(conv, x, torch.tensor([0, 7]))
    assert found[0].nonzero().flatten().tolist() == [0, 1, 5, 6]
    assert found[1].nonzero().flatten().tolist() == [1, 2, 3, 6, 7, 8, 11, 12, 13]


def test_operators_tell_the_papers_path() -> None:
    """`max_path_length` of the modules themselves is the formula of the study."""
    kinds = operator_kinds(7, 5)
    operator = irmb(16, kernel_size=5, dim_head=16).operator
    assert isinstance(operator, Cascade)
    assert operator.max_path_length(28, 28) == kinds["iRMB, strided windows"].path(28)


def test_rows_files_and_picture(tmp_path: Path) -> None:
    rows = metamobile.study_complexity(tmp_path, channels=[8, 16], sides=[4, 32], window=4)
    assert len(rows) == 6 * 3
    by_size = {(row.module, row.channels, row.side): row for row in rows}
    assert by_size["DW-Conv", 16, 4].path_measured == 3
    assert by_size["DW-Conv", 16, 32].path_measured is None  # too large a map for the experiment
    assert by_size["W-MHSA", 16, 4].path_formula == math.inf and by_size["W-MHSA", 16, 4].path_measured == 1
    table = json.loads((tmp_path / "complexity.json").read_text())
    assert table["settings"] == {"window": 4, "kernel": 3, "expand_ratio": 4}
    assert len(table["rows"]) == len(rows)
    assert {row["path_formula"] for row in table["rows"] if row["module"] == "W-MHSA"} == {"never"}
    with Image.open(tmp_path / "complexity.png") as picture:
        assert picture.size == (1650, 1200)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sides": [7, 15]}, "window 7 does not divide side 15, .* next larger one is 21"),
        ({"kernel": 4}, "kernel 4: expected an odd number of at least 3"),
        ({"channels": []}, r"channels \[\].*expected positive numbers"),
        ({"sides": [0]}, "expected positive numbers"),
    ],
)
def test_what_cannot_be_studied(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study_complexity(**arguments)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--channels", "8", "--sides", "4,8", "--window", "4"]
    assert run(["study", "complexity", *sizes, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0][3:] == ["parameters", "counted", "FLOPs", "counted", "path", "measured"]
    assert ["W-MHSA", "8", "8", "288", "288", "68,608", "68,608", "inf", "inf"] in lines
    assert "complexity.png" in err
    assert run(["study", "complexity", "--sides", "7;14"]) == 2
    assert "--sides '7;14': expected whole numbers with commas" in capsys.readouterr().err
