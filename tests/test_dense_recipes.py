"""The papers' recipes on COCO and ADE20K, stepped: what reaches network and optimiser, against a table.

The table is typed from the papers' configurations and training logs (EMO, arXiv 2301.01146; EMOv2, arXiv
2412.06674); nothing in it is read from the recipes. Rates are typed as shares of the peak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metamobile.data.preprocess import preprocess
from metamobile.models.create import create_model
from metamobile.models.operators import WindowAttention
from metamobile.tasks.dense import build_dense
from metamobile.training.checks import preprocess_record
from metamobile.training.optimizer import make_optimizer
from metamobile.training.recipe import Recipe, load_recipe, recipe_folder
from metamobile.training.schedule import make_schedule, warmup_steps

STAGES = "backbone.network.model.stages."
HALF, THREE_QUARTERS = 0.5, 0.75  # of the run, as against whole steps
Rates = dict[int | float, float]

# A thousandth, then a line to the peak in 500 steps; 0.1464466 is half of 1 + cos(135 degrees).
COSINE: Rates = {0: 1e-3, 250: 0.5005, 500: 1, HALF: 0.5, THREE_QUARTERS: 0.1464466}
# From 1e-5; the peak until half, then a cosine, of which three quarters of the run are the middle.
FLAT: Rates = {0: 1e-5, 250: 0.500005, 499: 0.998, 500: 1, 30_000: 1, HALF: 1, THREE_QUARTERS: 0.5}
FLAT_1500: Rates = {
    0: 1e-5,
    250: 0.166675,
    500: 0.33334,
    750: 0.500005,
    1500: 1,
    HALF: 1,
    THREE_QUARTERS: 0.5,
}
# (1 - step / steps) ** 0.9, from the first step on: 0.5 ** 0.9, 0.25 ** 0.9.
POLY: Rates = {0: 1, 250: 0.99719, 500: 0.99438, HALF: 0.535887, THREE_QUARTERS: 0.287175}


@dataclass(frozen=True)
class Expected:
    """`seen`: (height, width) at evaluation of a picture 640 wide, 480 high; `frozen`: of our five stages;
    `pictures` to train on; `warmup` in steps; `head_lr`: what multiplies the rate of all but the backbone."""

    task: str
    network: str
    head: str
    window: int
    norm_eval: bool
    frozen: int
    size: tuple[int, int]
    seen: tuple[int, int]
    augment: dict[str, Any]
    pictures: int
    batch: int
    epochs: int
    steps: int
    peak: float
    decay: float
    clip: float
    warmup: int
    rates: Rates
    head_lr: float = 1.0


SSD = {"hflip": 0.5, "expand": 0.5, "iou_crop": True, "photometric": True, "mosaic": 0.0}
PLAIN = {"hflip": 0.5, "expand": 0.0, "iou_crop": False, "photometric": False, "mosaic": 0.0}
SCENE = {"hflip": 0.5, "photometric": True, "resize": [0.5, 2.0], "crop_most": 0.75}

# 120 epochs of the data five times over, 3,080 steps for five; in the logs, without empty pictures, 3,055.
SSDLITE = Expected(
    "detect", "emo_1m", "ssdlite", 7, True, 0, (320, 320), (320, 320), SSD,
    118_287, 192, 600, 369_600, 1.2e-3, 0.05, 0, 500, COSINE,
)  # fmt: skip
SSDLITE_V2 = replace(SSDLITE, network="emov2_5m", window=10, peak=2.4e-3, clip=0.1, rates=FLAT)
RETINANET = Expected(
    "detect", "emo_1m", "retinanet", 7, True, 2, (800, 1333), (800, 1067), PLAIN,
    118_287, 32, 12, 44_352, 2e-4, 0.05, 0, 500, COSINE,
)  # fmt: skip
RETINANET_V2 = replace(RETINANET, network="emov2_5m", window=10, batch=16, steps=88_704, clip=0.1, rates=FLAT)
DEEPLAB = Expected(
    "segment", "emo_1m", "deeplabv3", 7, False, 0, (512, 512), (512, 683), SCENE,
    20_210, 32, 127, 80_137, 1.2e-4, 0.01, 0, 0, POLY,
)  # fmt: skip
DEEPLAB_V2 = replace(DEEPLAB, network="emov2_5m", window=10, decay=0.05, clip=0.1, warmup=500, rates=FLAT)
FPN_V2 = replace(
    DEEPLAB_V2, head="fpn", clip=0, epochs=254, steps=160_274, warmup=1500, rates=FLAT_1500, head_lr=10.0
)

EXPECTED = {
    "coco-ssdlite-emo": SSDLITE,
    "coco-ssdlite-emov2": SSDLITE_V2,
    "coco-ssdlite-emov2-512": replace(SSDLITE_V2, size=(512, 512), seen=(512, 512)),
    "coco-retinanet-emo": RETINANET,
    "coco-retinanet-emov2": RETINANET_V2,
    "coco-mask_rcnn-emov2": replace(RETINANET_V2, head="mask_rcnn"),
    "ade20k-deeplabv3-emo": DEEPLAB,
    "ade20k-deeplabv3-emov2": DEEPLAB_V2,
    "ade20k-fpn-emov2": FPN_V2,
    "ade20k-segformer-emov2": replace(FPN_V2, head="segformer"),
}


def tiny(recipe: Recipe) -> Any:
    """The recipe's model with six blocks in its backbone, and random weights."""
    small = recipe.replace({"model.args": {"depths": [1, 1, 2, 2]}})
    return build_dense(small, 2)


def test_every_recipe_of_the_papers_has_its_row() -> None:
    names = [path.stem for path in recipe_folder().glob("*.yaml")]
    assert sorted(EXPECTED) == sorted(name for name in names if name.startswith(("coco-", "ade20k-")))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_settings_of_a_recipe(name: str) -> None:
    expected, recipe = EXPECTED[name], load_recipe(name)
    assert (recipe.task, recipe.model.name, recipe.model.head) == (
        expected.task,
        expected.network,
        expected.head,
    )
    assert recipe.model.pretrained == f"{expected.network}.in1k"
    assert recipe.model.drop_path_rate is None  # as in classification
    assert recipe.model.args == ({"dropout": 0.1} if expected.task == "segment" else {})
    assert (recipe.run.batch_size, recipe.schedule.epochs) == (expected.batch, expected.epochs)
    assert recipe.lr == pytest.approx(expected.peak)
    assert (recipe.optim.layer_decay, recipe.optim.clip_norm) == (None, expected.clip)
    assert (recipe.schedule.frozen_epochs, recipe.ema.enabled) == (0, False)
    assert (recipe.loss.auxiliary, recipe.loss.class_weights) == (0.4, None)
    assert (recipe.augment.mixup, recipe.augment.cutmix, recipe.augment.erase) == (0, 0, 0)
    assert {key: getattr(recipe.augment, key) for key in expected.augment} == expected.augment
    assert warmup_steps(recipe, 100) == expected.warmup
    half_batch = recipe.replace({"run.batch_size": expected.batch // 2})
    assert half_batch.lr == pytest.approx(expected.peak / 2)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_sizes_of_a_recipe(name: str) -> None:
    expected, recipe = EXPECTED[name], load_recipe(name)
    assert recipe.data.shape == expected.size
    record = preprocess_record(recipe)
    for size, seen in (((640, 480), expected.seen), ((480, 640), expected.seen[::-1])):
        assert preprocess(Image.new("RGB", size), record).shape == (3, *seen)
    # a panorama has the longer side as its limit, if its form is kept
    wide = {"stretch": expected.size, "inside": {"detect": (222, 1333), "segment": (341, 2048)}[recipe.task]}
    assert preprocess(Image.new("RGB", (1200, 200)), record).shape == (3, *wide[recipe.data.fit])


@pytest.mark.parametrize("name", EXPECTED)
def test_the_network_of_a_recipe(name: str) -> None:
    expected, model = EXPECTED[name], tiny(load_recipe(name)).train()
    windows = {module.window for module in model.modules() if isinstance(module, WindowAttention)}
    assert {window if isinstance(window, int) else window[0] for window in windows} == {expected.window}
    frozen = tuple(f"{STAGES}{stage}." for stage in range(expected.frozen))
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad != (bool(frozen) and key.startswith(frozen)), key
    norms = {key: m.training for key, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    in_backbone = {training for key, training in norms.items() if key.startswith("backbone.")}
    assert in_backbone == {not expected.norm_eval}
    assert all(training for key, training in norms.items() if not key.startswith("backbone."))
    if expected.task == "segment":
        rates = {m.p for m in model.modules() if isinstance(m, nn.Dropout2d)}
        assert rates == {0.1}
        assert (model.auxiliary is not None) == (expected.head == "deeplabv3")


@pytest.mark.parametrize("name", EXPECTED)
def test_the_groups_and_rates_of_a_recipe(name: str) -> None:
    expected, recipe = EXPECTED[name], load_recipe(name)
    model = tiny(recipe)
    optimizer = make_optimizer(model, recipe)
    assert type(optimizer) is torch.optim.AdamW
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(groups)
    learning = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert sorted(groups) == sorted(map(id, learning.values()))
    norms = tuple(
        f"{key}." for key, m in model.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))
    )
    for key, parameter in learning.items():
        group = groups[id(parameter)]
        spared = parameter.dim() == 1 or key.endswith(".bias")  # norms, and all biases
        assert spared or not key.startswith(norms), key
        assert group["weight_decay"] == (0 if spared else expected.decay), key
        assert group.get("lr_scale", 1.0) == (1.0 if key.startswith("backbone.") else expected.head_lr), key
        assert (tuple(group["betas"]), group["eps"]) == ((0.9, 0.999), 1e-8)

    per_epoch = expected.pictures // expected.batch
    assert per_epoch * expected.epochs == expected.steps
    schedule = make_schedule(optimizer, recipe, per_epoch)
    ends: Rates = {expected.steps - 1: 0.0, expected.steps: 0.0}
    for place, share in {**expected.rates, **ends}.items():
        step = int(place * expected.steps) if isinstance(place, float) else place
        schedule.step_update(step)
        for group in optimizer.param_groups:
            rate = share * expected.peak * group.get("lr_scale", 1.0)
            assert group["lr"] == pytest.approx(rate, rel=1e-3, abs=1e-4 * expected.peak * (share == 0)), step
    schedule.step_update(0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected.rates[0] * expected.peak)


def losses(model: Any, task: str) -> Tensor:
    """Of two pictures of 64 pixels, each half of one class."""
    pictures = torch.randn(2, 3, 64, 64)
    if task == "segment":
        return sum(maps.square().mean() for maps in model(pictures) if maps is not None)
    masks = torch.zeros(1, 64, 64)
    masks[:, :, :32] = 1
    target = {"boxes": torch.tensor([[0.0, 0, 32, 64]]), "labels": torch.tensor([1]), "masks": masks}
    return sum(model(pictures, [target, target]).values())


# what stays is the same in the others
STEPPED = ["coco-ssdlite-emov2", "coco-retinanet-emo", "ade20k-deeplabv3-emo", "ade20k-fpn-emov2"]


@pytest.mark.parametrize("name", STEPPED)
def test_a_recipe_is_stepped(name: str) -> None:
    """A step in the warm-up: frozen stages and kept statistics stay, to the bit; all else moves."""
    expected, recipe = EXPECTED[name], load_recipe(name)
    model = tiny(recipe).train()
    optimizer = make_optimizer(model, recipe)
    make_schedule(optimizer, recipe, expected.pictures // expected.batch).step_update(250)
    before = {key: tensor.clone() for key, tensor in model.backbone.state_dict(prefix="backbone.").items()}
    losses(model, expected.task).backward()
    optimizer.step()
    after = model.backbone.state_dict(prefix="backbone.")
    frozen = tuple(f"{STAGES}{stage}." for stage in range(expected.frozen))
    for key, tensor in before.items():
        statistic = "running_" in key or key.endswith("num_batches_tracked")
        stays = (expected.norm_eval and statistic) or (bool(frozen) and key.startswith(frozen))
        if stays or statistic or tensor.dim() > 1:  # a bias may be one that a norm takes off again
            assert torch.equal(tensor, after[key]) == stays, key


def test_a_heads_own_rate_needs_a_backbone_beside_it() -> None:
    recipe = Recipe().override(["optim.head_lr=10"])
    model = create_model("emo_1m", num_classes=2)
    with pytest.raises(ValueError, match="optim.head_lr is 10, but emo_1m is a classifier.*expected 1"):
        make_optimizer(model, recipe)


def test_layers_of_a_segmenter_are_not_told() -> None:
    recipe = load_recipe("ade20k-fpn-emov2").override(["optim.layer_decay=0.7"])
    with pytest.raises(ValueError, match="layer_decay is 0.7, but emov2_5m with the head fpn does not tell"):
        make_optimizer(tiny(recipe), recipe)


def test_position_embeddings_of_a_backbone_do_not_decay() -> None:
    model = build_dense(
        Recipe().override(
            ["task=segment", "model.name=deit_tiny_irmb", "model.head=fpn", "data.fit=stretch"]
        ),
        2,
    )
    optimizer = make_optimizer(model, Recipe().override(["optim.weight_decay=0.3", "optim.head_lr=2"]))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    positions = {key: p for key, p in model.named_parameters() if key.endswith(".position")}
    assert positions and all(p.dim() > 1 and decay[id(p)] == 0 for p in positions.values())


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "poly", "flat_cosine"])
def test_a_short_run_ends_near_its_lowest_rate(schedule: str, epochs: int) -> None:
    """Rates stay between the lowest and the peak, for any number of steps and a warm-up that fits in."""
    settings = [f"schedule.name={schedule}", f"schedule.epochs={epochs}", "schedule.warmup_steps=2"]
    recipe = Recipe().override([*settings, "optim.lr=1", "schedule.warmup_lr=0.5", "schedule.min_lr=0.1"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    stepper = make_schedule(optimizer, recipe, 5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    rates = []
    for step in range(5 * epochs):
        stepper.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:2] == [0.5, 0.75]
    assert all(a >= b for a, b in zip(rates[2:], rates[3:], strict=False))
    assert 0.1 <= rates[-1] < 0.5
