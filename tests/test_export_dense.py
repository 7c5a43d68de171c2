"""Detectors and segmenters exported: a file answers as the network does, and the gate finds what does not."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import metamobile
from metamobile.data.shape_scenes import write_boxes, write_masks
from metamobile.deploy.comparisons import BOX_TOLERANCE, BoxComparison, match
from metamobile.deploy.export import export, of_one_shape
from metamobile.deploy.formats.onnx import OnnxRuntime
from metamobile.deploy.gate import GateResult, compare, pick_pictures
from metamobile.deploy.runtimes import DETECTIONS, TorchRuntime
from metamobile.show import print_gate
from metamobile.weights.network import load_network
from small_dense import make_dense, make_dense_card, make_dense_run
from small_model import write_pictures

HEADS = ["deeplabv3", "ssdlite", "retinanet"]
Exported = dict[str, tuple[Path, GateResult]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return {
        "detect": write_boxes(folder / "boxes", train=3, val=5, size=64),
        "segment": write_masks(folder / "masks", train=3, val=5, size=64),
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 9)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> Exported:
    """A run of each head, and what its export said."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metamobile.deploy.gate.PICTURES", 9)
        runs = {head: make_dense_run(folder / head, head) for head in HEADS}
        return {head: (run, export(run, verify=pictures[0].parent)[0]) for head, run in runs.items()}


@pytest.mark.parametrize("head", HEADS)
def test_a_sound_file_passes(head: str, exported: Exported, capsys: pytest.CaptureFixture) -> None:
    run, gate = exported[head]
    assert gate.passed, gate.problems
    assert gate.path == run / "model.onnx" and gate.path.is_file()
    assert [row.batch_size for row in gate.rows] == [1, 3, 8]
    assert gate.relative < (1e-5 if head == "deeplabv3" else BOX_TOLERANCE / 10)
    print_gate(gate)
    shown = capsys.readouterr().out
    if head == "deeplabv3":
        assert gate.agreement == 1 and gate.boxes == 0
        assert "of the largest logit\tmean difference\tsame class of a pixel" in shown
    else:
        assert gate.agreement > 0.999 and gate.boxes > 9 * 5
        assert f"9 pictures, {gate.boxes:,} boxes" in shown
        assert "largest difference\tmean difference\tsame boxes" in shown


@pytest.mark.parametrize("head", HEADS)
def test_the_file_speaks_for_itself(head: str, exported: Exported) -> None:
    model = onnx.load(exported[head][0] / "model.onnx")
    onnx.checker.check_model(model)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes.pop("pixels") == ["batch", 3, 64, 96]
    if head == "deeplabv3":
        assert shapes == {"logits": ["batch", 7, 64, 96], "classes": ["batch", 64, 96]}
    else:
        each = ["detections"]
        assert shapes == {"boxes": [*each, 4], "scores": each, "labels": each, "picture": each}
        assert tuple(value.name for value in model.graph.output) == DETECTIONS


@pytest.mark.parametrize("head", HEADS[1:])
def test_boxes_are_those_of_pytorch_in_any_batch(head: str, exported: Exported) -> None:
    """Against torchvision's own suppression, a picture at a time, in order and number."""
    run, _ = exported[head]
    network, card = load_network(run)
    reference, runtime = TorchRuntime(network, card), OnnxRuntime(run / "model.onnx")
    noise = torch.randn(5, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2
    blobs = nn.functional.interpolate(noise, size=(64, 96), mode="bilinear").numpy()
    alone = [reference.run(blob[None])[0] for blob in blobs]
    assert sum(len(one["boxes"]) for one in alone)
    for size in (1, 2, 5):
        found = runtime.run(blobs[:size])
        assert len(found) == size
        for ours, theirs in zip(alone, found, strict=False):
            assert len(ours["boxes"]) == len(theirs["boxes"])
            assert (np.diff(theirs["scores"]) <= 0).all()
            np.testing.assert_allclose(theirs["scores"], ours["scores"], atol=1e-4)
            rows, columns = match(ours, theirs)
            assert len(rows) == len(ours["boxes"])
            np.testing.assert_allclose(theirs["boxes"][columns], ours["boxes"][rows], atol=0.01)
    with pytest.raises(ValueError, match=r"cannot run on \(1, 3, 32, 32\)"):
        runtime.run(blobs[:1, :, :32, :32].copy())


def test_a_segmenters_classes_are_the_best_logits(exported: Exported) -> None:
    runtime = OnnxRuntime(exported["deeplabv3"][0] / "model.onnx")
    pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    (classes,) = runtime.session.run(["classes"], {"pixels": pixels})
    assert classes.dtype == np.int64
    assert np.array_equal(classes, runtime.run(pixels).argmax(1))


def changed(path: Path, out: Path, **values: float) -> OnnxRuntime:
    """The file with other thresholds."""
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name in values:
            array = np.full([1], values[initializer.name], numpy_helper.to_array(initializer).dtype)
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    onnx.save(model, out)
    return OnnxRuntime(out)


def test_no_boxes_are_an_answer_too(exported: Exported, tmp_path: Path) -> None:
    runtime = changed(exported["ssdlite"][0] / "model.onnx", tmp_path / "a.onnx", nms_score=1.1)
    found = runtime.run(np.zeros((3, 3, 64, 96), np.float32))
    assert [one["boxes"].shape for one in found] == [(0, 4)] * 3


@pytest.mark.parametrize("head", HEADS[1:])
@pytest.mark.parametrize("fault", [{"nms_iou": 0.6}, {"nms_limit": 20}, {"nms_score": 0.2}])
def test_the_gate_finds_a_wrong_threshold_in_the_file(
    head: str, fault: dict[str, float], exported: Exported, pictures: list[Path], tmp_path: Path
) -> None:
    run, _ = exported[head]
    reference = TorchRuntime(*load_network(run))
    gate = compare(reference, changed(run / "model.onnx", tmp_path / "a.onnx", **fault), pictures)
    assert not gate.passed and gate.agreement < 0.99
    assert "of boxes are the same within 1e-03 of score and side; needed are 99.5%" in gate.problems[0]


class Changed(TorchRuntime):
    """A runtime whose pixels or boxes are changed on the way."""

    def __init__(self, runtime: TorchRuntime, before: Any = None, after: Any = None) -> None:
        super().__init__(runtime.network, runtime.card)
        self.before, self.after = before, after

    def run(self, batch: np.ndarray) -> Any:
        found = super().run(batch if self.before is None else self.before(batch))
        return found if self.after is None else self.after(found)


def shifted(found: Any) -> Any:
    """Classes counted with a background first."""
    if isinstance(found, list):
        return [{**one, "labels": one["labels"] + 1} for one in found]
    return np.roll(found, 1, axis=1)


def only_one(batch: np.ndarray) -> np.ndarray:
    if len(batch) > 1:
        raise ValueError("expected 1 picture")
    return batch


def faults(head: str, reference: TorchRuntime) -> dict[str, TorchRuntime]:
    network, card = reference.network, reference.card
    record = card.preprocess
    swapped = replace(card, preprocess=replace(record, mean=record.std, std=record.mean))
    contiguous = make_dense(head, partition="contiguous")
    contiguous.load_state_dict(network.state_dict())
    training = copy.deepcopy(network)
    for module in training.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return {
        "mean and std swapped": TorchRuntime(network, swapped),
        "blue for red": Changed(reference, before=lambda batch: batch[:, ::-1].copy()),
        "windows contiguous, not strided": TorchRuntime(contiguous, card),
        "other batch norm statistics": TorchRuntime(training, card),
        "classes shifted by one": Changed(reference, after=shifted),
        "a batch size baked in": Changed(reference, before=only_one),
        "the batch in another order": Changed(reference, after=lambda found: found[::-1]),
    }


@pytest.mark.parametrize("head", HEADS)
def test_the_gate_finds(head: str, pictures: list[Path]) -> None:
    network = make_dense(head)
    reference = TorchRuntime(network, make_dense_card(network))
    assert compare(reference, reference, pictures).max_diff < 1e-3
    for name, candidate in faults(head, reference).items():
        gate = compare(reference, candidate, pictures)
        assert not gate.passed and gate.agreement < 0.98, name
        if name == "a batch size baked in":
            assert gate.problems == ["batch 3: expected 1 picture", "batch 8: expected 1 picture"]


def boxes(*rows: tuple[float, float, float, float, float, int]) -> dict[str, np.ndarray]:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].astype(np.int64)}


class Thresholds:
    score_thresh, detections_per_img = 0.05, 100


@pytest.mark.parametrize(
    ("found", "agreement"),
    [
        (boxes((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.5, 1)), 1),
        (boxes((20, 20, 40, 40, 0.5, 1), (0, 0, 10, 10, 0.9, 0)), 1),  # in another order
        (boxes((0, 0, 10, 10.05, 0.9005, 0), (20, 20, 40, 40, 0.5, 1)), 1),
        (boxes((0, 0, 10, 10.2, 0.9, 0), (20, 20, 40, 40, 0.5, 1)), 1 / 2),  # 2 thousandths of 100 pixels
        (boxes((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.502, 1)), 1 / 2),
        (boxes((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.5, 0)), 1 / 2),  # another class
        (boxes((0, 0, 10, 10, 0.9, 0)), 2 / 3),
        (boxes((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.5, 1), (5, 5, 9, 9, 0.2, 0)), 4 / 5),
        (boxes((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.5, 1), (50, 50, 60, 60, 0.0505, 0)), 1),
    ],
)
def test_which_boxes_are_the_same(found: dict[str, np.ndarray], agreement: float) -> None:
    """By hand. One that lies at the threshold may be there or not."""
    ours = boxes((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.5, 1))
    comparison = BoxComparison(Thresholds, side=100, tolerance=1e-3)
    comparison.see([ours])
    assert comparison.add(1, [ours], [found]) == ""
    assert comparison.row(1).agreement == pytest.approx(agreement)


def test_the_last_of_as_many_boxes_as_are_allowed_may_be_another() -> None:
    shared = [(0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.5, 1)]
    ours, theirs = boxes(*shared, (60, 0, 70, 9, 0.3, 0)), boxes(*shared, (0, 60, 9, 70, 0.3, 0))
    comparison = BoxComparison(Thresholds, side=100, tolerance=1e-3)
    comparison.limit = 3
    comparison.add(1, [ours], [theirs])
    assert comparison.row(1).agreement == 1


def test_a_detector_that_finds_nothing_proves_nothing(pictures: list[Path]) -> None:
    network = make_dense("ssdlite")
    network.set_thresholds(score=1.0)
    runtime = TorchRuntime(network, make_dense_card(network))
    with pytest.raises(ValueError, match="finds no box with a score above 1 on pictures from here; nothing"):
        compare(runtime, runtime, pictures[:1], source="here")


def test_mask_rcnn_is_refused_by_its_head(tmp_path: Path) -> None:
    run = make_dense_run(tmp_path / "run", "mask_rcnn")
    with pytest.raises(ValueError, match="a model with the head mask_rcnn cannot be exported"):
        export(run)
    assert [path.name for path in run.iterdir()] == ["model.safetensors"]


def test_pictures_of_many_forms_become_one(caplog: pytest.LogCaptureFixture) -> None:
    card = make_dense_card(make_dense("deeplabv3"), fit="inside")
    record = of_one_shape(card, "runs/a").preprocess
    assert (record.fit, record.size) == ("stretch", (64, 96))
    assert "runs/a: the file resizes every picture to exactly 64x96; the run keeps" in caplog.text
    caplog.clear()
    assert of_one_shape(replace(card, preprocess=record)).preprocess == record
    assert not caplog.text


@pytest.mark.parametrize("head", ["deeplabv3", "ssdlite"])
def test_the_gates_pictures_are_no_masks(head: str, data: dict[str, Path]) -> None:
    network = make_dense(head)
    folder = data[network.task]
    card = make_dense_card(network, data=str(folder))
    for found, source in (pick_pictures(card), pick_pictures(card, folder)):
        own = [path for path in found if folder in path.parents]
        assert len(own) == 5 and not any("masks" in path.relative_to(folder).parts for path in own)
        assert {path.parent.name for path in own} == {"val"}
        assert source == f"{folder} (5) and drawn shapes (59)"
    if head == "ssdlite":
        found, _ = pick_pictures(card, folder / "annotations" / "instances_train.json")
        assert {path.parent.name for path in found if folder in path.parents} == {"train"}


@pytest.mark.parametrize("head", ["deeplabv3", "ssdlite"])
def test_predict_answers_the_same(head: str, exported: Exported, pictures: list[Path]) -> None:
    run, _ = exported[head]
    ours, theirs = (
        metamobile.load(run).predict(pictures),
        metamobile.load(run / "model.onnx").predict(pictures),
    )
    for a, b in zip(ours, theirs, strict=True):
        if head == "deeplabv3":
            assert a.mask.shape == (80, 90) and (a.mask == b.mask).mean() > 0.999
        else:
            assert a.labels == b.labels
            np.testing.assert_allclose(a.boxes, b.boxes, atol=0.01)
    if head == "ssdlite":
        with pytest.raises(ValueError, match="iou 0.7: in a file for ONNX Runtime the overlap is fixed"):
            metamobile.load(run / "model.onnx").predict(pictures[0], iou=0.7)


def test_the_files_need_no_torch(exported: Exported, data: dict[str, Path], pictures: list[Path]) -> None:
    files = {
        "detect": exported["ssdlite"][0] / "model.onnx",
        "segment": exported["deeplabv3"][0] / "model.onnx",
    }
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "import metamobile_cli\n"
    )
    for task, file in files.items():
        code += (
            f"code = metamobile_cli.run(['predict', {str(file)!r}, {str(pictures[0])!r}])\n"
            "assert code == 0, code\n"
            f"code = metamobile_cli.run(['eval', {str(file)!r}, '--data', {str(data[task])!r}])\n"
            "assert code == 0, code\n"
        )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 pictures") == 2
