"""The command line: instant help without torch, words and exit codes of errors, what each verb hands on."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from metamobile.deploy.gate import GateResult, GateRow
from metamobile.tasks.classify.results import bar
from metamobile.training.loop import Interrupted
from metamobile_cli import run
from metamobile_cli.options import parse_size, split_commas, split_settings

VERBS = [
    "models",
    "check",
    "train",
    "eval",
    "predict",
    "explain",
    "export",
    "pull",
    "study ablate",
    "study complexity",
    "study criteria",
    "study diagonal",
    "study heads",
    "study reproduce",
]
HELP = Path(__file__).parent / "data" / "help"
ENTRY = [sys.executable, "-m", "metamobile_cli"]


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **names) -> None:
    """Put a module of the given names in the place of `module`, for what the verb imports when it runs."""
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**names))


def plain_help(*verb: str) -> str:
    environment = {**os.environ, "TYPER_USE_RICH": "0", "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [*ENTRY, *verb, "--help"], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout


def help_file(verb: str) -> Path:
    return HELP / f"{verb.replace(' ', '-') or 'metamobile'}.txt"


@pytest.mark.parametrize("verb", VERBS)
def test_help_answers_at_once(verb: str) -> None:
    """In processor time, and against what Python needs to import the command's library on this machine."""

    def seconds(command: list[str]) -> float:
        taken = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(taken)

    least = seconds([sys.executable, "-c", "import typer, rich.console"])
    taken = seconds([*ENTRY, *verb.split(), "--help"])
    assert taken < 5 * least, f"`{verb} --help` takes {taken:.2f} s at best, importing typer {least:.2f} s"


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_no_heavy_library(verb: str) -> None:
    code = (
        "import sys, metamobile_cli\n"
        f"assert metamobile_cli.run([*{verb!r}.split(), '--help']) == 0\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_text_is_pinned(verb: str) -> None:
    """A change of the surface is a change of these files too: `python tests/test_cli.py` writes them anew."""
    text = plain_help(*verb.split())
    pinned = help_file(verb).read_text()
    assert text.split() == pinned.split()


@pytest.mark.parametrize("verb", VERBS)
def test_at_most_a_dozen_flags(verb: str) -> None:
    flags = re.findall(r"^  --([a-z-]+)", plain_help(*verb.split()), flags=re.MULTILINE)
    assert len(flags) <= 12, flags


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"metamobile \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_without_a_verb_it_lists_the_verbs(capsys: pytest.CaptureFixture) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(verb.split()[0] in out for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?; see `metamobile --help`"),
        (["train", "--epocs", "3"], "No such option: --epocs (Possible options: --epochs"),
        (["train", "--epochs", "many"], "Invalid value for '--epochs'"),
        (["eval"], "Missing argument 'MODEL'; see `metamobile eval --help`"),
        (
            ["train", "--size", "12.5"],
            "--size '12.5': expected pixels such as 128, or height,width such as 96,160",
        ),
        (["predict", "runs/pets"], "no picture given to runs/pets; expected files, folders, globs, or -"),
        (["models", "emo_1n"], "no model matches 'emo_1n'; known are emo_1m"),
    ],
)
def test_wrong_words_get_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err


def test_value_error_is_one_line_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def train(*_, **__) -> None:
        raise ValueError("no such folder: petss; did you mean 'pets'?")

    stand_in(monkeypatch, "metamobile.training.train", train=train)
    assert run(["train", "emo_1m", "--data", "petss"]) == 2
    assert capsys.readouterr().err == "error: no such folder: petss; did you mean 'pets'?\n"
    monkeypatch.setenv("METAMOBILE_DEBUG", "1")
    with pytest.raises(ValueError, match="petss"):
        run(["train", "emo_1m", "--data", "petss"])


def test_train_hands_on_what_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = {}

    def train(name, data, **rest):
        given.update(rest, name=name, data=data)
        return SimpleNamespace(folder=Path("runs/pets"))

    stand_in(monkeypatch, "metamobile.training.train", train=train)
    line = "train emo_2m --data pets --size 96,160 --head fpn"
    settings = "--set optim.lr=1e-3,data.mean=0.5,0.5,0.5 --set run.seed=1"
    assert run(f"{line} {settings}".split()) == 0
    assert (given["name"], given["data"], given["size"], given["head"]) == (
        "emo_2m",
        "pets",
        [96, 160],
        "fpn",
    )
    assert given["set"] == ["optim.lr=1e-3", "data.mean=0.5,0.5,0.5", "run.seed=1"]
    assert given["epochs"] is None and given["overwrite"] is False
    assert "runs/pets/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [Interrupted("stopped in epoch 3"), KeyboardInterrupt()])
def test_ctrl_c_is_130(stop: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_, **__) -> None:
        raise stop

    stand_in(monkeypatch, "metamobile.training.train", train=train)
    assert run(["train", "emo_1m"]) == 130


def answers(monkeypatch: pytest.MonkeyPatch, failures: list[str]) -> dict:
    """`predict` replaced by one that always says tench; returns what it was asked."""
    given = {}

    def predict(model, pictures, **rest):
        given.update(rest, model=model, pictures=pictures)
        results = [
            SimpleNamespace(picture=p, labels=["tench", "church"], scores=[0.9, 0.1]) for p in pictures
        ]
        return SimpleNamespace(task="classify", results=results, failures=failures)

    stand_in(monkeypatch, "metamobile.inference.predict", predict=predict)
    return given


def test_predict_prints_tab_separated_lines_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = answers(monkeypatch, failures=[])
    assert run(["predict", "runs/pets", "a.jpg", "b.jpg", "--top", "2"]) == 0
    assert (given["model"], given["pictures"], given["top"]) == ("runs/pets", ["a.jpg", "b.jpg"], 2)
    heading, first, _ = capsys.readouterr().out.splitlines()
    assert heading.split("\t") == ["picture", "label", "score", "then"]
    assert first.split("\t") == ["a.jpg", "tench", "90.0 %", "church 10.0 %"]


def test_predict_names_broken_pictures_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    answers(monkeypatch, failures=["c.jpg: truncated"])
    assert run(["predict", "runs/pets", "a.jpg", "c.jpg"]) == 1
    captured = capsys.readouterr()
    assert "error: c.jpg: truncated" in captured.err and "tench" in captured.out


@pytest.mark.parametrize("first", ["photo.jpg", "PHOTO.PNG", "holiday/*.jpg", "-", "."])
def test_predict_without_a_model_uses_the_shipped_one(
    first: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = answers(monkeypatch, failures=[])
    assert run(["predict", first]) == 0
    assert (given["model"], given["pictures"]) == ("emo_1m.imagenette", [first])
    assert capsys.readouterr().err.count("emo_1m.imagenette") == 1


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_export_ends_with_the_gate(
    passed: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = {}

    def export(model, **rest):
        given.update(rest)
        rows = [GateRow(batch_size=1, max_diff=1e-5, mean_diff=1e-6, agreement=1.0)]
        problems = [] if passed else ["batch 1: logits differ"]
        file = tmp_path / ("model.onnx" if passed else "model.unverified.onnx")
        file.write_bytes(b"x" * 5_100_000)
        about = {"pictures": 64, "source": "drawn shapes", "rows": rows, "problems": problems}
        figures = {"max_diff": 1e-5, "mean_diff": 1e-6, "scale": 9.0, "spread": 9.0, "agreement": 1.0}
        gates = [GateResult(path=file, runtime=name, **about, **figures) for name in rest["to"]]
        for gate in gates:
            rest["tell"](gate)
        return gates

    stand_in(monkeypatch, "metamobile.deploy.export", export=export)
    assert run(["export", "runs/pets", "--to", "onnx,openvino", "--to", "ncnn"]) == code
    assert given["to"] == ["onnx", "openvino", "ncnn"]
    out = capsys.readouterr().out
    assert "onnx against PyTorch on 64 pictures: drawn shapes" in out
    assert "1\t1.00e-05\t1.1e-06\t1.00e-06\t100.0 %" in out
    assert ("model.onnx, 5.1 MB" if passed else "model.unverified.onnx kept") in out


def test_lists_are_commas_or_repetition() -> None:
    assert split_commas(["onnx, openvino", "ncnn"]) == ["onnx", "openvino", "ncnn"]
    assert split_settings(["a.b=1,c=[2,3]", "d=4,5"]) == ["a.b=1", "c=[2,3]", "d=4,5"]
    assert (parse_size(None), parse_size("128"), parse_size("96,160"), parse_size("96x160")) == (
        None,
        128,
        [96, 160],
        [96, 160],
    )


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, "          "), (0.5, "█████     "), (0.99, "█████████▉"), (1, "██████████")]
)
def test_bar(share: float, drawn: str) -> None:
    assert bar(share) == drawn


if __name__ == "__main__":
    HELP.mkdir(parents=True, exist_ok=True)
    for name in ["", *VERBS]:
        help_file(name).write_text(plain_help(*name.split()))
