"""Training with the rounding of eight bits: the rounding itself, its gradients, runs from a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metamobile.data.shapes import write_folder
from metamobile.training.loop import Interrupted
from metamobile.training.qat import add_rounding, rounded, rounded_weight
from metamobile.training.train import Run, train
from metamobile.weights.file import load_weights
from metamobile.weights.network import load_network
from small_training import TINY_ARGS, assert_same_run, interrupt_after, run_training

TINY = tuple(f"model.args.{key}={value}" for key, value in TINY_ARGS.items())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pets", train=48, val=24, size=40)


@pytest.fixture(scope="module")
def float_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_training(pictures, tmp_path_factory.mktemp("runs") / "pets", *TINY, epochs=2)


def test_activations_have_256_levels_between_their_ends() -> None:
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 3 + 1
    given = x.numpy().astype(np.float64)
    scale = (given.max() - given.min()) / 255
    zero = np.rint(-given.min() / scale)
    expected = (np.clip(np.rint(given / scale) + zero, 0, 255) - zero) * scale
    found = rounded(x).numpy()
    assert np.abs(found - expected).max() <= scale * 1.01 and (np.abs(found - expected) < 1e-5).mean() > 0.99
    assert np.abs(found - given).max() <= 0.51 * scale
    assert len(np.unique(found)) <= 256 and 0 in rounded(torch.cat([x, torch.zeros_like(x)]))
    assert torch.equal(rounded(torch.zeros(5)), torch.zeros(5))
    assert rounded(torch.rand(100) + 5).min() > 4.9, "zero is among the levels of positive numbers, too"


def test_weights_are_rounded_channel_by_channel() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    found = rounded_weight(weight)
    for ours, theirs in zip(found, weight, strict=True):
        scale = theirs.abs().max() / 127
        torch.testing.assert_close(ours, (theirs / scale).round() * scale, atol=1e-5, rtol=0)
    # as a batch norm behind the convolution multiplies whole channels, it may be folded before or after
    norm = torch.rand(6)[:, None, None, None] + 0.1
    torch.testing.assert_close(rounded_weight(weight * norm), found * norm)


def test_gradients_pass_the_rounding() -> None:
    layer = nn.Linear(5, 3)
    add_rounding(nn.Sequential(layer))
    x = torch.randn(7, 5, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, rounded_weight(layer.weight).detach().sum(0).expand(7, 5))
    torch.testing.assert_close(layer.weight.grad, rounded(x).detach().sum(0).expand(3, 5))


def test_a_run_goes_on_from_a_model(float_run: Run, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(qat=float_run.folder, set=["run.workers=0"], quiet=True)
    assert run.folder == Path("runs/pets-qat")
    recipe, before = run.card.recipe, float_run.card.recipe
    assert (recipe["model"]["qat"], recipe["schedule"]["epochs"]) == (True, 3)
    assert recipe["optim"]["lr"] == pytest.approx(before["optim"]["lr"] / 20)
    assert recipe["model"]["args"] == before["model"]["args"], "the same network"
    ours, theirs = (
        load_weights(folder / "model.safetensors")[0] for folder in (run.folder, float_run.folder)
    )
    assert ours.keys() == theirs.keys(), "a float model's tensors"
    kernels = [name for name in ours if ours[name].dim() > 1]
    changes = [float((ours[name] - theirs[name]).abs().max()) for name in kernels]
    assert 0 < max(changes) < 0.1
    network, _ = load_network(run.folder)
    assert {type(m) for m in network.modules()} >= {nn.Conv2d, nn.Linear}, "and it answers without rounding"
    assert "layers round to eight bits" in (run.folder / "log.txt").read_text()


def test_a_stopped_run_goes_on_exactly(float_run: Run, tmp_path: Path, monkeypatch) -> None:
    whole = train(qat=float_run.folder, out=tmp_path / "whole", set=["run.workers=0"], quiet=True)
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(Interrupted):
            train(qat=float_run.folder, out=tmp_path / "stopped", set=["run.workers=0"], quiet=True)
    train(resume=tmp_path / "stopped", set=["run.device=cpu"], quiet=True)
    assert_same_run(whole.folder, tmp_path / "stopped")


def test_words_of_errors(float_run: Run, pictures: Path) -> None:
    with pytest.raises(ValueError, match="the network and the recipe are the model's own; expected no name"):
        train("emo_1m", pictures, qat=float_run.folder)
    with pytest.raises(ValueError, match="model.qat is true, but .* no weights"):
        train("emo_1m", pictures, set=["model.qat=true"])
    with pytest.raises(ValueError, match="no model 'nowhere'"):
        train(qat="nowhere")
    with pytest.raises(ValueError, match="only --epochs and --set run.device=, run.workers="):
        train(resume=float_run.folder, set=["optim.lr=1"])
