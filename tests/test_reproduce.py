"""The papers' tables beside ours: what is printed, what is counted, and what an empty cell says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import metamobile
from metamobile.models.variants import VARIANTS
from metamobile.study.heads import PRINTED, Printed
from metamobile.study.reproduce import TABLES, Reproduced, classify, dense, find_data, reproduce, studies
from metamobile.study.reproduce.page import render
from metamobile.study.reproduce.printed import COLUMNS, EMOS, PEER_ROWS, accuracy
from metamobile.study.reproduce.request import Request, other_data
from metamobile.weights.published import PUBLISHED


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
    assert largest.startswith("not known: the authors' ImageNet weights of emov2_20m")
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
    assert ours["5x5-dcnv2"] == "not known: it cannot be built here"
    remarks = dict(zip(column(table, "cell"), column(table, "remark on the paper's row"), strict=True))
    assert {name for name, said in remarks.items() if said.startswith("cannot be met exactly")} == {
        "9x9",
        "5x5-dcnv2",
    }
    counted = dict(zip(column(table, "cell"), column(table, ">M parameters"), strict=True))
    assert counted["9x9"] == "5.703" and counted["5x5-dcnv2"] == "-"


def test_commands_name_recipes_and_weights_that_exist() -> None:
    recipes = Path(metamobile.__file__).parents[2] / "recipes"
    if not recipes.is_dir():
        pytest.skip("needs a checkout with its recipes")
    named = {recipe for pair in dense.RECIPES.values() for recipe in pair if recipe}
    named |= {row[5] for row in classify.STRONGER if row[5]}
    assert all((recipes / f"{name}.yaml").is_file() for name in named | {"coco-ssdlite-emov2-512"})
    assert {"emov2_5m.in1k", "emov2_5m.in1k_kd", "emov2_5m_512.in1k_kd", "emo_5m.in1k"} <= set(PUBLISHED)


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
    row = {"role": "conv", "side": 8, "reach": {"half_width": None, "mean": 0.25}}
    about = {
        "rows": [row],
        "parts": {"long": "confirmed", "short": None, "most": "refuted"},
        "spread": "of one",
    }
    (nowhere / "results" / "diagonal" / "diagonal.json").write_text(json.dumps(about))
    table, claim = reproduce("diagonal", quiet=True)
    check_shape(table)
    assert column(table, ">half-width, ours")[0] == "more than 7 of 8"
    assert column(table, ">half-width, ours")[1].startswith("not measured: `metamobile study diagonal")
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
