"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metamobile.training.checks import preprocess_record
from metamobile.training.recipe import Recipe, load_recipe, recipe_folder

NAMES = sorted(path.stem for path in recipe_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_is_valid_and_opens_with_its_claim(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    assert (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").startswith("# Claim: ")


def test_the_papers_recipe() -> None:
    """Every figure of the official ImageNet configuration that a recipe has a place for."""
    recipe = load_recipe("imagenet-emo")
    assert recipe.lr == pytest.approx(6e-3)  # 1.5e-3 at 512, scaled to 2,048
    assert recipe.run.batch_size == 2048
    assert (recipe.optim.name, recipe.optim.weight_decay) == ("adamw", 0.05)
    assert (recipe.optim.betas, recipe.optim.eps, recipe.optim.clip_norm) == ([0.9, 0.999], 1e-8, 5.0)
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == (
        300,
        20,
        1e-6,
        1e-6,
    )
    augment = recipe.augment
    assert (augment.auto_augment, augment.interpolation) == ("rand-m9-mstd0.5-inc1", "random")
    assert (augment.mixup, augment.cutmix, augment.erase, augment.scale) == (0, 0, 0, [0.08, 1.0])
    assert (recipe.loss.label_smoothing, recipe.ema.decay, recipe.ema.warmup) == (0.1, 0.9998, False)
    assert (recipe.data.size, recipe.model.window_size) == (224, 7)
    assert preprocess_record(recipe).shorter_side == 256


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.betas=[0.9, 99e-2]", "optim.betas", [0.9, 0.99]),
        ("augment.auto_augment=null", "augment.auto_augment", None),
        ("data.size=[96, 160]", "data.size", [96, 160]),
        ("model.window_size=auto", "model.window_size", "auto"),
        ("model.window_size=7", "model.window_size", 7),
        ("run.batch_size=64.0", "run.batch_size", 64),
        ("schedule.warmup_epochs=2", "schedule.warmup_epochs", 2.0),
        ("model.args.partition=contiguous", "model.args", {"partition": "contiguous"}),
        ("data.val_size=[512, 2048]", "data.val_size", [512, 2048]),
        ("data.classes=cat,dog", "data.classes", ["cat", "dog"]),
        ("loss.class_weights=null", "loss.class_weights", None),
        ("schedule.warmup_steps=1.5e3", "schedule.warmup_steps", 1500),
        ("model.args.layer_scale=1e-6", "model.args", {"layer_scale": 1e-6}),
    ],
)
def test_a_setting_is_read_as_its_type(setting: str, place: str, value: object) -> None:
    recipe = Recipe().override([setting])
    section, key = place.split(".")
    read = getattr(getattr(recipe, section), key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optim.lrr=1", "did you mean 'optim.lr'?"),
        ("lr=1", "did you mean 'optim.lr'?"),
        ("optm.lr=1", "did you mean 'optim'?"),
        ("optim.lr", "not of the form section.key=value"),
        ("optim.lr=fast", "optim.lr is 'fast'; expected number"),
        ("optim.lr=.nan", "expected number"),
        ("optim.betas=[0.9, x]", r"optim.betas\[1\] is 'x'; expected number"),
        ("optim.betas=[0.9]", "expected 2 numbers"),
        ("data.size=[1, 2, 3]", "expected 2 numbers"),
        ("data.path=[a", "not YAML"),
        ("data.path=7", "data.path is 7; expected text"),
        ("run.batch_size=6.5", "expected whole number"),
        ("run.batch_size=0", "expected at least 1"),
        ("run.compile=maybe", "expected true or false"),
        ("run.precision=bf61", "did you mean 'bf16'?"),
        ("loss.label_smoothing=1.5", "expected 0 to 0.99"),
        ("augment.scale=0.5", "expected a list of numbers"),
    ],
)
def test_a_wrong_setting_is_told(setting: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe().override([setting])


def test_a_value_given_in_python_is_not_read_as_yaml() -> None:
    assert Recipe().replace({"data.path": "my pets #2: all"}).data.path == "my pets #2: all"


def test_an_override_leaves_the_original_alone() -> None:
    recipe = Recipe()
    recipe.override(["optim.betas=[0.1, 0.2]", "model.args.a=1"])
    assert recipe == Recipe()


def test_the_rate_scales_with_the_batch_only_if_asked() -> None:
    assert Recipe().override(["optim.lr=1e-3", "run.batch_size=128"]).lr == 1e-3
    assert Recipe().override(["optim.lr=1e-3", "optim.lr_per=256", "run.batch_size=128"]).lr == 5e-4


def test_an_unknown_recipe_is_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'small-data'?"):
        load_recipe("smal-data")
    with pytest.raises(ValueError, match="no such recipe file"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim:\n  lrate: 1\n", "no setting 'optim.lrate'.*did you mean 'lr'"),
        ("optim: fast\n", "optim is 'fast'; expected settings"),
        ("optim:\n  lr: [1\n", "not YAML"),
        ("optimm:\n  lr: 1\n", "did you mean 'optim'?"),
    ],
)
def test_a_wrong_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml: .*{words}"):
        load_recipe(path)


def test_reading_a_recipe_needs_no_torch() -> None:
    code = "import metamobile_cli, sys; from metamobile.training.recipe import load_recipe; "
    code += "load_recipe('small-data'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lists_in_overrides_by_commas() -> None:
    recipe = Recipe().override(["data.mean=0.5,0.4,0.3", "data.size=96,160", "augment.scale=[0.5, 1]"])
    assert recipe.data.mean == [0.5, 0.4, 0.3]
    assert recipe.data.shape == (96, 160)
    assert recipe.augment.scale == [0.5, 1.0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.interpolation=bicubc", "did you mean 'bicubic'"),
        (
            "data.fit=strech",
            "data.fit is 'strech'; expected crop or stretch or inside; did you mean 'stretch'",
        ),
        ("data.val_size=[1, 2, 3]", "expected 2 numbers"),
        ("data.classes=[cat, 7]", r"data.classes\[1\] is 7; expected text"),
        ("data.ignore=-1", "expected at least 0"),
        ("augment.resize=[2]", "expected 2 numbers"),
        ("augment.resize=[0, 2]", r"augment.resize is \[0.0, 2.0\]; expected 0.01 to 100"),
        ("augment.crop_most=0", "expected 0.01 to 1"),
        ("augment.mosaic=1.5", "expected 0 to 1"),
        ("model.frozen_stages=6", "expected 0 to 5"),
        ("optim.head_lr=0", "expected at least"),
        ("schedule.name=cosin", "expected cosine or poly or flat_cosine; did you mean 'cosine'"),
        ("schedule.warmup_steps=0.5", "expected whole number or null"),
        ("loss.class_weights=sqr", "expected null or sqrt; did you mean 'sqrt'"),
        ("model.drop_path_rate=2", "expected 0 to 0.99"),
    ],
)
def test_impossible_settings_are_named(setting: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe().override([setting])


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim:\n  lr: 1e-3\n  weight_decay: 0.1\nrun:\n  seed: 3\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\noptim:\n  lr: 2e-3\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nschedule:\n  epochs: 7\n")
    recipe = load_recipe(tmp_path / "c.yaml")
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.run.seed) == (2e-3, 0.1, 3)
    assert recipe.schedule.epochs == 7
    (tmp_path / "d.yaml").write_text("base: small-dat\n")
    with pytest.raises(ValueError, match="did you mean 'small-data'"):
        load_recipe(tmp_path / "d.yaml")
    (tmp_path / "a.yaml").write_text("base: c.yaml\n")
    with pytest.raises(ValueError, match="circle: c.yaml -> b.yaml -> a.yaml -> c.yaml"):
        load_recipe(tmp_path / "c.yaml")
