"""Ablations: what is trained, how a grid goes on, what its table says, and when an order holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from metamobile.data.shapes import write_folder
from metamobile.models.create import create_model
from metamobile.study import ablate as module
from metamobile.study.ablate import Ablation, ablate, count_published, differences, find_cells
from metamobile.study.ablate_table import T_95, Step, ablation_tables, judge_order, judge_steps
from metamobile.study.complexity import Complexity
from metamobile.study.grids import GRIDS
from metamobile.training.loop import Interrupted
from metamobile.training.recipe import load_recipe
from metamobile.training.runfolder import RunFolder
from metamobile.weights.network import load_network

TINY = [
    "model.args.depths=[1,1,2,2]",
    "model.args.dims=[8,8,16,16]",
    "model.args.head_dims=[8,8,8,8]",
    "run.batch_size=16",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("shapes"), train=18, val=6, size=32)


def run_grid(grid: str, pictures: Path, out: Path, **changed: Any) -> Ablation:
    arguments: dict[str, Any] = {"epochs": 1, "size": 32, "seeds": 1, "workers": 0, "device": "cpu"}
    return ablate(grid, pictures, out=out, quiet=True, **{"set": TINY, **arguments, **changed})


class FakeTraining:
    """In place of `train`: run folders with given top-1 and a list of what was asked for."""

    def __init__(self, top1: dict[str, list[float]]) -> None:
        self.top1 = top1
        self.calls: list[tuple[str, str]] = []
        self.stop_at: str | None = None

    def __call__(self, recipe: Any = None, out: Any = None, resume: Any = None, **rest: Any) -> None:
        run = RunFolder(resume or out)
        self.calls.append(("resume" if resume else "new", run.path.name))
        if recipe is not None:
            run.path.mkdir(parents=True)
            run.write_recipe(recipe)
        run.state.mkdir(exist_ok=True)
        if run.path.name == self.stop_at:
            self.stop_at = None
            raise Interrupted("stopped")
        cell, seed = run.path.name.rsplit("-seed", 1)
        lines = [
            {"kind": "start", "machine": "a machine", "data": {"train": 18}},
            {"kind": "epoch", "epoch": 1, "top1": 99.0, "train_loss": 2.0, "seconds": 3.0},
            {"kind": "epoch", "epoch": 2, "top1": 0.0, "train_loss": 1.5, "seconds": 2.0},  # and again:
            {
                "kind": "epoch",
                "epoch": 2,
                "top1": self.top1[cell][int(seed)],
                "train_loss": 1.5,
                "seconds": 3.0,
            },
        ]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        run.write_evaluation({})


TOP1 = {"none": [50.0, 51.0], "attention": [60.0, 61.0], "dw-conv": [60.5, 61.5], "both": [55.0, 56.0]}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    training = FakeTraining(TOP1)
    monkeypatch.setattr(module, "train", training)
    monkeypatch.setattr(module, "count_published", lambda grid: [])  # has a test of its own
    monkeypatch.setattr(module, "count_cell", lambda *given: Complexity("EMO", 1_234_567, 0, 89_000_000))
    return training


def test_a_grid_trains_resumes_and_its_runs_load_again(pictures: Path, tmp_path: Path) -> None:
    ablation = run_grid("components", pictures, tmp_path / "grid", only=["none", "both"])
    runs = {result.cell.name: result.runs for result in ablation.results}
    assert [len(runs[name]) for name in GRIDS["components"].names] == [1, 0, 0, 1]
    for name in ("none", "both"):
        folder = tmp_path / "grid" / f"{name}-seed0"
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert runs[name][0].top1 == evaluation["top1"]  # one epoch: the last is the best
        (result,) = [result for result in ablation.results if result.cell.name == name]
        network, card = load_network(folder)
        assert sum(p.numel() for p in network.parameters()) == result.counted.parameters
        assert card.recipe["model"]["args"].get("conv", True) is (name == "both")
    before = (tmp_path / "grid" / "none-seed0" / "model.safetensors").stat().st_mtime_ns
    run_grid("components", pictures, tmp_path / "grid", only=["none"])
    assert (tmp_path / "grid" / "none-seed0" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("grid", "cell"), [("norm-act", "ln-silu"), ("kernel", "5x5-dilation-2"), ("cascade", "parallel")]
)
def test_a_trained_cell_loads_again(
    grid: str, cell: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved card makes the same network: same tensors, and the same answer as one built by hand."""
    monkeypatch.setattr(module, "count_published", lambda grid: [])
    run_grid(grid, pictures, tmp_path, only=[cell])
    network, card = load_network(tmp_path / f"{cell}-seed0")
    by_hand = {
        "ln-silu": {"norms": ["layer"] * 4, "acts": ["silu"] * 4},
        "5x5-dilation-2": {"kernels": [5] * 4, "dilation": 2},
        "parallel": {"parallel": True},
    }[cell]
    sizes = {"depths": [1, 1, 2, 2], "dims": [8, 8, 16, 16], "head_dims": [8] * 4}
    window = card.model_args["window_size"]
    other = create_model("emo_1m", num_classes=6, window_size=window, **sizes, **by_hand).eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), other(x))
        kernels = by_hand.get("kernels", (3, 3, 5, 5))
        plain = create_model("emo_1m", num_classes=6, window_size=window, **sizes, kernels=kernels).eval()
        plain.load_state_dict(network.state_dict(), strict=False)  # batch norms have statistics, too
        assert not torch.equal(network(x), plain(x))


def test_each_seed_goes_through_all_cells_and_a_stop_is_gone_on_from(
    fake: FakeTraining, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.stop_at = "attention-seed1"
    with pytest.raises(Interrupted):
        ablate("components", pictures, out=tmp_path, epochs=2, size=32, seeds=2, set=TINY)
    cells = ["none", "attention", "dw-conv", "both"]
    first = [("new", f"{cell}-seed0") for cell in cells]
    assert fake.calls == [*first, ("new", "none-seed1"), ("new", "attention-seed1")]
    assert "the same command goes on" in capsys.readouterr().err
    seeds_done = {cell: 1 for cell in cells} | {"none": 2}
    table = ablation_table(tmp_path)
    assert {name: row["seeds"] for name, row in table.items()} == {
        c: f"{n} of 2" for c, n in seeds_done.items()
    }

    fake.calls.clear()
    ablate("components", pictures, out=tmp_path, epochs=2, size=32, seeds=2, set=TINY, quiet=True)
    assert fake.calls == [("resume", "attention-seed1"), ("new", "dw-conv-seed1"), ("new", "both-seed1")]
    assert (tmp_path / "ablation.png").stat().st_size > 5000


def ablation_table(folder: Path) -> dict[str, dict[str, str]]:
    """The first table of ablation.md, by cell."""
    lines = [line for line in (folder / "ablation.md").read_text().splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    width = len(header)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows[:4] if len(row) == width}


def test_the_table_has_ours_and_the_papers_in_columns_of_their_own(
    fake: FakeTraining, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "count_published", count_published)
    ablation = run_grid("components", pictures, tmp_path, epochs=2, seeds=2)
    (title, columns, rows), (_, _, steps), (_, _, published) = ablation_tables(ablation)
    assert title == f"Components of the block: emo_1m, {pictures.name}, 32 px, 2 epochs"
    table = {row[0]: dict(zip((c.lstrip(">") for c in columns), row, strict=True)) for row in rows}
    none = table["none"]
    assert (none["top-1 %"], none["standard deviation"]) == ("50.50", "0.71")  # of 50 and 51: 1 / sqrt(2)
    assert (none["lowest"], none["highest"], none["seeds"]) == ("50.00", "51.00", "2 of 2")
    assert (none["EMO-5M, paper's top-1 %"], table["attention"]["EMOv2-5M, paper's top-1 %"]) == (
        "73.5",
        "77.7",
    )
    assert (none["M parameters"], none["M FLOPs"]) == ("1.235", "89.0")
    assert published[0][:6] == ["EMO-5M", "none", "4.161", "743.3", "-", "-"]
    assert published[0][6:8] == ["4.16", "743"], "no table prints them"
    # each cell's standard deviation is 0.7071, so is the pooled one, of 4 degrees: 2.776 * 0.7071 = 1.96
    assert steps == [
        ["none < attention", "+10.00", "1.96", "confirmed"],
        ["attention < dw-conv", "+0.50", "1.96", "undecided"],
        ["dw-conv < both", "-5.50", "1.96", "refuted"],
        ["none < attention < dw-conv < both", "", "", "refuted"],
    ]
    written = json.loads((tmp_path / "ablation.json").read_text())
    assert written["order"] == "refuted" and written["machine"] == "a machine"
    run = written["cells"][0]["runs"][1]
    assert run == {
        "seed": 1,
        "top1": 51.0,
        "measured": {"1": 99.0, "2": 51.0},
        "train_loss": 1.5,
        "seconds": 6.0,
    }
    assert written["cells"][0]["settings"] == {"model.args.attention": [False] * 4, "model.args.conv": False}


def test_what_cannot_be_built_is_in_the_table_with_its_reason(tmp_path: Path) -> None:
    ablation = ablate("attention", dry_run=True, out=tmp_path, size=64, set=TINY, quiet=True)
    cells, published = ablation_tables(ablation)
    scaled = next(row for row in cells[2] if row[0] == "none-scaled")
    assert scaled == ["none-scaled", "not built", *"-" * 6, "78.4"]
    row = next(row for row in published[2] if row[1] == "none-scaled")
    assert row[published[1].index("agrees")] == "not built"
    assert row[-1].startswith("cannot be met exactly; how the network without attention was made larger")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ablation.json", "ablation.md"]


def test_other_settings_than_then_are_an_error(fake: FakeTraining, pictures: Path, tmp_path: Path) -> None:
    run_grid("components", pictures, tmp_path, epochs=2)
    with pytest.raises(ValueError, match="schedule.epochs 2, and 3 is wanted"):
        run_grid("components", pictures, tmp_path, epochs=3)
    with pytest.raises(ValueError, match="optim.lr 0.002, and 0.1 is wanted now"):
        run_grid("components", pictures, tmp_path, epochs=2, set=[*TINY, "optim.lr=0.1"])
    with pytest.raises(ValueError, match="model.name 'emo_1m', and 'emo_2m'"):
        run_grid("components", pictures, tmp_path, epochs=2, model="emo_2m")
    assert len(fake.calls) == 4
    run_grid(
        "components", pictures, tmp_path, epochs=2, workers=1, seeds=2
    )  # readers and seeds are no matter
    assert len(fake.calls) == 8


def test_a_warm_up_that_the_run_shortened_is_no_difference() -> None:
    then = load_recipe("ablate").replace({"schedule.epochs": 1, "schedule.warmup_epochs": 0.1})
    now = load_recipe("ablate").replace({"schedule.epochs": 1, "schedule.warmup_epochs": 1})
    assert not list(differences(then, now))
    longer = [r.replace({"schedule.epochs": 12}) for r in (then, now)]
    assert [key for key, _, _ in differences(*longer)] == ["schedule.warmup_epochs"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"only": ["atention"]}, "components has no cell 'atention'; .*did you mean 'attention'"),
        ({"set": ["model.args.conv=false"]}, "model.args.conv is what the grid varies"),
        ({"set": ["run.seed=3"]}, "give --seeds instead"),
        ({"model": "emo_3m"}, "'emo_3m' has no parts to vary; .*did you mean"),
        ({"seeds": 0}, "seeds is 0"),
        ({"recipe": "small-detect"}, "expected classify"),
    ],
)
def test_errors_are_one_line(changed: dict, words: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as error:
        run_grid("components", pictures, tmp_path, **changed)
    assert "\n" not in str(error.value)


def test_unknown_grids_and_cells_that_are_only_the_papers() -> None:
    with pytest.raises(ValueError, match="no grid is called 'kernels'; .*did you mean 'kernel'"):
        find_cells("kernels")
    with pytest.raises(ValueError, match="5x5-dcnv2 cannot be trained: where the deformable"):
        find_cells("kernel", ["5x5-dcnv2"])
    with pytest.raises(ValueError, match="no data was given"):
        ablate("components")


def test_windows_as_large_as_the_maps_are_said(
    fake: FakeTraining, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 64 px stage 3 has 4x4: one automatic window, or four of 2x2."""
    ablate("attention", pictures, size=64, set=TINY, dry_run=True)
    assert "without effect: strided or contiguous" in " ".join(capsys.readouterr().err.split())
    ablate("attention", pictures, size=64, set=[*TINY, "model.window_size=2"], dry_run=True)
    assert "without effect" not in capsys.readouterr().err


def test_at_the_recipes_size_the_windows_differ() -> None:
    recipe = load_recipe("ablate")
    network = create_model("emo_1m", window_size=recipe.model.window_size, img_size=recipe.data.shape)
    assert list(network.window_size[2:]) == [(4, 4), (4, 4)]  # type: ignore[index]


def test_a_steps_verdict_by_hand() -> None:
    """Variances 2 and 0 of two seeds each: the pooled spread is 1, of 2 degrees of freedom."""
    (step,) = judge_steps({"a": [10.0, 12.0], "b": [16.0, 16.0]}, ["a", "b"])
    assert step.difference == 5 and step.margin == pytest.approx(4.303)
    assert step.verdict == "confirmed"
    assert Step("a", "b", 4.3, 4.303).verdict == "undecided"
    assert Step("a", "b", -4.4, 4.303).verdict == "refuted"


def test_without_a_spread_or_a_run_nothing_is_decided() -> None:
    (step,) = judge_steps({"a": [1.0], "b": [9.0]}, ["a", "b"])
    assert (step.difference, step.margin, step.verdict) == (8.0, None, "undecided")
    (step,) = judge_steps({"a": [1.0, 2.0], "b": []}, ["a", "b"])
    assert (step.difference, step.margin, step.verdict) == (None, None, "undecided")
    # one seed of b is enough where other cells tell the spread: 12.706 * sqrt(2) / 2 * sqrt(1 / 2 + 1)
    (step,) = judge_steps({"a": [1.0, 2.0], "b": [20.0]}, ["a", "b"])
    assert step.margin == pytest.approx(11.004, abs=1e-3) and step.verdict == "confirmed"


def test_the_order_needs_every_step() -> None:
    up, down, flat = Step("a", "b", 3, 1), Step("a", "b", -3, 1), Step("a", "b", 0.5, 1)
    assert judge_order([up, up]) == "confirmed"
    assert judge_order([up, flat]) == "undecided"
    assert judge_order([up, flat, down]) == "refuted"


def test_quantiles_are_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    assert list(T_95) == [round(stats.t.ppf(0.975, freedom), 3) for freedom in range(1, 31)]


def test_every_grid_of_the_command_is_there() -> None:
    expected = "components stages kernel window attention order norm-act drop-path depth cascade"
    assert list(GRIDS) == expected.split()
    names = [cell.name for grid in GRIDS.values() for cell in grid.cells]
    assert all(re.fullmatch(r"[a-z0-9.\-]+", name) for name in names)  # they name folders
