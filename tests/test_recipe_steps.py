"""Every recipe, stepped: the rates, groups and loss that reach the optimiser, against a table of their own.

The table is written from the papers' configurations and training logs (ImageNet), and from what our own
recipes' runs recorded; nothing in it is read from the recipes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from metamobile.data.folder import FolderData
from metamobile.data.preprocess import Preprocess
from metamobile.data.shapes import SHAPE_CLASSES, write_folder
from metamobile.models.create import create_model, resolved_args
from metamobile.tasks import get_task
from metamobile.training.loop import Loop
from metamobile.training.optimizer import make_optimizer
from metamobile.training.progress import Reporter
from metamobile.training.recipe import Recipe, load_recipe, recipe_folder
from metamobile.training.runfolder import RunFolder
from metamobile.training.state import Progress
from metamobile.training.train import _accelerator, train
from metamobile.weights.card import Card
from metamobile.weights.file import save_weights
from small_training import TINY_ARGS, metrics

CLASSES = sorted(SHAPE_CLASSES)
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Expected:
    """`pictures` to train on; `window` of stage 3; `peak` and `lowest` rates; `average`: its decay; `kd`:
    weight, temperature, teacher's side."""

    network: str
    size: int
    window: int
    pictures: int
    batch: int
    epochs: int
    warmup_epochs: int
    peak: float
    lowest: float
    average: float
    average_warmup: bool = False
    layer_decay: float = 1.0
    frozen_epochs: int = 0
    kd: tuple[float, float, int] | None = None


# EMO (arXiv 2301.01146): 8 GPUs x 256, 625 steps an epoch, lr 1.5e-3 x 2048 / 512, 20 epochs of warm-up.
EMO = Expected("emo_5m", 224, 7, 1_281_167, 2048, 300, 20, peak=6e-3, lowest=1e-6, average=0.9998)
# EMOv2 (arXiv 2412.06674): half the batch, 1,251 steps an epoch; 256 and 512 px with windows of 8.
EMOV2 = replace(EMO, network="emov2_5m", batch=1024, peak=3e-3, lowest=5e-7)
KD = (5.0, 1.0, 224)
# Imagenette's run: 9,469 pictures, 147 steps an epoch; 4x4 windows, as a map of 8 pixels has them.
OURS = Expected("emo_1m", 128, 4, 9469, 64, 45, 3, peak=2e-3, lowest=1e-6, average=0.998, average_warmup=True)

EXPECTED = {
    "imagenet-emo": EMO,
    "imagenet-emov2": EMOV2,
    "imagenet-emov2-256": replace(EMOV2, size=256, window=8),
    "imagenet-emov2-512": replace(EMOV2, size=512, window=8),
    "imagenet-emov2-kd": replace(EMOV2, kd=KD),
    "imagenet-emov2-512-kd": replace(EMOV2, size=512, window=8, kd=KD),
    "imagenette-emo_1m": OURS,
    "small-data": replace(OURS, pictures=2500, epochs=40),
    "fine-tune": replace(
        OURS, pictures=2500, epochs=15, warmup_epochs=1, peak=1e-3, layer_decay=0.75, frozen_epochs=1
    ),
    "ablate": replace(OURS, epochs=12, warmup_epochs=1, average=0.99),
    "shapes": replace(OURS, size=64, pictures=2000, batch=32, epochs=16, warmup_epochs=1, average=0.98),
}
LAYERS = 1 + sum(TINY_ARGS["depths"]) + 1  # of the tiny network: stem, blocks, classifier


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pets", train=24, val=6, size=40)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of the drawn shapes' classes: weights to start from, and a teacher."""
    torch.manual_seed(1)
    model = create_model("emo_1m", num_classes=len(CLASSES), **TINY_ARGS)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))  # so that batch norm has statistics, and answers differ
        model.get_classifier().weight.mul_(20)
    args = {**TINY_ARGS, **resolved_args(model)}
    card = Card("emo_1m", args, classes=CLASSES, preprocess=Preprocess(size=(32, 32)))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, model.state_dict(), card)
    return path


def tiny(recipe: Recipe, weights: Path) -> Recipe:
    """The recipe with a network of six blocks, on the CPU, and weights that are here in place of others."""
    changed: dict[str, Any] = {"model.args": TINY_ARGS, "run.device": "cpu"}
    if recipe.distill.teacher:
        changed["distill.teacher"] = str(weights)
    if recipe.schedule.frozen_epochs:
        changed["model.pretrained"] = str(weights)
    return recipe.replace(changed)


def make_loop(recipe: Recipe, steps_per_epoch: int, folder: Path) -> Loop:
    """The loop as `train` makes it, without pictures: of its loader only the length is known."""
    task = get_task("classify")
    accelerator = _accelerator(recipe)
    model = task.build_model(recipe, len(CLASSES))
    model, optimizer = accelerator.prepare(model, make_optimizer(model, recipe))
    return Loop(
        task=task,
        recipe=recipe,
        folder=RunFolder(folder),
        accelerator=accelerator,
        model=model,
        average=None,
        optimizer=optimizer,
        train_loader=range(steps_per_epoch),
        val_loader=None,
        loss=task.make_loss(recipe, FolderData(folder, CLASSES, [], [], "")),
        names=CLASSES,
        val_samples=[],
        progress=Progress(),
        reporter=Reporter(quiet=True),
        card=Card(recipe.model.name, {}, classes=CLASSES, preprocess=Preprocess(size=recipe.data.shape)),
    )


def test_every_recipe_has_its_row() -> None:
    assert sorted(EXPECTED) == sorted(
        path.stem for path in recipe_folder().glob("*.yaml") if load_recipe(path.stem).task == "classify"
    )


def rate(step: int, steps: int, warmup: int, peak: float, lowest: float) -> float:
    """A line from 1e-6 to the peak, and the cosine that is counted from the first step."""
    if step < warmup:
        return 1e-6 + step / warmup * (peak - 1e-6)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * step / steps)) / 2


@pytest.mark.parametrize("name", EXPECTED)
def test_the_rates_and_groups_of_a_recipe(name: str, weights: Path, tmp_path: Path) -> None:
    expected, recipe = EXPECTED[name], load_recipe(name)
    assert (recipe.model.name, recipe.lr) == (expected.network, pytest.approx(expected.peak))
    assert (recipe.ema.enabled, recipe.ema.decay) == (True, expected.average)
    assert recipe.ema.warmup == expected.average_warmup
    assert recipe.schedule.frozen_epochs == expected.frozen_epochs

    per_epoch = expected.pictures // expected.batch
    loop = make_loop(tiny(recipe, weights), per_epoch, tmp_path)
    groups = loop.optimizer.optimizer.param_groups
    assert type(loop.optimizer.optimizer) is torch.optim.AdamW
    held = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, loop.plain.parameters()))
    for group in groups:
        assert {0.05 if p.dim() > 1 else 0.0 for p in group["params"]} == {group["weight_decay"]}
        assert (tuple(group["betas"]), group["eps"]) == ((0.9, 0.999), 1e-8)
    shares = [group.get("lr_scale", 1.0) for group in groups]
    assert {round(share, 9) for share in shares} == {round(expected.layer_decay**i, 9) for i in range(LAYERS)}

    steps, warmup = expected.epochs * per_epoch, expected.warmup_epochs * per_epoch
    for step in (0, warmup // 2, warmup - 1, warmup, steps // 2, steps - 1):
        loop.schedule.step_update(step)
        lr = rate(step, steps, warmup, expected.peak, expected.lowest)
        assert [group["lr"] for group in groups] == pytest.approx([lr * share for share in shares]), step
        assert loop.lr == pytest.approx(lr)
    loop.schedule.step_update(0)
    assert loop.lr == 1e-6
    loop.schedule.step_update(steps // 2)  # of an odd count, half a step before
    assert loop.lr == pytest.approx((expected.peak + expected.lowest) / 2, rel=5e-3)


def test_the_steps_of_an_epoch_are_the_logs() -> None:
    """What the authors' training logs, and our run's, counted."""
    counts = {name: EXPECTED[name].pictures // EXPECTED[name].batch for name in EXPECTED}
    assert (counts["imagenet-emo"], counts["imagenet-emov2"], counts["imagenette-emo_1m"]) == (625, 1251, 147)


def test_the_rates_are_those_of_the_recorded_run(weights: Path, tmp_path: Path) -> None:
    lines = map(json.loads, (RESULTS / "imagenette-emo_1m" / "metrics.jsonl").read_text().splitlines())
    recorded = {line["step"]: line["lr"] for line in lines if line["kind"] == "step"}
    assert len(recorded) > 100
    loop = make_loop(tiny(load_recipe("imagenette-emo_1m"), weights), 147, tmp_path)
    for step, lr in recorded.items():
        loop.schedule.step_update(step - 1)  # a line is written after its step
        assert loop.lr == pytest.approx(lr)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_size_and_windows_of_a_recipe(name: str, weights: Path) -> None:
    expected, recipe = EXPECTED[name], load_recipe(name)
    assert recipe.data.shape == (expected.size, expected.size)
    model = get_task("classify").build_model(tiny(recipe, weights), len(CLASSES))
    window = model.window_size[2]
    assert (window if isinstance(window, tuple) else (window, window)) == (expected.window, expected.window)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_loss_of_a_recipe(name: str, weights: Path, tmp_path: Path) -> None:
    """Cross-entropy with labels smoothed by 0.1, no Mixup, plus 5 KL(teacher || student) with a teacher."""
    kd = EXPECTED[name].kd
    loop = make_loop(tiny(load_recipe(name), weights), 3, tmp_path)
    logits, targets = torch.randn(4, len(CLASSES)) * 2, torch.tensor([0, 3, 5, 3])
    inputs = torch.randn(4, 3, 64, 64)
    seen: list[Any] = []
    if kd:
        loop.loss.teacher.network.register_forward_hook(lambda _, given, out: seen.extend([given[0], out]))
    loss = loop.loss(lambda pictures: logits, inputs, targets)
    scores = log_softmax(logits.double().numpy())
    expected = -(0.9 * scores[range(4), targets] + 0.1 * scores.mean(1)).mean()
    if kd:
        weight, tau, side = kd
        assert seen[0].shape == (4, 3, side, side)
        q, p = (log_softmax(x.double().numpy() / tau) for x in (logits, seen[1]))
        divergence = (np.exp(p) * (p - q)).sum() / 4
        assert divergence > 0.1
        expected += weight * divergence
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_is_stepped(
    name: str, weights: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of three steps with a tiny network, through all of `train`: its rates, and the clipping."""
    limits: list[float] = []
    clip = Accelerator.clip_grad_norm_

    def note(self: Accelerator, parameters: Any, limit: float) -> Any:
        limits.append(limit)
        return clip(self, parameters, limit)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", note)
    recipe = tiny(load_recipe(name), weights).replace({"distill.size": 32})
    run = train(
        data=pictures,
        recipe=recipe,
        out=tmp_path / "run",
        epochs=2,
        size=32,
        batch_size=8,
        workers=0,
        set=["schedule.warmup_epochs=1", "run.log_every=1", "run.eval_every=1"],
        quiet=True,
    )
    assert limits == [5.0] * 6
    expected = EXPECTED[name]
    ours = expected.batch <= 64  # the papers' rates are scaled to the batch, ours are not
    peak = expected.peak if ours else expected.peak * 8 / expected.batch
    lines = metrics(run.folder, "step")
    assert [line["lr"] for line in lines] == pytest.approx(
        [rate(step, 6, 3, peak, expected.lowest) for step in range(6)]
    )
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    states = torch.load(run.folder / "last" / "optimizer.bin")["state"].values()
    taken = {int(state["step"]) for state in states}
    assert taken == ({3, 6} if expected.frozen_epochs else {6})  # of one parameter
    assert run.card.classes == CLASSES
    assert run.card.variant == expected.network
