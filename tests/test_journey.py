"""From a folder of pictures to an answer and an exported file, by the command line alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metamobile.data.shapes import SHAPE_CLASSES, write_folder
from metamobile_cli import run

TINY = "--epochs 1 --size 32 --set run.batch_size=8,run.workers=0,run.device=cpu"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pets", train=24, val=12, size=40)


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pets"
    assert run(["train", "emo_1m", "--data", str(pictures), "--out", str(folder), *TINY.split()]) == 0
    return folder


def test_check_is_content(pictures: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["check", str(pictures)]) == 0
    assert "36 pictures of 6 classes" in capsys.readouterr().out


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    for name in (
        "recipe.yaml",
        "model.safetensors",
        "last",
        "metrics.jsonl",
        "evaluation.json",
        "report.html",
    ):
        assert (trained / name).exists(), name
    assert "How to go on" in (trained / "report.html").read_text()


def test_a_run_is_not_overwritten_unasked(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (trained / "model.safetensors").read_bytes()
    assert run(["train", "emo_1m", "--data", str(pictures), "--out", str(trained), *TINY.split()]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (trained / "model.safetensors").read_bytes() == before


def test_eval_says_what_training_said(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "figures.json"
    assert run(["eval", str(trained), "--data", str(pictures), "--json", str(file), "--device", "cpu"]) == 0
    assert "12 pictures" in capsys.readouterr().out
    measured, said = json.loads(file.read_text()), json.loads((trained / "evaluation.json").read_text())
    assert measured["top1"] == said["top1"] and measured["confusion"] == said["confusion"]


def test_predict_goes_on_after_a_broken_picture(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    good = str(pictures / "val" / SHAPE_CLASSES[0])
    files = [
        "--json",
        str(tmp_path / "a.json"),
        "--csv",
        str(tmp_path / "a.csv"),
        "--out",
        str(tmp_path / "drawn"),
    ]
    assert run(["predict", str(trained), str(broken), good, *files]) == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.err and len(captured.out.splitlines()) == 3
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    assert len(json.loads((tmp_path / "a.json").read_text())["failures"]) == 1


def test_export_then_answers_without_torch(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("onnx")
    assert run(["export", str(trained), "--to", "onnx", "--verify", str(pictures)]) == 0
    assert "PASS" in capsys.readouterr().out
    code = (
        "import sys, metamobile_cli as cli\n"
        f"file, data = {str(trained / 'model.onnx')!r}, {str(pictures)!r}\n"
        "assert cli.run(['predict', file, data]) == 0\n"
        "assert cli.run(['eval', file, '--data', data]) == 0\n"
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_models_lists_without_torch() -> None:
    code = (
        "import sys, metamobile_cli as cli\n"
        "assert cli.run(['models', 'emo_*']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "emo_1m\t1,361,168\t261\t255\t71.5" in done.stdout
