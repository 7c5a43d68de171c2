"""Training: what a run leaves behind, how it stops, and that going on is the same as never having stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.utils import ModelEmaV3
from torch import nn

from metamobile.data.loader import PictureDataset
from metamobile.data.shapes import SHAPE_CLASSES, write_folder
from metamobile.errors import DataError
from metamobile.inference.model import load
from metamobile.models.create import create_model
from metamobile.training.loop import Interrupted, Loop, TrainingDiverged
from metamobile.training.train import train
from metamobile.weights.card import read_card
from metamobile.weights.file import load_weights
from small_training import EPOCHS, SETTINGS, assert_same_run, interrupt_after, metrics, run_training


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the subprocess; sums in another order are other sums
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pets", train=48, val=24, size=40)


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped."""
    torch.set_num_threads(1)
    return run_training(pictures, tmp_path_factory.mktemp("runs") / "straight").folder


def test_a_run_folder_is_whole(straight: Path, pictures: Path) -> None:
    recipe = yaml.safe_load((straight / "recipe.yaml").read_text())
    assert recipe["data"]["path"] == str(pictures)
    assert recipe["schedule"]["epochs"] == EPOCHS
    (start,) = metrics(straight, "start")
    assert start["data"]["classes"] == len(SHAPE_CLASSES)
    assert start["versions"]["torch"] == version("torch")
    assert [line["epoch"] for line in metrics(straight, "epoch")] == [1, 2, 3, 4]
    assert [line["step"] for line in metrics(straight, "step")] == list(range(1, 3 * EPOCHS + 1))
    evaluation = json.loads((straight / "evaluation.json").read_text())
    assert sum(map(sum, evaluation["confusion"])) == 24
    worst = evaluation["wrong"]
    assert all(Path(entry["path"]).is_file() and entry["truth"] != entry["predicted"] for entry in worst)
    assert (straight / "report.html").is_file()
    assert any((straight / "tensorboard").iterdir())
    assert "epoch   4/4" in (straight / "log.txt").read_text()


def test_the_card_says_what_was_chosen_on_what(straight: Path) -> None:
    epochs = metrics(straight, "epoch")
    best = max(epochs, key=lambda line: line["top1"])  # the first of equal ones
    card = read_card(straight / "model.safetensors")
    assert card.metrics["chosen"] == f"best averaged weights by validation top1, epoch {best['epoch']}"
    assert card.metrics["top1"] == best["top1"]
    assert card.classes == sorted(SHAPE_CLASSES)
    last = read_card(straight / "last.safetensors")
    assert last.metrics["chosen"] == f"last averaged weights, epoch {EPOCHS}"
    evaluation = json.loads((straight / "evaluation.json").read_text())
    assert evaluation["top1"] == pytest.approx(best["top1"])


def test_the_saved_weights_answer(straight: Path, pictures: Path) -> None:
    model = load(straight)
    assert model.card.preprocess.size == (32, 32)
    (answer,) = model.predict(next((pictures / "val").rglob("*.png")))
    assert answer.labels[0] in SHAPE_CLASSES


def test_the_rate_warms_up_and_falls_as_a_cosine(straight: Path) -> None:
    rates = [line["lr"] for line in metrics(straight, "step")]
    assert rates[0] == pytest.approx(1e-6)  # at the first step
    assert rates.index(max(rates)) == 3  # the first step after the one epoch of warm-up
    for step in range(3, 12):
        assert rates[step] == pytest.approx(1e-6 + (2e-3 - 1e-6) * (1 + math.cos(math.pi * step / 12)) / 2)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_going_on_equals_never_having_stopped(
    sign: signal.Signals, straight: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(sign)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="epoch 3.*after epoch 2 is kept"):
        interrupt_after(2, patch, sign)
        run_training(pictures, tmp_path / "run", workers=1)
    assert signal.getsignal(sign) is handler
    assert [line["epoch"] for line in metrics(tmp_path / "run", "epoch")] == [1, 2]
    torch.rand(7)  # whatever happens in between
    train(resume=tmp_path / "run", workers=2, quiet=True)
    assert_same_run(straight, tmp_path / "run")


def test_ctrl_c_in_a_terminal(straight: Path, pictures: Path, tmp_path: Path) -> None:
    """The whole process group gets SIGINT, workers too, in the middle of an epoch."""
    arguments = f"train emo_1m --data {pictures} --out run --size 32 --set run.device=cpu"
    arguments += " --set run.batch_size=16,run.workers=2"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "metamobile_cli", *arguments.split(), f"--epochs={EPOCHS}", *settings],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "run" / "log.txt"
    while "step 4" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "go on with: metamobile train --resume run" in errors
    assert errors.count("stopping at the next step") == 1
    assert not (tmp_path / "run" / "evaluation.json").exists()
    train(resume=tmp_path / "run", workers=0, quiet=True)
    assert_same_run(straight, tmp_path / "run")


def test_a_stop_in_the_first_epoch_can_be_gone_on_from(
    straight: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="the state of the start is kept"):
        patch.setattr(Loop, "__init__", stopped_from_the_start(Loop.__init__))
        run_training(pictures, tmp_path / "run")
    train(resume=tmp_path / "run", quiet=True)
    assert_same_run(straight, tmp_path / "run")


def stopped_from_the_start(initialise: Any) -> Any:
    def init(self: Loop, **kwargs: Any) -> None:
        initialise(self, **kwargs)
        self._stop = True

    return init


def test_a_kill_while_the_state_is_written_loses_nothing(
    straight: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two renames: last/ is aside, the new one not yet there."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(2, patch)
        run_training(pictures, tmp_path / "run")
    (tmp_path / "run" / "last").rename(tmp_path / "run" / ".last.old")
    (tmp_path / "run" / ".last.part").mkdir()
    train(resume=tmp_path / "run", quiet=True)
    assert_same_run(straight, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".last*"))


def test_a_finished_run_can_be_made_longer(pictures: Path, tmp_path: Path) -> None:
    folder = run_training(pictures, tmp_path / "run", epochs=1).folder
    train(resume=folder, quiet=True)  # nothing to train: the evaluation is made again
    assert len(metrics(folder, "epoch")) == 1
    train(resume=folder, epochs=2, quiet=True)
    assert [line["epoch"] for line in metrics(folder, "epoch")] == [1, 2]
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["schedule"]["epochs"] == 2


def test_resuming_takes_the_runs_own_recipe(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only --epochs and --set run.device"):
        train(resume=straight, batch_size=8)
    with pytest.raises(ValueError, match="not a run folder"):
        train(resume=tmp_path)


def test_changed_data_are_told(pictures: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", train=24, val=12, size=40)
    folder = run_training(data, tmp_path / "run", batch_size=8, epochs=1).folder
    for path in sorted((data / "train").rglob("*.png"))[::2]:
        path.unlink()
    with pytest.raises(ValueError, match="data have changed: 3 steps an epoch then, 1 now"):
        train(resume=folder, epochs=2, quiet=True)


def test_a_run_that_diverges_stops_and_says_why(pictures: Path, tmp_path: Path) -> None:
    words = r"diverged at step \d+: loss \S+, gradient norm \S+, lr \S+; the state after epoch \d is kept"
    with pytest.raises(TrainingDiverged, match=words):
        run_training(pictures, tmp_path / "run", "optim.lr=1e30", "optim.clip_norm=0")
    assert (tmp_path / "run" / "last" / "model.safetensors").is_file()


def test_a_run_that_diverges_in_its_last_step_says_so_too(pictures: Path, tmp_path: Path) -> None:
    """No other step sees what the last one did; its network is measured."""
    settings = ("optim.lr=1e30", "optim.clip_norm=0", "schedule.warmup_epochs=0")
    words = (
        "diverged at step 1: the network's output is not finite after it, lr 1e.30; the state after epoch 0"
    )
    with pytest.raises(TrainingDiverged, match=words):
        run_training(pictures, tmp_path / "run", *settings, epochs=1, batch_size=48)


def test_a_run_is_not_cut_short_before_it_is_measured(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(2, patch)
        run_training(pictures, tmp_path / "run", "run.eval_every=4")
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match="2 epochs are done and none is measured.*--epochs of at least 3"):
        train(resume=tmp_path / "run", epochs=2, quiet=True)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before
    assert train(resume=tmp_path / "run", epochs=3, quiet=True).card.metrics["epoch"] == 3


def test_a_line_that_a_kill_cut_short_is_dropped(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(1, patch)
        run_training(pictures, tmp_path / "run", epochs=2)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 4, "lo')
    train(resume=tmp_path / "run", quiet=True)
    assert [line["step"] for line in metrics(tmp_path / "run", "step")] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in metrics(tmp_path / "run", "epoch")] == [1, 2]


def test_bad_files_are_named_or_dropped(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", train=24, val=12, size=40)
    broken = next((data / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=broken.name):
        run_training(data, tmp_path / "run", batch_size=8, epochs=1)
    assert not (tmp_path / "run").exists()
    folder = run_training(data, tmp_path / "run", batch_size=8, epochs=1, drop_bad=True).folder
    assert str(broken) in (folder / "log.txt").read_text()
    assert metrics(folder, "start")[0]["data"]["train"] == 23


def test_an_existing_folder_is_safe(straight: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--overwrite to replace it, or --resume"):
        run_training(pictures, straight)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="not a run folder"):
        run_training(pictures, tmp_path, overwrite=True)
    folder = run_training(pictures, tmp_path / "run", epochs=1).folder
    with pytest.raises(ValueError, match="no network is called"):
        train("emo_9m", pictures, out=folder, overwrite=True, size=32, quiet=True)
    assert (folder / "model.safetensors").is_file()  # deleted only once all else is known to be right


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.window_size=7"], "of attention's tokens are padding"),
        (["distill.tau=2"], "without effect: distill.tau, as distill.teacher names none"),
        (["augment.color_jitter=0.4"], "without effect: augment.color_jitter"),
        (["ema.enabled=false", "ema.decay=0.5"], "without effect: ema.decay, as ema.enabled is false"),
        (["ema.decay=0.9998"], "too short a run for 0.9998"),
        (["data.val_fraction=0.4"], "without effect: data.val_fraction"),
        (["schedule.warmup_epochs=1"], "shortened to 0.1"),
        (["optim.lr_per=32"], "0.002 per 32 pictures"),
    ],
)
def test_what_has_no_effect_is_told(settings: list[str], words: str, pictures: Path, tmp_path: Path) -> None:
    folder = run_training(pictures, tmp_path / "run", *settings, epochs=1).folder
    assert words in (folder / "log.txt").read_text()


def test_without_average(pictures: Path, tmp_path: Path) -> None:
    settings = ("ema.enabled=false", "augment.cutmix=1", "run.eval_every=5", "run.channels_last=false")
    folder = run_training(pictures, tmp_path / "run", *settings, epochs=2).folder
    assert [line.get("top1") is None for line in metrics(folder, "epoch")] == [True, False]
    card = read_card(folder / "model.safetensors")
    assert card.metrics["chosen"] == "best weights by validation top1, epoch 2"


def test_bf16_saves_what_it_measured(pictures: Path, tmp_path: Path) -> None:
    """The average is a copy of a network that autocasts, and must compute with its own weights."""
    folder = run_training(pictures, tmp_path / "run", "run.precision=bf16", epochs=2).folder
    state = load_weights(folder / "model.safetensors")[0]
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    best = max(metrics(folder, "epoch"), key=lambda line: line["top1"])
    assert evaluation["loss"] == pytest.approx(best["val_loss"], abs=1e-6)


def test_starting_from_weights(straight: Path, pictures: Path, tmp_path: Path) -> None:
    same = run_training(pictures, tmp_path / "same", f"model.pretrained={straight}", epochs=1).folder
    assert ", 0 new, 0 left out" in (same / "log.txt").read_text()
    renamed = tmp_path / "renamed"
    for split in ("train", "val"):  # as many classes, of other names
        for folder in (pictures / split).iterdir():
            (renamed / split).mkdir(parents=True, exist_ok=True)
            (renamed / split / f"other {folder.name}").symlink_to(folder)
    other = run_training(renamed, tmp_path / "other", f"model.pretrained={straight}", epochs=1).folder
    assert "new: head.fc.weight, head.fc.bias" in (other / "log.txt").read_text()
    with pytest.raises(ValueError, match="of the .* kernels and matrices of its emo_1m, 0 fit this network"):
        train("resnet10t", pictures, out=tmp_path / "no", set=[f"model.pretrained={straight}"], quiet=True)


def test_a_timm_network_trains_too(pictures: Path, tmp_path: Path) -> None:
    arguments = {"epochs": 1, "size": 32, "batch_size": 16, "workers": 0, "device": "cpu"}
    folder = train("test_vit", pictures, out=tmp_path / "run", quiet=True, **arguments).folder
    assert "without effect: model.window_size, as test_vit has no windows" in (folder / "log.txt").read_text()
    assert load(folder).card.variant == "test_vit"


def test_a_device_that_is_not_there(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'tpu9' cannot be used"):
        run_training(pictures, tmp_path / "run", device="tpu9")
    with pytest.raises(ValueError, match="do not fill a batch of 64; lower it: --set run.batch_size="):
        run_training(pictures, tmp_path / "run", batch_size=64)


def test_the_average_suits_a_short_run() -> None:
    """300 steps at a decay of 0.9998: the start is forgotten, and the average spans some tens of steps."""
    average = ModelEmaV3(nn.Linear(1, 1), decay=0.9998, use_warmup=True)
    decays = [average.get_decay(step) for step in range(1, 301)]
    assert math.prod(decays) < 1e-6
    assert 30 < 1 / (1 - decays[-1]) < 60
    assert all(
        d == pytest.approx(1 - step ** (-2 / 3)) for step, d in enumerate(decays, 1)
    )  # as the recipe says


def test_each_epoch_has_its_own_order(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    get = PictureDataset.__getitem__

    def get_and_note(self: PictureDataset, index: int) -> Any:
        if self.seed is not None:  # the training pictures
            read.append(index)
        return get(self, index)

    monkeypatch.setattr(PictureDataset, "__getitem__", get_and_note)
    run_training(pictures, tmp_path / "run", epochs=2)
    first, second = read[:48], read[48:]
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second != sorted(second)


def test_matrices_alone_decay(straight: Path) -> None:
    groups = torch.load(straight / "last" / "optimizer.bin")["param_groups"]
    matrices = sum(p.dim() > 1 for p in create_model("emo_1m").parameters())
    assert {group["weight_decay"]: len(group["params"]) for group in groups}[0.05] == matrices


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("emo_1", "run.seed=0", "did you mean 'emo_1m'"),
        ("emo_1m", "optim.name=adamww", "did you mean 'adamw'"),
        ("emo_1m", "augment.auto_augment=rnad-m9", "expected timm's notation"),
    ],
)
def test_wrong_names_leave_nothing_behind(
    pictures: Path, tmp_path: Path, name: str, setting: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        train(name, pictures, out=tmp_path / "run", set=[setting], size=32, workers=0, quiet=True)
    assert not (tmp_path / "run").exists()
