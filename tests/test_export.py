"""Export and its gate: what passes, every fault it must find, and what becomes of a file that fails."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from metamobile.deploy.export import export
from metamobile.deploy.formats import Options
from metamobile.deploy.formats.onnx import OnnxRuntime
from metamobile.deploy.formats.onnx import write as export_onnx
from metamobile.deploy.gate import PICTURES, compare, pick_pictures
from metamobile.deploy.runtimes import UNVERIFIED, TorchRuntime
from metamobile.models.create import create_model
from metamobile.weights.card import KEY, Card
from small_model import make_card, make_network, make_run, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 70)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "insects")


@pytest.fixture(scope="module")
def reference() -> TorchRuntime:
    network = make_network()
    return TorchRuntime(network, make_card(network))


@pytest.fixture(scope="module")
def exported(run: Path, pictures: list[Path]) -> list:
    return export(run, "onnx", verify=pictures[0].parent)


class Flipped(nn.Module):
    """A network that is given its colours in the other order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.flip(1))


class InTraining(TorchRuntime):
    def run(self, batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.network.train()(torch.from_numpy(batch)).numpy()


def test_a_sound_file_passes(run: Path, exported: list) -> None:
    (gate,) = exported
    assert gate.passed
    assert gate.path == run / "model.onnx"
    assert sorted(path.name for path in run.iterdir()) == ["USE.md", "model.onnx", "model.safetensors"]
    assert [row.batch_size for row in gate.rows] == [1, 3, 8]
    assert (gate.pictures, gate.agreement) == (PICTURES, 1)
    assert 0 < gate.relative < 1e-5
    assert gate.mean_diff < gate.max_diff
    json.dumps(gate.to_dict())


def test_the_file_speaks_for_itself(run: Path, exported: list) -> None:
    model = onnx.load(run / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model)
    (pixels,), (logits,) = model.graph.input, model.graph.output
    shape = [d.dim_param or d.dim_value for d in pixels.type.tensor_type.shape.dim]
    assert (pixels.name, logits.name, shape) == ("pixels", "logits", ["batch", 3, 64, 64])
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    network = make_network()
    assert Card.from_json(metadata[KEY]) == make_card(network)
    content = (run / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in content, "a path of this machine is in the file"


def test_any_batch_size(run: Path, exported: list, reference: TorchRuntime) -> None:
    runtime = OnnxRuntime(run / "model.onnx")
    pixels = np.random.default_rng(0).normal(size=(11, 3, 64, 64)).astype(np.float32)
    for size in (1, 2, 5, 11):
        np.testing.assert_allclose(runtime.run(pixels[:size]), reference.run(pixels[:size]), atol=1e-4)
    with pytest.raises(ValueError, match=r"cannot run on \(1, 3, 32, 32\)"):
        runtime.run(pixels[:1, :, :32, :32])


def faults() -> dict:
    network = make_network()
    card = make_card(network)
    record = card.preprocess
    other_statistics = copy.deepcopy(network)
    for module in other_statistics.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    contiguous = make_network(partition="contiguous")
    contiguous.load_state_dict(network.state_dict())

    def with_record(**changes) -> TorchRuntime:
        return TorchRuntime(network, replace(card, preprocess=replace(record, **changes)))

    return {
        "mean and std swapped": with_record(mean=record.std, std=record.mean),
        "bilinear for bicubic": with_record(interpolation="bilinear"),
        "another resize": with_record(resize=64),
        "blue for red": TorchRuntime(Flipped(network), card),
        "left in training mode": InTraining(copy.deepcopy(network), card),
        "other batch norm statistics": TorchRuntime(other_statistics, card),
        "windows contiguous, not strided": TorchRuntime(contiguous, card),
        "classes in another order": TorchRuntime(network, replace(card, classes=card.classes[::-1])),
    }


@pytest.mark.parametrize("fault", list(faults()))
def test_the_gate_finds(fault: str, reference: TorchRuntime, pictures: list[Path]) -> None:
    gate = compare(reference, faults()[fault], pictures[:16])
    assert not gate.passed
    if "classes" in fault:
        assert gate.problems == ["the file's classes are not the model's"]
    else:
        assert gate.relative > 3e-3, "thirty times what is allowed"


def test_the_gate_finds_a_batch_size_that_was_baked_in(reference: TorchRuntime, pictures: list[Path]) -> None:
    class OnlyOne(TorchRuntime):
        def run(self, batch: np.ndarray) -> np.ndarray:
            if len(batch) > 1:
                raise ValueError("expected 1 picture")
            return super().run(batch)

    gate = compare(reference, OnlyOne(reference.network, reference.card), pictures[:9])
    assert [row.agreement for row in gate.rows] == [1, 0, 0]
    assert gate.problems == ["batch 3: expected 1 picture", "batch 8: expected 1 picture"]


def test_the_gate_finds_values_that_are_not_finite(reference: TorchRuntime, pictures: list[Path]) -> None:
    class Silent(TorchRuntime):
        def run(self, batch: np.ndarray) -> np.ndarray:
            return np.full((len(batch), 3), np.nan, np.float32)

    gate = compare(reference, Silent(reference.network, reference.card), pictures[:9])
    assert (gate.passed, gate.max_diff, gate.agreement) == (False, np.inf, 0)
    assert gate.problems[0] == "batch 1: some logits are not finite"


def test_a_network_that_answers_always_the_same_is_told(pictures: list[Path], caplog) -> None:
    network = create_model("emo_1m", num_classes=3, window_size=2)  # as it starts
    with torch.no_grad():
        network.get_classifier().bias += 1
    runtime = TorchRuntime(network, make_card(network))
    assert compare(runtime, runtime, pictures[:9]).passed
    assert "answers nearly the same for every picture" in caplog.text


def test_a_choice_between_equals_is_no_difference() -> None:
    class Fixed(TorchRuntime):
        def __init__(self, logits: list[float]) -> None:
            self.logits, self.card, self.name = logits, make_card(make_network()), "fixed"

        def run(self, batch: np.ndarray) -> np.ndarray:
            return np.tile(np.float32(self.logits), (len(batch), 1))

    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        (picture,) = write_pictures(Path(folder), 1)
        near = compare(Fixed([1.0, 1.00001, 0.0]), Fixed([1.00001, 1.0, 0.0]), [picture])
        far = compare(Fixed([1.0, 1.01, 0.0]), Fixed([1.01, 1.0, 0.0]), [picture])
    assert near.passed
    assert (far.passed, far.agreement) == (False, 0)


def test_a_file_that_fails_is_removed_or_marked(
    run: Path, pictures: list[Path], tmp_path: Path, monkeypatch, caplog
):
    def wrong(network: nn.Module, card: Card, path: Path, options: Options) -> None:
        export_onnx(Flipped(network), card, path)

    monkeypatch.setattr("metamobile.deploy.formats.onnx.write", wrong)
    (gate,) = export(run, "onnx", out=tmp_path / "a", verify=pictures[0].parent)
    assert not gate.passed
    assert list((tmp_path / "a").iterdir()) == []
    assert "logits differ by" in caplog.text

    (gate,) = export(run, "onnx", out=tmp_path / "b", verify=pictures[0].parent, keep=True)
    assert gate.path == tmp_path / "b" / "insects.unverified.onnx"
    assert list((tmp_path / "b").iterdir()) == [gate.path], "and nothing says how to use it"
    runtime = OnnxRuntime(gate.path)
    assert "logits differ by" in runtime.session.get_modelmeta().custom_metadata_map[UNVERIFIED]
    assert "insects.unverified.onnx failed its gate" in caplog.text


def test_a_file_that_cannot_be_opened_is_removed(
    run: Path, pictures: list[Path], tmp_path: Path, monkeypatch
) -> None:
    def truncated(network: nn.Module, card: Card, path: Path, options: Options) -> None:
        export_onnx(network, card, path)
        path.write_bytes(path.read_bytes()[:-1000])

    monkeypatch.setattr("metamobile.deploy.formats.onnx.write", truncated)
    with pytest.raises(ValueError, match="ONNX Runtime cannot read it"):
        export(run, "onnx", out=tmp_path / "a", verify=pictures[0].parent)
    assert list((tmp_path / "a").iterdir()) == []


def test_another_size(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    (gate,) = export(run, ["onnx", "onnx"], out=tmp_path, size=(48, 80), verify=pictures[0].parent)
    assert gate.passed
    assert gate.path == tmp_path / "insects.onnx"
    record = OnnxRuntime(gate.path).card.preprocess
    assert (record.size, record.resize) == ((48, 80), None)
    assert replace(record, size=(64, 64), resize=72).at_size(128).resize == 144


def test_words_of_errors(run: Path, monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size 5: expected at least 32 pixels a side"):
        export(run, size=5)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: a file; expected the name of a folder to write into"):
        export(run, out=tmp_path / "file")
    with pytest.raises(ValueError, match="no exporter is called 'onx'; there are .*; did you mean 'onnx'"):
        export(run, ["onx"])
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ValueError, match="an exported file; expected the run folder"):
        export(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r'needs onnxscript: pip install "metamobile\[onnx\]"'):
        export_onnx(nn.Identity(), make_card(make_network()), tmp_path / "b.onnx")


def test_pictures_come_from_where_it_says(tmp_path: Path, pictures: list[Path], monkeypatch, caplog) -> None:
    drawn = write_pictures(tmp_path / "drawn", 80, seed=5)
    monkeypatch.setattr("metamobile.deploy.gate.shapes_folder", lambda: tmp_path / "drawn")
    real, network = pictures[0].parent, make_network()

    found, source = pick_pictures(make_card(network), real)
    assert (len(found), source) == (64, str(real))
    assert pictures[-1] in found, "spread over all, and so over all classes"
    found, source = pick_pictures(make_card(network, data=str(real)))
    assert (len(found), source) == (64, str(real))
    assert not caplog.text

    found, source = pick_pictures(make_card(network, data="no/such/folder"))
    assert (len(found), source) == (64, "drawn shapes")
    assert "the model's own, at no/such/folder, are not here" in caplog.text
    assert pick_pictures(make_card(network, data="shapes"))[1] == "shapes"
    assert pick_pictures(make_card(network))[1] == "drawn shapes"
    with pytest.raises(ValueError, match="no/such"):
        pick_pictures(make_card(network), "no/such")

    few = write_pictures(tmp_path / "few", 5)
    few[1].write_bytes(few[1].read_bytes()[:100])
    found, source = pick_pictures(make_card(network), tmp_path / "few")
    assert source == f"{tmp_path / 'few'} (4) and drawn shapes (60)"
    assert len(found) == 64
    assert few[1] not in found
    assert set(found) <= {*few, *drawn}
