"""Occlusion, and so what an exported file can be asked: a planted network, a run against its file."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metamobile
from metamobile.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from metamobile.deploy.any_size import LEAST
from metamobile.deploy.form import deploy
from metamobile.deploy.formats import Options
from metamobile.deploy.formats import onnx as onnx_format
from metamobile.deploy.preprocessing import scaled_card
from metamobile.study.explain.cam import rank_correlation, shuffle_weights
from metamobile.study.explain.explain import explain
from metamobile.study.explain.occlusion import ask_answers, grey, occlusion_map, spacing
from metamobile.study.explain.subject import Subject, open_subject
from metamobile.tasks.asked import NothingFound
from metamobile.tasks.detect.asked import overlaps
from metamobile.weights.file import save_weights
from metamobile.weights.network import load_network
from metamobile_cli import run as command
from small_dense import make_dense_run
from small_model import make_card, make_network, write_pictures
from small_training import TINY_ARGS
from test_explain_maps import Planted

RED = (200, 30, 30)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 1)[0]  # 90 x 80


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "insects"
    network = make_network(**TINY_ARGS)
    card = make_card(network)
    card.model_args.update(TINY_ARGS)
    save_weights(folder / "model.safetensors", network.state_dict(), card)
    onnx_format.write(deploy(network), card, folder / "model.onnx")
    return folder


def planted(tmp_path: Path, form: str) -> Subject:
    """The network whose class 0 is the redness of cells (1, 3) and (2, 3), itself or as a file."""
    network = Planted().eval()
    if form == "network":
        return open_subject(network, size=64)
    card = replace(make_card(make_network()), classes=["red", "green"], names=["red", "green"])
    onnx_format.write(network, card, tmp_path / "a.onnx", Options(preprocessing=form == "picture"))
    return open_subject(tmp_path / "a.onnx")


@pytest.mark.parametrize("form", ["network", "file", "picture"])
def test_only_the_planted_region_lights_up(form: str, tmp_path: Path) -> None:
    subject = planted(tmp_path, form)
    pixels = subject.see(Image.new("RGB", (64, 64), RED))
    asked = ask_answers(subject, pixels, 0)
    values = occlusion_map(subject, asked, pixels)
    assert values.shape == (16, 16) and values.max() == 1  # 4 pixels apart, 12 are hidden at a time
    region = np.zeros((16, 16), bool)
    # a file that preprocesses resizes 64 pixels to 73 and looks at the middle 64: from 46 to 60, and 18 to 46
    region[(slice(5, 11), slice(12, 14)) if form == "picture" else (slice(4, 12), slice(12, 16))] = True
    reach = np.zeros((16, 16), bool)
    reach[3:13, 11:16] = True  # from where a square still covers a part
    assert values[region].min() > 0.4
    assert form == "picture" or not values[~reach].any()
    assert not values[:, :8].any()


def test_a_class_that_nothing_speaks_for_has_an_empty_map(tmp_path: Path) -> None:
    subject = planted(tmp_path, "network")
    dark = np.full((1, 3, 64, 64), -1.0, np.float32)
    assert not occlusion_map(subject, ask_answers(subject, dark, 1), dark).any()


@pytest.mark.parametrize(("size", "step"), [(224, 16), (128, 8), (64, 4), (512, 32), (LEAST, 2)])
def test_positions_are_12_to_24_along_the_longer_side(size: int, step: int) -> None:
    assert spacing((size // 2, size)) == step and 12 <= size / step < 24


def test_the_map_of_shuffled_weights_is_another(shared: Path) -> None:
    """Trained weights and real pictures: under 0.5 in the mean over pictures and seeds."""
    folder = shared / "data" / "imagenette2-160" / "val"
    network, card = load_network("emo_1m.imagenette")
    subject = Subject("a", network.eval(), "classify", card.classes, card.names, card.preprocess)
    found = []
    for name in ("n02102040", "n03445777"):
        pixels = subject.see(Image.open(sorted((folder / name).iterdir())[7]).convert("RGB"))
        asked = ask_answers(subject, pixels)
        values = occlusion_map(subject, asked, pixels)
        for seed in (0, 1):
            other = copy.deepcopy(network)
            shuffle_weights(other, seed)
            changed = occlusion_map(replace(subject, network=other), asked, pixels)
            found.append(rank_correlation(values, changed))
    assert np.mean(found) < 0.5


def test_grey_is_the_same_colour_in_every_form() -> None:
    record = Preprocess()
    levels = scaled_card(make_card(make_network())).preprocess
    for one, expected in (
        (record, np.zeros(3)),
        (levels, 255 * np.array(IMAGENET_MEAN)),
        (Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), 2 * np.array(IMAGENET_MEAN) - 1),
    ):
        subject = Subject("a", None, "classify", [], [], one)
        np.testing.assert_allclose(grey(subject).ravel(), expected, rtol=1e-4, atol=1e-5)
    assert record.std == IMAGENET_STD


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 4]], np.float32)
    np.testing.assert_allclose(overlaps(boxes, boxes[0]), [1, 1 / 7, 0, 1 / 2])


def correlation(one: Any, other: Any) -> float:
    return float(np.corrcoef(one.cam.ravel(), other.cam.ravel())[0, 1])


def test_a_file_is_explained_without_torch(run: Path, picture: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; import metamobile_cli; metamobile_cli.run(sys.argv[1:])"
    words = ["explain", str(run / "model.onnx"), str(picture), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "16x16" in done.stdout, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["explain.html", "explain.png"]


def test_the_maps_of_a_run_and_of_its_file_are_the_same(run: Path, picture: Path, tmp_path: Path) -> None:
    """Without a method being named, a file among the models decides."""
    result = explain([run, run / "model.onnx"], picture, out=tmp_path, target="bees")
    assert result.method == "occlusion" and result.method_name == "Occlusion"
    ours, theirs = (model.rows[0] for model in result.models)
    assert ours is not None and theirs is not None
    assert ours.cam.shape == theirs.cam.shape == (16, 16) and np.ptp(ours.cam) == 1
    assert correlation(ours, theirs) > 0.99
    assert ours.target.label == theirs.target.label == "bees"
    assert ours.target.score == pytest.approx(theirs.target.score, abs=1e-5)
    assert ours.layer == theirs.layer == "input" and ours.correlation is None
    assert ours.attention and result.models[0].field is not None, "the run has all the rest"
    assert not theirs.attention and theirs.point is None and result.models[1].field is None
    assert result.models[1].no_attention == "attention needs the weights"
    (note,) = result.notes
    assert note.startswith(f"{run / 'model.onnx'}: an exported file; Grad-CAM, attention and the receptive ")
    assert note.endswith("the map is how far the answer falls where a patch is hidden")
    page = result.files[1].read_text(encoding="utf-8")
    assert "needs answers alone" in page and "shuffled" not in page
    side_by_side = explain([], picture, compare=[str(run), str(run / "model.onnx")], out=tmp_path / "b")
    assert [len(model.rows) for model in side_by_side.models] == [1, 1] and side_by_side.files


def test_hidden_places_lower_the_answer_by_what_the_map_says(run: Path, picture: Path) -> None:
    """By hand: a square over the peak, in the picture's own pixels."""
    subject = open_subject(run / "model.onnx")
    with Image.open(picture) as opened:
        pixels = subject.see(opened.convert("RGB"))
    asked = ask_answers(subject, pixels, "ants")
    values = occlusion_map(subject, asked, pixels)
    falls = []
    for row, column in (divmod(int(values.argmax()), 16), (0, 15), (7, 7)):
        hidden = pixels.copy()
        hidden[..., max(0, 4 * row - 4) : 4 * row + 8, max(0, 4 * column - 4) : 4 * column + 8] = 0
        falls.append((values[row, column], float(subject.run(pixels)[0, 0] - subject.run(hidden)[0, 0])))
    highest = falls[0][1]
    assert highest > 0
    for value, fall in falls:
        assert value == pytest.approx(max(fall, 0) / highest, abs=1e-3)


@pytest.mark.parametrize("head", ["deeplabv3", "ssdlite"])
def test_regions_and_objects(head: str, picture: Path, tmp_path: Path) -> None:
    folder = make_dense_run(tmp_path / head, head)
    network, card = load_network(folder)
    onnx_format.write(deploy(network), card, folder / "model.onnx")
    result = explain([folder, folder / "model.onnx"], picture, out=tmp_path / "out")
    ours, theirs = (model.rows[0] for model in result.models)
    assert ours is not None and theirs is not None and ours.cam.shape == (8, 12)
    assert ours.target.label == theirs.target.label
    assert correlation(ours, theirs) > 0.99
    if head == "ssdlite":
        assert theirs.target.box == pytest.approx(ours.target.box, abs=0.05)
        with pytest.raises(ValueError, match="circle 999 cannot be shown"):
            explain(folder / "model.onnx", picture, out=None, target="circle:999")
    else:
        assert theirs.target.mask is not None and theirs.target.mask.shape == (64, 96)


def test_a_class_that_no_pixel_is_answered_with() -> None:
    class Fixed(nn.Module):
        task = "segment"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.sum(1) * 0 + 1, x.sum(1) * 0], 1)

    network = nn.Sequential(nn.Identity(), Fixed())
    network.register_parameter("none", nn.Parameter(torch.zeros(1)))
    subject = Subject("a", network, "segment", ["0", "1"], ["sky", "sea"], Preprocess())
    with pytest.raises(NothingFound, match="no pixel is answered with sea"):
        ask_answers(subject, np.zeros((1, 3, 32, 32), np.float32), "sea")


def test_what_a_file_cannot_do(run: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run / "model.onnx"
    words = "an exported file, which has no gradients or maps for Grad-CAM; expected the method occlusion"
    for model in (file, metamobile.load(file)):
        with pytest.raises(ValueError, match=words):
            explain(model, picture, out=None, method="gradcam")
    with pytest.raises(
        ValueError, match="takes pictures of 64x64 alone; expected no other size, or a file th"
    ):
        explain(file, picture, out=None, size=96)
    with pytest.raises(ValueError, match="has no class 'bes'; .*did you mean 'bees'"):
        explain(file, picture, out=None, target="bes")
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    result = explain(metamobile.load(file), picture, out=None, point=(40, 40), head=1, stage=3)
    assert result.notes[0] == "occlusion looks at no layer: the one given has no effect on the map"
    assert result.notes[1].endswith("; no effect: point, head")
    assert result.models[0].name == "emo_1m"


def test_a_run_takes_the_method_by_name(run: Path, picture: Path) -> None:
    result = explain(run, picture, out=None, method="Occlusion", size=(64, 96))
    row = result.models[0].rows[0]
    assert row is not None and row.cam.shape == (8, 12) and row.heat.shape == (64, 96)
    assert row.frame.to_input(*row.point) and row.attention


def test_as_a_command(run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["explain", str(run / "model.onnx"), str(picture), "--out", str(tmp_path / "out")]
    assert command(arguments) == 0
    shown = capsys.readouterr()
    assert "\tinput\t16x16\t" in shown.out and "shuffled" not in shown.out
    assert "need the weights" in shown.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"explain.png", "explain.html"}
    assert command([*arguments, "--method", "eigencam"]) == 2
    assert "expected the method occlusion" in capsys.readouterr().err
