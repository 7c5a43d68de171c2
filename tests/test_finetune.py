"""Starting from weights: layers that learn at their own rates, a classifier that learns alone at first."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from metamobile.data.preprocess import Preprocess
from metamobile.data.shapes import write_folder
from metamobile.models.create import create_model, resolved_args
from metamobile.training.finetune import classifier_prefixes, load_pretrained, set_learning
from metamobile.training.loop import Interrupted, Loop
from metamobile.training.optimizer import make_optimizer
from metamobile.training.progress import Reporter
from metamobile.training.recipe import Recipe
from metamobile.training.train import train
from metamobile.weights.card import Card
from metamobile.weights.file import load_weights, save_weights
from small_training import TINY_ARGS, assert_same_run, interrupt_after, metrics, run_training

HEAD = ("head.fc.weight", "head.fc.bias")
TINY = tuple(f"model.args.{key}={value}" for key, value in TINY_ARGS.items())


def tiny_model(**kwargs: Any) -> nn.Module:
    return create_model("emo_1m", **TINY_ARGS, **kwargs)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pets", train=48, val=24, size=40)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny EMO of other classes, whose batch norms have statistics of their own."""
    torch.manual_seed(1)
    model = tiny_model(num_classes=4, window_size=7)
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 64, 64))
    card = Card(
        "emo_1m",
        {**TINY_ARGS, **resolved_args(model)},
        classes=["ants", "bees", "cats", "dogs"],
        preprocess=Preprocess(size=(64, 64)),
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, model.state_dict(), card)
    return path


def rates(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """`lr_scale` of each parameter; each lies in exactly one group."""
    groups = make_optimizer(model, recipe).param_groups
    held = [(id(p), group.get("lr_scale", 1.0)) for group in groups for p in group["params"]]
    assert sorted(key for key, _ in held) == sorted(id(p) for p in model.parameters())
    return {name: dict(held)[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["emo_1m", "emov2_1m"])
def test_each_block_of_emo_learns_slower_than_the_next(name: str) -> None:
    model = create_model(name, num_classes=3)
    blocks = sum(len(stage) for stage in list(model.stages)[1:])
    found = rates(model, Recipe().override(["optim.layer_decay=0.5"]))
    done = 0  # blocks of the stages below
    for index, stage in enumerate(model.stages):
        for name, scale in found.items():
            if name.startswith(f"stages.{index}."):
                above = blocks - done - int(name.split(".")[2]) if index else blocks + 1
                assert scale == pytest.approx(0.5**above), name
        done += len(stage) if index else 0
    assert {found[name] for name in HEAD} == {1.0}
    assert {found["norm.weight"], found["norm.bias"]} == {0.5}  # with the last block, as in timm's networks


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("deit_tiny", ["0.patch", *(f"0.blocks.{i}." for i in range(24))]),
        ("deit_tiny_irmb", ["0.patch", *(f"0.blocks.{i}." for i in range(12))]),
        (
            "pvt_tiny_irmb",
            [f"{s}.{part}" for s in range(4) for part in ("patch.", "blocks.0.", "blocks.1.")],
        ),
    ],
)
def test_each_layer_of_a_transplant_learns_slower_than_the_next(name: str, order: list[str]) -> None:
    model = create_model(name, num_classes=3)
    found = rates(model, Recipe().override(["optim.layer_decay=0.5"]))
    for below, part in enumerate(order):
        scales = {scale for key, scale in found.items() if key.startswith(f"stages.{part}")}
        assert scales == {0.5 ** (len(order) - below)}, part
    assert found["stages.0.position"] == min(found.values())
    assert found["head.weight"] == found["head.bias"] == 1.0
    if "stages.3.patch_norm.weight" in found:
        patches = ("patch.bias", "patch_norm.weight", "position")
        assert len({found[f"stages.3.{part}"] for part in patches}) == 1


def test_no_layer_decay_is_one_rate() -> None:
    model = create_model("emo_1m", num_classes=3)
    for setting in ("1", "null"):
        optimizer = make_optimizer(model, Recipe().override([f"optim.layer_decay={setting}"]))
        assert len(optimizer.param_groups) == 2  # with and without weight decay
        assert not any("lr_scale" in group for group in optimizer.param_groups)


def test_layer_decay_keeps_vectors_from_decaying() -> None:
    model = create_model("emov2_1m", num_classes=3)
    recipe = Recipe().override(["optim.layer_decay=0.7", "optim.weight_decay=0.3"])
    for group in make_optimizer(model, recipe).param_groups:
        assert {group["weight_decay"]} == {0.3 if p.dim() > 1 else 0.0 for p in group["params"]}


def test_a_network_without_layers_is_told(pictures: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"size": 32, "batch_size": 8, "workers": 0, "device": "cpu", "quiet": True}
    with pytest.raises(ValueError, match="layer_decay is 0.5, but pit_ti_224 does not tell its layers.*null"):
        train("pit_ti_224", pictures, out=tmp_path / "run", set=["optim.layer_decay=0.5"], **arguments)
    assert not (tmp_path / "run").exists()


def note_rates(patch: pytest.MonkeyPatch) -> list[tuple[int, list[tuple[float, float]]]]:
    """(step, (lr, lr_scale) of each group) as the optimiser steps."""
    noted: list[tuple[int, list[tuple[float, float]]]] = []
    check = Loop._check_finite

    def note(self: Loop, *args: Any) -> None:
        check(self, *args)
        groups = self.optimizer.optimizer.param_groups
        noted.append((self.progress.step, [(group["lr"], group["lr_scale"]) for group in groups]))

    patch.setattr(Loop, "_check_finite", note)
    return noted


def test_the_schedule_moves_every_layer(
    pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step, also after a stop, each layer's rate is its share of warm-up and cosine."""
    noted = note_rates(monkeypatch)
    settings = (*TINY, f"model.pretrained={weights}", "optim.layer_decay=0.8", "optim.lr=1e-3")
    straight = run_training(pictures, tmp_path / "straight", *settings).folder
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(2, patch)
        run_training(pictures, tmp_path / "run", *settings)
    train(resume=tmp_path / "run", quiet=True)
    assert_same_run(straight, tmp_path / "run")
    assert [step for step, _ in noted] == [*range(12), *range(12)]
    for step, groups in noted:
        cosine = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * step / 12)) / 2
        lr = 1e-6 + step / 3 * (1e-3 - 1e-6) if step < 3 else cosine
        assert {scale for _, scale in groups} == {0.8**i for i in range(8)}
        assert all(found == pytest.approx(lr * scale) for found, scale in groups)
    for line in metrics(straight, "step"):  # the classifier's rate is the one told
        assert line["lr"] == max(lr for lr, _ in noted[line["step"] - 1][1])
    log = (straight / "log.txt").read_text()
    assert "layer decay 0.8: lr 0.001 for the head, less for each of 7 layers below, 0.00021 for" in log


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_the_classifier_learns_alone_at_first(
    stop: int,
    frozen_run: Path,
    pictures: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frozen for two epochs, stopped in that time, at its end and after it, then gone on with."""
    given = load_weights(weights)[0]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(stop, patch)
        run_training(pictures, tmp_path / "run", *frozen_settings(weights))
    averaged = load_weights(tmp_path / "run" / "last.safetensors")[0]
    raw = load_file(tmp_path / "run" / "last" / "model.safetensors")
    for state in (raw, averaged):
        changed = {name for name, tensor in state.items() if not torch.equal(tensor, given[name])}
        if stop <= 2:
            assert changed == set(HEAD)  # no statistics of batch norm either, and no weight decay
        else:
            kept = {name for name in given if name not in changed and not name.endswith("bias")}
            assert not kept
    train(resume=tmp_path / "run", quiet=True)
    assert_same_run(frozen_run, tmp_path / "run")


def frozen_settings(weights: Path) -> tuple[str, ...]:
    return (*TINY, f"model.pretrained={weights}", "schedule.frozen_epochs=2", "optim.weight_decay=0.5")


@pytest.fixture(scope="module")
def frozen_run(pictures: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "frozen"
    return run_training(pictures, out, *frozen_settings(weights)).folder


def test_what_is_frozen_costs_no_backward(
    pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gradient is made but the classifier's, and batch norm answers as it was loaded."""
    with_gradient: list[set[str]] = []
    check = Loop._check_finite

    def note(self: Loop, *args: Any) -> None:
        check(self, *args)
        with_gradient.append({name for name, p in self.plain.named_parameters() if p.grad is not None})
        norms = [m for m in self.plain.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {norm.training for norm in norms} == {self.progress.epoch >= 1}

    monkeypatch.setattr(Loop, "_check_finite", note)
    settings = (*TINY, f"model.pretrained={weights}", "schedule.frozen_epochs=1")
    run_training(pictures, tmp_path / "run", *settings, epochs=2)
    assert with_gradient[:3] == [set(HEAD)] * 3
    assert all(len(names) == len(list(tiny_model(num_classes=6).parameters())) for names in with_gradient[3:])


def test_two_processes_freeze_alike(pictures: Path, weights: Path, tmp_path: Path) -> None:
    """What has no gradient in some epochs must not keep them waiting for each other."""
    words = f"train emo_1m --data {pictures} --out {tmp_path / 'run'} --size 32"
    words += " --set run.batch_size=16,run.workers=0"
    settings = [*TINY, f"model.pretrained={weights}", "schedule.frozen_epochs=1", "schedule.epochs=2"]
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        + ["-m", "metamobile_cli", *words.split(), "--set", "run.device=cpu"]
        + [word for setting in settings for word in ("--set", setting)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    given, trained = load_weights(weights)[0], load_file(tmp_path / "run" / "last" / "model.safetensors")
    kernels = [name for name, tensor in given.items() if tensor.dim() > 1 and name not in HEAD]
    assert not any(torch.equal(given[name], trained[name]) for name in kernels)


def test_a_parameter_that_never_learns_stays_so() -> None:
    model = tiny_model(num_classes=3)
    model.norm.bias.requires_grad_(False)
    optimizer = make_optimizer(model, Recipe())
    for alone in (True, False):
        set_learning(model.train(), optimizer, classifier_alone=alone)
        learning = {name for name, p in model.named_parameters() if p.requires_grad}
        everything = {name for name, _ in model.named_parameters()} - {"norm.bias"}
        assert learning == (set(HEAD) if alone else everything)


@pytest.mark.parametrize(
    ("settings", "epochs", "words"),
    [
        (["schedule.frozen_epochs=1"], 2, "in the first epoch head.fc alone learns"),
        (["schedule.frozen_epochs=2"], 3, "in the first 2 epochs head.fc alone learns"),
        (["schedule.frozen_epochs=9"], 2, "in all 2 epochs head.fc alone learns"),
        (["schedule.frozen_epochs=1"], 1, "in the only epoch head.fc alone learns"),
    ],
)
def test_the_start_tells_what_is_frozen(
    settings: list[str], epochs: int, words: str, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = (*TINY, f"model.pretrained={weights}", *settings)
    folder = run_training(pictures, tmp_path / "run", *arguments, epochs=epochs).folder
    assert f"{words}; all else stays as it was loaded" in (folder / "log.txt").read_text()


def test_a_frozen_network_needs_weights(pictures: Path, tmp_path: Path) -> None:
    words = "frozen_epochs is 1, but model.pretrained names no weights.*of no use; expected weights.*or 0"
    with pytest.raises(ValueError, match=words):
        run_training(pictures, tmp_path / "run", "schedule.frozen_epochs=1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        (7, None),
        ([2, 2, 7, 7], None),  # stages 1 and 2 have no attention
        (4, "windows of 7x7 in these weights, 4x4 here: .*model.window_size="),
        ([7, 7, (2, 4), 1], "windows of 7x7 in these weights, 2x4 and 1x1 here: .*model.window_size="),
    ],
)
def test_other_windows_than_trained_with_are_told(
    windows: Any, words: str | None, weights: Path, capsys: pytest.CaptureFixture
) -> None:

    def said_about(windows: Any) -> str:
        model = tiny_model(num_classes=4, window_size=windows)
        load_pretrained(model, list("abcd"), str(weights), Reporter())
        return capsys.readouterr().err

    said = said_about(windows)
    assert "2 new, 2 left out" in said
    if words is None:
        assert "windows" not in said
    else:
        assert re.search(words, said)
        advice = shlex.split(said.split("--set ")[1])[0]
        assert "windows" not in said_about(Recipe().override([advice]).model.window_size)


def test_two_classifiers_are_both_new(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """timm's distilled networks have two; with other classes of the same number, both are left out."""
    args = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 32}
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=2, **args)
    assert classifier_prefixes(model) == ("head.", "head_dist.")
    card = Card(
        "deit_tiny_distilled_patch16_224", args, classes=["a", "b"], preprocess=Preprocess(size=(32, 32))
    )
    save_weights(tmp_path / "w.safetensors", model.state_dict(), card)
    load_pretrained(model, ["c", "d"], str(tmp_path / "w.safetensors"), Reporter())
    assert "new: head.weight, head.bias, head_dist.weight, head_dist.bias" in capsys.readouterr().err
    with pytest.raises(ValueError, match="names no classifier"):
        classifier_prefixes(timm.create_model("test_vit", num_classes=0))
