"""`metamobile.explain`: from models and pictures to a figure, a page and their words."""

from __future__ import annotations

import sys
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from PIL import Image

from metamobile.study import opened
from metamobile.study.explain.explain import explain
from metamobile_cli.options import split_models
from small_detector import small
from small_model import make_network, make_run, write_pictures
from test_explain_maps import Planted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 1)[0]  # 90 x 80


def test_a_planted_pattern_lights_up_at_the_pictures_own_pixels(tmp_path: Path) -> None:
    """Class 0 is the redness of the cells (1, 3) and (2, 3) of 16 pixels; the 64 px crop is of 73."""
    Image.new("RGB", (292, 146), (200, 30, 30)).save(tmp_path / "red.png")
    result = explain(Planted(), tmp_path / "red.png", size=64, target="0", out=None)
    row = result.models[0].rows[0]
    assert row is not None and row.layer == "gate"
    heat = row.on_picture(row.heat)
    assert heat.shape == (146, 292)
    # resized to 146 x 73, cropped from (41, 4): cell x is 41 + 16 x to 57 + 16 x, times 2 in the picture
    assert heat[2 * (4 + 32), 2 * (41 + 56)] > 0.9  # where the two cells meet
    assert heat[2 * (4 + 32), 2 * (41 + 12)] == 0
    assert np.isnan(heat[:, : 2 * 41 - 1]).all() and not np.isnan(heat[20, 2 * 41 + 2])
    assert row.point == pytest.approx((2 * (41 + 56), 2 * (4 + 24)), abs=1) or row.point[1] == pytest.approx(
        2 * (4 + 40), abs=1
    )


def test_all_that_is_shown_of_a_run(run: Path, picture: Path, tmp_path: Path) -> None:
    steps = []
    result = explain(run, picture, out=tmp_path, progress=lambda *at: steps.append(at))
    (model,), (row,) = result.models, result.models[0].rows
    assert steps == [(1, 1)] and result.files == [tmp_path / "explain.png", tmp_path / "explain.html"]
    assert row is not None and row.layer == "stages.4" and row.cam.shape == (2, 2)
    assert row.target.label in ("ants", "bees", "English springer")
    assert {one.layer.split(".operator")[0] for one in row.attention} <= {f"stages.3.{i}" for i in range(9)}
    for one in row.attention:
        assert one.pixels.shape == (64, 64) and one.pixels.sum() + one.padded == pytest.approx(1, abs=1e-6)
    assert model.field is not None and model.field.layer == "stages.4" and 0 < model.field.share <= 1
    with Image.open(result.files[0]) as image:
        assert min(image.size) > 300
    page = result.files[1].read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and row.attention[-1].layer in page and 'src="http' not in page


def test_a_chosen_class_stage_layer_and_point(run: Path, picture: Path) -> None:
    third = explain(run, picture, out=None, target="BEES", stage=3, point=(50, 40), check=False)
    row = third.models[0].rows[0]
    assert row is not None and (row.target.label, row.layer, row.cam.shape) == ("bees", "stages.3", (4, 4))
    # 80 px to 73, of which the crop is from 9 and 4 on: the point is at 50 * 73 / 80 - 9 = 36.6 and 32.5
    assert row.point == (50, 40) and {one.query for one in row.attention} == {(2, 2)}
    assert third.models[0].field.layer == "stages.3" and row.correlation is None
    one = explain(run, picture, out=None, layer="stages.3.3", method="Eigen-CAM", target=0, check=False)
    assert one.models[0].rows[0].layer == "stages.3.3"
    assert {a.layer for a in one.models[0].rows[0].attention} == {"stages.3.3.operator.attention"}
    assert one.notes == ["eigencam looks at no class: the class given has no effect on the map"]


def test_models_side_by_side_and_what_was_left_out(
    run: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = opened.load_network

    def offline(name: Any) -> Any:
        if str(name) == "resnet50":
            raise ValueError("resnet50: its weights could not be fetched, which needs the network once")
        return load(name)

    monkeypatch.setattr(opened, "load_network", offline)
    monkeypatch.setattr(opened, "check_hub", lambda name: None)  # has a test of its own
    compare = ["resnet50", "mpvit_tiny", str(run)]
    result = explain([], picture, compare=compare, out=tmp_path, check=False)
    assert [model.name for model in result.models] == [str(run)]
    assert result.left_out == compare[:2]
    assert result.notes == [
        "left out: resnet50: its weights could not be fetched, which needs the network once",
        "mpvit_tiny: left out, as neither timm nor metamobile has a network of that name",
    ]
    assert "mpvit_tiny" in result.files[1].read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="nothing is left to show: left out: resnet50.*; mpvit_tiny"):
        explain([], picture, compare=compare[:2], out=None)
    with pytest.raises(ValueError, match="^resnet50: its weights could not be fetched"):
        explain("resnet50", picture, out=None)


@pytest.mark.parametrize("answer", [None, 404])
def test_a_hub_is_asked_once(
    answer: int | None, picture: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that answers, if only that it has no such file, is timm's to read."""
    asked = []

    def urlopen(request: Any, timeout: float) -> Any:
        asked.append((request.get_method(), request.full_url))
        if answer is None:
            raise URLError("no route")
        raise HTTPError(request.full_url, answer, "no", Message(), None)

    monkeypatch.setattr(opened.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(opened, "is_cached", lambda *given: False)
    monkeypatch.setattr(opened, "urlopen", urlopen)
    if answer is None:
        with pytest.raises(
            ValueError, match=r"^resnet50: its weights are not here, .*\(no route\)"
        ) as caught:
            explain("resnet50", picture, out=None)
        assert "\n" not in str(caught.value) and not capfd.readouterr().err
    else:
        opened.check_hub("resnet50")
    assert [(method, url.rpartition("/")[2]) for method, url in asked] == [("HEAD", "model.safetensors")]
    for other in ("emo_1m.imagenette", "emo_5m", "no_such_network", str(picture)):
        opened.check_hub(other)
    assert len(asked) == 1


def test_a_point_beyond_one_pictures_crop_leaves_its_map(run: Path, picture: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.open(picture).resize((300, 80)).save(wide)
    result = explain(run, [picture, wide], point=(160, 40), out=tmp_path / "out", check=False)
    first, second = result.models[0].rows
    assert first is not None and second is not None
    assert first.point is None and not first.attention and first.cam.size
    assert second.point == (160, 40) and second.attention and not second.unseen
    assert len(result.notes) == 1 and "point 160,40 is not seen by the network" in result.notes[0]
    assert picture.name in result.notes[0] and not result.models[0].no_attention


def test_a_detector_with_and_without_objects(tmp_path: Path) -> None:
    network = small("ssdlite")
    network.set_thresholds(score=0)
    path = write_pictures(tmp_path, 1, (100, 70))[0]
    result = explain([network], path, size=96, out=tmp_path / "out", check=False)
    row = result.models[0].rows[0]
    assert row is not None and row.target.box is not None and row.frame.is_whole
    assert row.on_picture(row.heat).shape == (70, 100) and not np.isnan(row.on_picture(row.heat)).any()
    assert row.attention[0].pixels.shape == (96, 96)
    network.set_thresholds(score=1)
    with pytest.raises(ValueError, match="nothing is left to show: SSDLite 0, .*none is found"):
        explain([network], path, size=96, out=None)


def test_a_network_without_windows_says_so(picture: Path, tmp_path: Path) -> None:
    import timm

    network = timm.create_model("resnet10t", num_classes=3)
    result = explain([network, make_network()], picture, size=64, out=tmp_path, check=False, head=0)
    assert [model.no_attention for model in result.models] == ["no window attention in this network", ""]
    assert result.models[0].rows[0].layer == "layer4" and not result.models[0].rows[0].attention
    assert result.notes == ["ResNet 0: head 0 has no effect, as there is no window attention in this network"]


def test_names_are_text_in_the_page(picture: Path, tmp_path: Path, run: Path) -> None:
    from metamobile.inference.model import load

    model = load(run)
    model.card.names[:] = ["<b>ants</b>"] * 3
    page = explain(model, picture, out=tmp_path, check=False).files[1].read_text(encoding="utf-8")
    assert "&lt;b&gt;ants" in page and "<b>ants" not in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"target": "bes"},
            "has no class 'bes'; expected a name or a number from 0 to 2; did you mean 'bees'",
        ),
        ({"target": 3}, "has no class '3'"),
        ({"stage": 5}, "has no stage 5; expected one of 0, 1, 2, 3, 4"),
        ({"layer": "stages.33"}, "has no layer 'stages.33'.*did you mean 'stages.3"),
        ({"layer": "head.fc"}, r"layer head.fc: it gives \(1, 3\), which is no map of a picture of 64x64"),
        ({"stage": 3, "layer": "stages.3"}, "are both given; expected one of them"),
        (
            {"point": (2, 40)},
            "point 2,40 is not seen by the network; expected x from 10 to 80 and y from 5 to",
        ),
        ({"method": "gradcams"}, "no map is called 'gradcams'"),
        ({"size": 16}, "size 16: expected at least 32 pixels"),
        ({"head": 99}, "head 99: .* has heads 0 to"),
    ],
)
def test_errors_are_one_line_that_helps(run: Path, picture: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        explain(run, picture, out=None, check=False, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_called_as_a_network_is_none_of_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("emov2_20m", "resnet50", "pets"):
        write_pictures(tmp_path / name, 1)
    (tmp_path / "run").mkdir()
    words = [str(run), "emov2_20m", "resnet50", "emo_1m.imagenette", "run", "pets", "./resnet50", "a.jpg"]
    assert split_models(words) == (words[:5], words[5:])
    with pytest.raises(ValueError, match="no picture among resnet50; .*called as a network is ./resnet50"):
        split_models(["resnet50"])


def test_what_cannot_be_explained(run: Path, picture: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="model.onnx: ONNX Runtime cannot read it"):
        explain(tmp_path / "model.onnx", picture, out=None)
    with pytest.raises(ValueError, match="no model was given"):
        explain([], picture, out=None)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of 1 pictures can be read; the first: .*broken.png"):
        explain(run, tmp_path / "broken.png", out=None)
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ValueError, match=r'pip install "metamobile\[explain\]"'):
        explain(run, picture, out=None)


def test_the_map_of_shuffled_weights_is_another(shared: Path) -> None:
    """Trained weights and real pictures: under 0.5 in the mean, at 4 x 4 and 8 x 8 positions."""
    folder = shared / "data" / "imagenette2-160" / "val"
    pictures = [sorted((folder / name).iterdir())[7] for name in ("n02102040", "n03445777")]
    torch.manual_seed(0)
    for stage in (3, 4):
        result = explain("emo_1m.imagenette", pictures, stage=stage, out=None)
        found = [row.correlation for row in result.models[0].rows]
        assert np.mean(found) < 0.5
