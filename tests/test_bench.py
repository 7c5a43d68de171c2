"""The speed measurement: fake runtimes of known time in real processes, then PyTorch and ONNX Runtime."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from metamobile.data.preprocess import Preprocess
from metamobile.deploy import bench as module
from metamobile.deploy.bench import Times, bench, ratio_of, remarks, times_of
from metamobile.deploy.bench_figure import bench_tables, machine_line
from metamobile.deploy.bench_worker import FEWEST, RUNS, enough, make_input, open_model, precision_of
from metamobile.weights.card import KEY, Card
from small_model import make_run

# A format .fake, whose file says how long a run takes, by the wall's clock and the processor's, what memory
# it holds, and the run that breaks; each run leaves a line in a log.
FAKE = """
import json, os, sys, time, types
import metamobile_cli
from metamobile.deploy import formats

class Fake:
    name = "Fake"

    def __init__(self, path, device):
        import numpy as np
        from metamobile.data.preprocess import Preprocess
        from metamobile.weights.card import Card
        self.path, self.plan, self.done = path, json.loads(path.read_text()), 0
        self.card = Card("fake", {}, classes=["a"], preprocess=Preprocess(size=(8, 12)))
        self.held = np.ones(self.plan.get("megabytes", 0) * 1_000_000, np.uint8)

    def run(self, batch):
        self.done += 1
        if self.done == self.plan.get("dies"):
            os._exit(3)
        if self.done == self.plan.get("fails"):
            raise ValueError("no more answers")
        threads = [os.environ[name] for name in ("METAMOBILE_THREADS", "OMP_NUM_THREADS")]
        processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
        line = [self.path.stem, list(batch.shape), threads, processors]
        with open(self.path.parent / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\\n")
        time.sleep(self.plan.get("sleep", 0))
        end = time.process_time() + self.plan.get("busy", 0)
        while time.process_time() < end:
            pass

formats.FORMATS["fake"] = formats.Format(".fake", "Fake")
sys.modules["metamobile.deploy.formats.fake"] = types.SimpleNamespace(open_file=Fake)
from metamobile.deploy import bench_worker as worker
worker.WARM_UP = 2
worker.main()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a fake model: fake("a", sleep=0.01)."""
    monkeypatch.setattr(module, "WORKER", FAKE)

    def write(name: str, **plan: float) -> Path:
        path = tmp_path / f"{name}.fake"
        path.write_text(json.dumps(plan))
        return path

    return write


def read_log(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_known_times(fake, tmp_path: Path) -> None:
    models = [fake("quick", sleep=0.02), fake("slow", sleep=0.06), fake("large", sleep=0.02, megabytes=150)]
    steps = []
    found = bench(
        models,
        rounds=3,
        runs=4,
        out=tmp_path / "out",
        json=tmp_path / "deep" / "figures.json",
        progress=lambda done, total: steps.append((done, total)),
    )
    quick, slow, large = found.rows
    assert quick.ratio.median == quick.ratio.low == quick.ratio.high == 1
    assert slow.ratio.median == pytest.approx(3, rel=0.25)
    assert slow.ratio.low <= slow.ratio.median <= slow.ratio.high
    assert slow.wall_ms.p10 <= slow.wall_ms.median <= slow.wall_ms.p90
    assert 60 <= slow.wall_ms.fastest < 80
    assert quick.runs == 12 and len(quick.round_ms) == 3
    assert quick.cpu_ms is not None and quick.cpu_ms.median < 5  # as it slept
    assert large.memory_bytes is not None and quick.memory_bytes is not None
    assert 140e6 < large.memory_bytes - quick.memory_bytes < 200e6
    # not its parent's, which has torch
    assert quick.memory_bytes < 150e6 < psutil.Process().memory_info().rss
    assert quick.file_bytes == models[0].stat().st_size
    assert quick.cold_start == quick.open_seconds + quick.first_seconds
    assert 0.06 <= slow.first_seconds < 1
    assert (quick.precision, quick.weights, quick.size) == ("fp32", "file", [8, 12])
    assert steps == [(step, 12) for step in range(1, 13)]

    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert written == json.loads((tmp_path / "deep" / "figures.json").read_text()) == found.to_dict()
    assert written["rows"][1]["ratio"]["median"] == slow.ratio.median
    assert written["machine"]["processors"] == psutil.cpu_count()
    with Image.open(tmp_path / "out" / "bench.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert picture.width == 1500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench.json", "bench.png"]

    (_, columns, times), (_, _, whats) = bench_tables(found)
    assert [len(row) for row in times] == [len(columns)] * 3
    assert times[1][columns.index(">ratio")] == f"{slow.ratio.median:.2f}"
    assert whats[0][0] == str(models[0]) and whats[0][4] == "8x12"
    assert found.machine["processor"] in machine_line(found)


def test_processor_time_holds_on_a_busy_machine(fake) -> None:
    found = bench([fake("one", busy=0.01), fake("two", busy=0.02)], rounds=2, runs=3)
    one, two = found.rows
    assert one.cpu_ms is not None and one.cpu_ms.median == pytest.approx(10, rel=0.25)
    assert two.cpu_ratio is not None and two.cpu_ratio.median == pytest.approx(2, rel=0.2)
    assert one.processors is not None and 0 < one.processors < 1.1


def test_turns_and_threads(fake, tmp_path: Path) -> None:
    found = bench([fake("a"), fake("b"), fake("c")], rounds=3, runs=2, threads=2, batch_size=3, size=16)
    log = read_log(tmp_path)
    names = [line[0] for line in log]
    opening = "aaabbbccc"  # the first answer and the warm-up, one after the other
    assert "".join(names) == opening + "aaaabbbbcccc" + "ccccbbbbaaaa" + "aaaabbbbcccc"
    assert found.order == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
    assert {tuple(line[1]) for line in log} == {(3, 3, 16, 16)}
    assert {tuple(line[2]) for line in log} == {("2", "2")}
    assert [row.threads for row in found.rows] == [2, 2, 2]
    assert any("sum over all threads" in note for note in found.notes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process be bound to a processor")
def test_one_thread_is_bound_to_one_processor(fake, tmp_path: Path) -> None:
    found = bench(fake("a"), rounds=1, runs=1)
    assert {line[3] for line in read_log(tmp_path)} == {1}
    assert len(found.settings["processors"]) == 1
    assert {tuple(line[2]) for line in read_log(tmp_path)} == {("1", "1")}


def test_failures_are_named_and_the_rest_is_measured(fake, tmp_path: Path) -> None:
    missing = tmp_path / "god.fake"
    models = [missing, fake("good"), fake("dies", dies=8), fake("fails", fails=9)]
    found = bench([*models, fake("also")], rounds=3, runs=2, out=tmp_path / "out")
    assert [Path(row.model).stem for row in found.rows] == ["good", "also"]
    gone, died, failed = found.failures
    assert str(missing) in gone and "did you mean" in gone and "good.fake" in gone
    assert died == f"{models[2]}: its process ended with code 3"
    assert failed == f"{models[3]}: no more answers"
    assert found.order == [[1, 2, 3, 4], [4, 3, 2, 1], [1, 4]]
    assert any(f"ratios are to {models[1]}" in note for note in found.notes)
    assert not psutil.Process().children()


def test_nothing_measured_gives_no_figure(fake, tmp_path: Path) -> None:
    found = bench([tmp_path / "a.fake"], rounds=1, runs=1, out=tmp_path / "out")
    assert not found.rows and len(found.failures) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench.json"]
    assert not list(bench_tables(found))


def test_interrupted_leaves_nothing(fake, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench([fake("a"), fake("b")], out=tmp_path / "out", json=tmp_path / "a.json", runs=1, progress=stop)
    assert not (tmp_path / "out").exists() and not (tmp_path / "a.json").exists()
    assert not psutil.Process().children()


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: a file; expected the name of a folder to write into"):
        bench(["a"], out=tmp_path / "file")
    with pytest.raises(ValueError, match="rounds 0: expected 1 or more"):
        bench(["a"], rounds=0)
    with pytest.raises(ValueError, match="no model to measure"):
        bench([])


def test_pytorch_is_told_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "threads"
    code = (
        "import metamobile_cli, sys\n"
        "from metamobile.deploy import bench_worker as worker\n"
        "old = worker.Worker.run\n"
        "def run(self, **order):\n"
        f"    print(sys.modules['torch'].get_num_threads(), file=open({str(log)!r}, 'a'))\n"
        "    return old(self, **order)\n"
        "worker.Worker.run = run\n"
        "worker.main()\n"
    )
    monkeypatch.setattr(module, "WORKER", code)
    run = make_run(tmp_path / "run")
    found = bench(run, rounds=1, runs=2, threads=2)
    assert not found.failures
    assert log.read_text().split() == ["2"]
    row = found.rows[0]
    assert (row.runtime, row.weights, row.size) == ("PyTorch", "file", [64, 64])
    assert row.file_bytes == (run / "model.safetensors").stat().st_size
    assert set(row.versions) == {"torch", "timm"}


def test_names_have_random_weights_and_fetch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    runtime, weights = open_model("test_efficientnet.r160_in1k", None, "cpu")
    assert weights == "random" and runtime.card.preprocess.size == (160, 160)
    # built for one size alone, so for the one that is asked for
    runtime, weights = open_model("test_vit.r160_in1k", [96, 64], "cpu")
    pixels = make_input(runtime.card, [96, 64], 2)
    assert pixels.shape == (2, 3, 96, 64) and pixels.dtype == np.float32
    assert (pixels[0] == pixels[1]).all() and pixels.std() > 0.3  # a picture, and no blank
    assert runtime.run(pixels).shape == (2, 1000)
    with pytest.raises(ValueError, match="did you mean"):
        open_model("mobilenetv3_smal_100", None, "cpu")


def test_onnx_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels"], ["logits"], axes=[2, 3], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("pixels", kind, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", kind, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    card = Card("mean", {}, classes=["r", "g", "b"], preprocess=Preprocess(size=(32, 32)))
    helper.set_model_props(model, {KEY: card.to_json(), "metamobile.unverified": "drawn by hand"})
    path = tmp_path / "mean.int8.onnx"
    onnx.save(model, path)
    blocked = "import sys; sys.modules['torch'] = sys.modules['timm'] = None; "
    monkeypatch.setattr(module, "WORKER", blocked + module.WORKER)
    found = bench([path], rounds=1, runs=3)
    assert not found.failures
    assert (found.rows[0].runtime, found.rows[0].precision) == ("ONNX Runtime", "int8")
    assert found.rows[0].versions["onnxruntime"][0].isdigit()
    assert any("failed its gate: drawn by hand" in note for note in found.notes)
    wrong = bench([path], size=48, rounds=1, runs=1)
    assert len(wrong.failures) == 1 and "cannot run on (1, 3, 48, 48)" in wrong.failures[0]


def test_figures_by_hand() -> None:
    assert times_of([[0.001, 0.003], [0.002]]) == Times(2.0, pytest.approx(1.2), pytest.approx(2.8), 1.0)
    # a slow second round slows both: 4/2, 12/6, and one of its own 9/3
    ratio = ratio_of([[4, 4, 9], [12, 12, 12], [9]], [[2, 2, 2], [6, 6, 6], [3]])
    assert (ratio.median, ratio.low, ratio.high) == (2, 2, 3)


def test_when_a_turn_is_over() -> None:
    assert not enough(2, 99.0, 3, 2, 10) and enough(3, 0.0, 3, 2, 10)
    assert not enough(RUNS, 1.9, None, 2, 10) and enough(RUNS, 2.1, None, 2, 10)
    assert not enough(RUNS - 1, 2.1, None, 2, 10)
    assert enough(FEWEST, 10.1, None, 2, 10) and not enough(FEWEST - 1, 60.0, None, 2, 10)


def test_precision_is_what_export_names() -> None:
    assert precision_of("runs/a.fp16/model.onnx") == "fp32"
    assert precision_of("emo_1m.imagenette.fp16.onnx") == "fp16"
    assert precision_of("fp16.int8") == "fp32"  # no exported file


def test_remarks(fake) -> None:
    found = bench([fake("a")], rounds=1, runs=1)
    machine = {**found.machine, "others_before": 0.0, "others": 0.0, "usable": 2, "processors": 2}
    settings = {**found.settings, "runs": None, "threads": 1}
    row = replace(found.rows[0], runs=40, processors=1.0)
    assert remarks([row], machine, settings) == [module.CLAIM]
    assert "other programs use 1.5 of 2" in remarks([row], {**machine, "others": 1.5}, settings)[0]
    greedy = replace(row, processors=1.9)
    assert "does not take the number of threads" in remarks([greedy], machine, settings)[0]
    assert "differ in size (8x12, 64x64)" in remarks([row, replace(row, size=[64, 64])], machine, settings)[0]
    assert "4 threads on 2" in remarks([row], machine, {**settings, "threads": 4})[0]
    assert "39 runs in all" in remarks([replace(row, runs=39)], machine, settings)[0]
