"""The papers' tables beside ours: what is printed, what is counted, and what an empty cell says."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image
from typer.main import get_command

import metamobile
from metamobile.models.variants import VARIANTS
from metamobile.study import ablate
from metamobile.study.complexity import Complexity
from metamobile.study.grids import GRIDS
from metamobile.study.heads import PRINTED, HeadRow, Printed
from metamobile.study.reproduce import TABLES, Reproduced, classify, dense, find_data, reproduce, studies
from metamobile.study.reproduce.page import render
from metamobile.study.reproduce.printed import COLUMNS, EMOS, PEER_ROWS, accuracy
from metamobile.study.reproduce.request import Request, other_data
from metamobile.training.recipe import load_recipe
from metamobile.weights.published import PUBLISHED
from metamobile_cli import app as verbs
from metamobile_cli.options import split_settings


def column(table: Reproduced, name: str) -> list[str]:
    return [row[table.columns.index(name)] for row in table.rows]


def check_shape(table: Reproduced) -> None:
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert len(set(table.columns)) == len(table.columns)
    assert all(isinstance(cell, str) and cell for row in table.rows for cell in row)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without runs; its empty results go before the checkout's."""
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_name_the_list() -> None:
    listed, left = reproduce()
    assert column(listed, "name") == list(TABLES)
    assert "EMOv2 table 13" in column(left, "in the paper")


def test_errors_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="no table 'imagnet'; .*did you mean 'imagenet'"):
        reproduce("imagnet")
    with pytest.raises(ValueError, match="expected one or the other"):
        reproduce("speed", all=True)


def test_data_are_told_apart(tmp_path: Path) -> None:
    assert find_data(tmp_path, ["imagenet", "recipes", "speed"]) == {"imagenet": tmp_path}
    assert find_data({"coco": tmp_path}, ["imagenet", "coco-ssdlite"]) == {"coco": tmp_path}
    with pytest.raises(ValueError, match="say imagenet=DIR or coco=DIR"):
        find_data(tmp_path, ["imagenet", "coco-ssdlite"])
    with pytest.raises(ValueError, match="no effect: nothing is measured for speed"):
        find_data(tmp_path, ["speed"])
    with pytest.raises(ValueError, match="no data 'coca'; .*did you mean 'coco'"):
        find_data({"coca": tmp_path}, ["coco-ssdlite"])
    with pytest.raises(ValueError, match="coco=.* has no effect"):
        find_data({"coco": tmp_path}, ["imagenet"])
    with pytest.raises(ValueError, match="no such folder; expected the IMAGENET data"):
        find_data(tmp_path / "no", ["imagenet"])


def test_printed_figures_are_complete() -> None:
    assert set(EMOS) == set(VARIANTS)
    for name, (parameters, flops, top1, _) in EMOS.items():  # against another transcription of the same rows
        row = VARIANTS[name]
        assert int(row.parameters / 1e5) / 10 == float(parameters)
        assert float(flops.replace(",", "")) == pytest.approx(row.flops, rel=0.005)
        assert float(top1) == round(row.top1, 1)
    for printed in PRINTED:
        figures = accuracy(printed.head, printed.name, printed.size[0] if printed.size else None)
        assert len(figures) == len(COLUMNS[printed.head])
    assert all(len(row.figures) == len(COLUMNS[head]) for head, rows in PEER_ROWS.items() for row in rows)


def test_imagenet_counts_ours_and_prints_the_papers(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "EMOS", {"emo_1m": EMOS["emo_1m"]})
    monkeypatch.setattr(classify, "peer_costs", lambda peer: (1_234_567, 89_000_000))
    (table,) = reproduce("imagenet", quiet=True)
    check_shape(table)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row[">M parameters"] == "1.361" and row[">M parameters, paper's"] == "1.3"
    assert row[">M FLOPs, by the papers' rule"] == "260.8" and row[">M FLOPs, paper's"] == "261"
    assert row[">top-1 %, paper's"] == "71.5"
    assert row[classify.TOP1] == (
        "weights and data missing: `metamobile pull emo_1m.in1k && "
        "metamobile eval emo_1m.in1k --data IMAGENET`"
    )
    peers = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert peers["MViTv1-XXS"][">M parameters"] == "1.235"
    assert "mobilevit_xxs.cvnets_in1k --data IMAGENET`" in peers["MViTv1-XXS"][classify.TOP1]
    assert peers["MoCoViT-1.0"][">M parameters"] == "-"
    assert peers["MoCoViT-1.0"][">M parameters, paper's"] == "5.3"


def test_a_segmenter_counts_and_says_how_to_train(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "PRINTED", [Printed("segformer", "emov2_1m", "1.4", "5.0", (64, 64))])
    (table,) = reproduce("ade20k-segformer", quiet=True)
    check_shape(table)
    assert column(table, ">mIoU, paper's") == ["37.0", "37.4", "42.2"]
    ours = column(table, "mIoU, ours, or what is missing")
    assert ours[0] == (
        "weights and data missing: `metamobile pull emov2_1m.in1k && metamobile train emov2_1m --recipe "
        "ade20k-segformer-emov2 --set model.pretrained=emov2_1m.in1k,model.window_size=10 --data ADE20K "
        "--out runs/ade20k-segformer-emov2-emov2_1m && "
        "metamobile eval runs/ade20k-segformer-emov2-emov2_1m --data ADE20K`"
    )
    largest = dense._ours(Request(), "ade20k", "segformer", "emov2_20m", 512, 10)
    assert largest.startswith(
        "weights and data missing: `metamobile train emov2_20m --recipe imagenet-emov2 --data IMAGENET --out "
        "runs/imagenet-emov2_20m && metamobile train emov2_20m --recipe ade20k-segformer-emov2 --set "
        "model.pretrained=runs/imagenet-emov2_20m,model.window_size=10 --data ADE20K "
    )
    unpublished = dense._ours(Request(), "ade20k", "fpn", "emo_1m", 512, 7)
    assert "train emo_1m --recipe ade20k-fpn-emov2 --set model.pretrained=emo_1m.in1k" in unpublished
    assert unpublished.endswith("(by EMOv2's recipe, as EMO's is not published)")
    assert column(table, ">M parameters")[0].startswith("1.4")


@pytest.mark.parametrize("name", ["speed", "diagonal", "grad-cam"])
def test_small_tables(name: str, nowhere: Path) -> None:
    for table in reproduce(name, quiet=True):
        check_shape(table)


def test_a_cell_that_is_the_published_network_takes_its_weights(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = studies.GRIDS["kernel"]
    cells = [cell for cell in grid.cells if cell.name in ("3x3", "5x5", "9x9", "5x5-dcnv2")]
    monkeypatch.setattr(studies, "GRIDS", {"kernel": replace(grid, cells=cells)})
    (table,) = reproduce("ablations", quiet=True)
    check_shape(table)
    ours = dict(zip(column(table, "cell"), column(table, classify.TOP1), strict=True))
    assert ours["5x5"].startswith("weights and data missing: `metamobile pull emov2_5m.in1k && ")
    assert "--set 'model.args.kernels=[3, 3, 3, 3]' --data IMAGENET" in ours["3x3"]
    assert ours["5x5-dcnv2"].startswith("not known: it cannot be built here, as where the deformable")
    remarks = dict(zip(column(table, "cell"), column(table, "remark on the paper's row"), strict=True))
    assert {name for name, said in remarks.items() if said.startswith("cannot be met exactly")} == {
        "9x9",
        "5x5-dcnv2",
    }
    counted = dict(zip(column(table, "cell"), column(table, ">M parameters"), strict=True))
    assert counted["9x9"] == "5.703" and counted["5x5-dcnv2"] == "-"


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("criteria", "complexity")])
def test_every_command_is_one_that_works(name: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be told without data and weights: verbs and options, recipes and their settings,
    networks, weights; and what a command needs, one before it makes. Nothing is counted."""
    recipes = Path(metamobile.__file__).parents[2] / "recipes"
    if not recipes.is_dir():
        pytest.skip("needs a checkout with its recipes")
    free = Complexity("it", 0, 0, 0)
    for module in (classify, studies):
        monkeypatch.setattr(module, "count_network", lambda *given, **args: free)
    monkeypatch.setattr(ablate, "count_network", lambda *given, **args: free)
    monkeypatch.setattr(classify, "peer_costs", lambda peer: (0, 0))
    monkeypatch.setattr(
        dense,
        "count_head",
        lambda row: HeadRow(row.name, row.head, "", row.size, 7, 0, 0, 0, "", "", [], [], False, ""),
    )
    app = get_command(verbs)
    lines = [
        line
        for table in reproduce(name, quiet=True)
        for cell in (*(cell for row in table.rows for cell in row), *table.notes)
        for line in re.findall("`(metamobile [^`]+)`", cell)
        if "study complexity" not in line
    ]
    assert lines
    for line in dict.fromkeys(lines):
        made = set(PUBLISHED)
        fetched: set[str] = set()
        for words in map(shlex.split, line.split(" && ")):
            made |= check_command(app, words, fetched, recipes)
        assert fetched <= made, line


def check_command(app: Any, words: list[str], fetched: set[str], recipes: Path) -> set[str]:
    """The runs that a command makes; what it reads goes to `fetched`, but for timm's weights."""
    assert words.pop(0) == "metamobile"
    command = app
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    given = command.make_context(command.name, words).params  # an unknown option raises
    if command.name == "train":
        recipe = load_recipe(str(recipes / f"{given['recipe']}.yaml"))
        recipe = recipe.replace({"model.name": given["name"], "data.path": given["data"]})
        recipe = recipe.override(split_settings(given["settings"] or []))
        assert timm.is_model(recipe.model.name)
        fetched |= {recipe.model.pretrained} - {None}
        return {str(given["out"])}
    if command.name == "eval":
        fetched |= set() if timm.is_model_pretrained(given["model"]) else {given["model"]}
    if command.name == "pull":
        assert given["name"] in PUBLISHED
    if command.name == "ablate":
        return {f"{given['out']}/{cell}-seed0" for cell in GRIDS[given["grid"]].names}
    if command.name == "diagonal":
        fetched |= set(given["models"])
    if command.name == "bench":
        assert all(map(timm.is_model, given["models"]))
    return set()


def test_grids_without_the_papers_figures_are_counted(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = studies.GRIDS["window"]
    cells = [cell for cell in grid.cells if cell.name in ("4x4", "7x7")]
    monkeypatch.setattr(studies, "GRIDS", {"window": replace(grid, cells=cells)})
    (table,) = reproduce("ablations", quiet=True)
    check_shape(table)
    assert column(table, "network") == ["EMO-5M"] * 2 and column(table, ">M parameters") == ["5.109"] * 2
    assert column(table, ">top-1 %, paper's") == ["-"] * 2
    ours = column(table, classify.TOP1)
    assert "--set model.window_size=4 --data" in ours[0] and "metamobile pull emo_5m.in1k" in ours[1]
    assert table.notes[-1].endswith(
        "`metamobile study ablate window --data FOLDER --out runs/ablate-window`."
    )


def test_an_ablation_in_small_is_found_where_its_command_left_it(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = nowhere / "runs" / "ablate-cascade"
    folder.mkdir(parents=True)
    counted = {"parameters": 1_234_567, "flops_paper": 89_000_000}
    about = {
        "what": "cascade: emo_1m, pets, 64 px, 1 epoch",
        "command": "metamobile study ablate cascade --data pets",
        "seeds": 2,
        "steps": [{"lower": "a", "higher": "b", "verdict": "undecided"}],
        "order": "undecided",
        "cells": [
            {"name": "cascade", "counted": counted, "runs": [{"top1": 50.0}, {"top1": 51.0}]},
            {"name": "parallel", "counted": counted, "runs": []},
        ],
    }
    (folder / "ablation.json").write_text(json.dumps(about))
    (table,) = studies.small_table(Request(), "cascade", studies.GRIDS["cascade"])
    check_shape(table)
    assert table.rows == [
        ["cascade", "1.235", "89.0", "2", "50.50", "0.71", "50.00", "51.00"],
        ["parallel", "1.235", "89.0", "0", *"----"],
    ]
    assert table.notes == [
        "Not the paper's task: cascade: emo_1m, pets, 64 px, 1 epoch (runs/ablate-cascade/ablation.json).",
        "Runs are missing, of 2 a cell: `metamobile study ablate cascade --data pets` goes on.",
        "The paper's order: undecided (a < b: undecided).",
    ]


def test_speed_is_read_from_bench(nowhere: Path) -> None:
    (table,) = reproduce("speed", quiet=True)
    cells = column(table, "CPU pictures/s, ours, or what is missing")
    assert len(set(cells)) == 1 and cells[0].startswith(
        "not measured: `metamobile bench edgenext_xx_small emo_1m"
    )
    assert cells[0].endswith(" --size 224 --out results/speed`")
    row = {"model": "emo_1m", "batch_size": 2, "threads": 1, "size": [224, 224], "runtime": "torch"}
    row |= {"precision": "fp32", "wall_ms": {"median": 25.0}, "cpu_ms": {"median": 20.0}}
    written = {"rows": [row], "machine": {"processor": "A processor"}}
    (nowhere / "results" / "speed").mkdir()
    (nowhere / "results" / "speed" / "bench.json").write_text(json.dumps(written))
    (table,) = reproduce("speed", quiet=True)
    check_shape(table)
    ours = dict(zip(column(table, "network"), column(table, table.columns[-1]), strict=True))
    assert ours["EMO-1M"] == "100.0" and ours["EMO-2M"].startswith("not measured")
    assert (
        "A processor, torch fp32, 224x224 px, batches of 2, 1 thread, medians of processor" in table.notes[-1]
    )
    assert "(results/speed/bench.json)" in table.notes[-1]


def test_measured_where_weights_and_data_are(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name, colour in (("n01440764", "red"), ("n03888257", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 40), colour).save(folder / name / f"{number}.png")
    request = Request({"imagenet": folder})
    cell = request.measure("imagenet", "emo_1m.imagenette", [], True)
    figures = metamobile.evaluate("emo_1m.imagenette", folder)
    assert cell == f"{figures['top1']:.1f} of {figures['pictures']} pictures: not the paper's 50,000"
    assert Request().measure("imagenet", "emo_1m.imagenette", [], True) == (
        "data missing: `metamobile eval emo_1m.imagenette --data IMAGENET`"
    )
    assert request.measure("imagenet", "it", ["metamobile pull it"], False) == (
        f"weights missing: `metamobile pull it && metamobile eval it --data {folder}`"
    )


def test_a_trained_run_is_found(tmp_path: Path) -> None:
    request = Request(runs=tmp_path)
    assert request.trained("coco", "mine", ["metamobile train"]).startswith("weights and data missing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").touch()
    assert request.trained("coco", "mine", ["metamobile train"]).startswith("data missing: `metamobile eval")


def test_evidence_is_read_and_named(nowhere: Path) -> None:
    assert other_data(Request(), "mine/summary.json", "two classes") == []
    (nowhere / "results" / "mine").mkdir()
    summary = {"claim": {"top1": 87.9, "pictures": 3925}}
    (nowhere / "results" / "mine" / "summary.json").write_text(json.dumps(summary))
    (note,) = other_data(Request(), "mine/summary.json", "two classes")
    assert "not the paper's task: two classes: top1 87.9 on 3,925 pictures" in note
    (nowhere / "results" / "diagonal").mkdir()
    row = {"role": "conv", "name": "mine", "side": 8, "reach": {"half_width": None, "mean": 0.25}}
    about = {
        "rows": [row, {**row, "name": "another"}],
        "parts": {"long": "confirmed", "short": None, "most": "refuted"},
        "spread": "of one",
    }
    (nowhere / "results" / "diagonal" / "diagonal.json").write_text(json.dumps(about))
    table, claim = reproduce("diagonal", quiet=True)
    check_shape(table)
    assert column(table, "network") == ["convolution alone"] * 2 + ["attention alone", "both"]
    assert column(table, ">half-width, ours")[:2] == ["more than 7 of 8"] * 2
    runs = column(table, "run, ours")
    assert runs[:2] == ["mine", "another"]
    assert runs[2].startswith("not measured: `metamobile study ablate components --data FOLDER --out runs/")
    assert "--seeds 1 && metamobile study diagonal runs/ablate-components/dw-conv-seed0 runs/" in runs[2]
    assert column(claim, "verdict") == ["confirmed", "-", "refuted"]


def test_page_tints_the_papers_columns_and_escapes() -> None:
    table = Reproduced(
        "x",
        "A <b> title",
        "table 1",
        ["network", ">M, paper's", "ours"],
        [["a<b", "1.3", "no: `run a && b`"]],
    )
    page = render([table])
    assert '<th class="paper number">M, paper&#39;s</th>' in page
    assert '<td class="paper number">1.3</td>' in page
    assert "<code>run a &amp;&amp; b</code>" in page
    assert "a&lt;b" in page and "A &lt;b&gt; title" in page
    assert not re.search(r"(src|href)=\"(http|//)", page)


def test_html_is_written(nowhere: Path) -> None:
    tables = reproduce("speed", html=nowhere / "page.html", quiet=True)
    assert tables[0].title in (nowhere / "page.html").read_text()
