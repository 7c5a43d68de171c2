"""Distillation: the divergence, the teacher's view of a picture, classes by name, a student that learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.inference.model import load
from metamobile.tasks.classify.distill import Teacher, load_teacher, match_classes, soft_distillation
from metamobile.tasks.classify.task import ClassifyLoss
from metamobile.training.recipe import Recipe
from metamobile.training.train import train
from metamobile.weights.file import load_weights, save_weights
from small_model import CLASSES, make_card, make_network, write_pictures


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normalised by 0.5, not as ImageNet, and at 48 px, so that a student's pictures need both changed."""
    network = make_network()
    record = Preprocess(size=(48, 48), mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(path, network.state_dict(), dataclasses.replace(make_card(network), preprocess=record))
    return path


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_divergence_by_its_definition(tau: float) -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 5, 7)) * 3
    p, q = (np.exp(x / tau) / np.exp(x / tau).sum(1, keepdims=True) for x in (teacher, student))
    expected = tau**2 * (p * (np.log(p) - np.log(q))).sum() / 5
    found = soft_distillation(torch.from_numpy(student), torch.from_numpy(teacher), tau)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    same = torch.from_numpy(teacher)
    assert soft_distillation(same, same + 2.0, tau).item() == pytest.approx(
        0, abs=1e-12
    )  # a shift is nothing


def test_the_loss_is_cross_entropy_plus_the_weighted_divergence(teacher_file: Path) -> None:
    settings = ["distill.teacher=x", "distill.weight=5", "distill.tau=2", "loss.label_smoothing=0.1"]
    recipe = Recipe().override(settings)
    teacher = load_teacher(str(teacher_file), CLASSES, Preprocess(size=(64, 64)), None)
    student = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(48, 3))
    pictures, targets = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 1])
    loss = ClassifyLoss(recipe, 3, teacher)(student, pictures, targets)
    plain = ClassifyLoss(Recipe().override(settings[1:]), 3)(student, pictures, targets)
    extra = 5 * soft_distillation(student(pictures), teacher(pictures), 2.0)
    assert extra > 0.01
    assert loss.item() == pytest.approx(plain.item() + extra.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student[2].weight.grad is not None


def test_the_teacher_sees_pictures_in_its_own_normalisation(teacher_file: Path, tmp_path: Path) -> None:
    """The answer is that of `load(...)` on the file, from a tensor that was normalised for the student."""
    (path,) = write_pictures(tmp_path, 1, size=(48, 48))  # neither resized nor cropped by either record
    student = Preprocess(size=(48, 48), resize=48)
    pictures = torch.from_numpy(preprocess(Image.open(path), student))[None]
    answers = load_teacher(str(teacher_file), CLASSES, student, None)(pictures).softmax(1)[0]
    own = dataclasses.replace(load_weights(teacher_file)[1].preprocess, resize=48)
    expected = load(teacher_file).runtime.run(preprocess(Image.open(path), own)[None])
    expected = torch.from_numpy(np.asarray(expected)).softmax(1)[0]
    assert torch.allclose(answers, expected, atol=1e-6)
    assert (answers - 1 / 3).abs().max() > 0.02  # it has an opinion


def test_the_teacher_sees_its_own_size_or_the_recipes(teacher_file: Path) -> None:
    sizes = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(x.shape[2:]))
            return x.mean((2, 3))

    card = load_weights(teacher_file)[1]
    for size in (None, 96):
        Teacher(Spy(), card, CLASSES, Preprocess(), size)(torch.zeros(1, 3, 128, 128))
    assert sizes == [(48, 48), (96, 96)]


def test_classes_are_matched_by_name_not_by_place(teacher_file: Path) -> None:
    card = load_weights(teacher_file)[1]
    assert match_classes(card, ["n02102040", "ants"]) == [2, 0]
    assert match_classes(card, ["English springer", "bees"]) == [2, 1]
    teacher = load_teacher(str(teacher_file), ["n02102040", "ants"], Preprocess(), None)
    full = load_teacher(str(teacher_file), CLASSES, Preprocess(), None)
    pictures = torch.randn(2, 3, 48, 48)
    assert torch.equal(teacher(pictures), full(pictures)[:, [2, 0]])
    with pytest.raises(ValueError, match=r"no class 'bee' among its 3; .* did you mean 'bees'\?"):
        match_classes(card, ["ants", "bee"])
    with pytest.raises(ValueError, match="no class 'crane'"):
        match_classes(dataclasses.replace(card, names=["crane", "crane", "other"]), ["crane"])


def test_a_student_comes_to_answer_as_its_teacher(teacher_file: Path, tmp_path: Path, capfd) -> None:
    """Trained alike with and without the teacher: with it, the two agree more."""
    for name in CLASSES:
        write_pictures(tmp_path / "data" / name, 12, size=(48, 48), seed=CLASSES.index(name))
    divergence = {}
    for label, settings in (
        ("alone", []),
        ("taught", [f"distill.teacher={teacher_file}", "distill.weight=20"]),
    ):
        run = train(
            "emo_1m", tmp_path / "data", out=tmp_path / label, epochs=6, size=48, batch_size=8, workers=0,
            device="cpu", set=["augment.auto_augment=null", "ema.enabled=false", "optim.lr=1e-3", *settings],
        )  # fmt: skip
        student, card = (
            load_teacher(str(run.folder / "last.safetensors"), CLASSES, Preprocess(), 48),
            run.card,
        )
        teacher = load_teacher(str(teacher_file), CLASSES, card.preprocess, 48)
        paths = sorted((tmp_path / "data").rglob("*.png"))
        record = dataclasses.replace(card.preprocess, resize=48)
        pictures = torch.from_numpy(np.stack([preprocess(Image.open(p), record) for p in paths]))
        divergence[label] = soft_distillation(student(pictures), teacher(pictures)).item()
    assert divergence["taught"] < 0.5 * divergence["alone"]
    assert "at 48x48 px: 20 times its divergence, temperature 1" in capfd.readouterr().err


def test_a_teacher_that_does_not_exist_is_told_before_any_training(tmp_path: Path) -> None:
    for name in CLASSES:
        write_pictures(tmp_path / "data" / name, 4, seed=CLASSES.index(name))
    with pytest.raises(ValueError, match="no model 'resnet'"):
        train("emo_1m", tmp_path / "data", out=tmp_path / "run", size=32, set=["distill.teacher=resnet"])
    assert not (tmp_path / "run").exists()
