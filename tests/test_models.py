"""timm's contract, and what every user of a variant relies on; each test runs over every variant."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import metamobile
from metamobile.models.create import create_model, resolved_args
from metamobile.models.emo import EMO, auto_window, padded_share, resolve_windows
from metamobile.models.operators import WindowAttention
from metamobile.models.variants import VARIANTS

every_variant = pytest.mark.parametrize("name", VARIANTS)


def settled(name: str, **kwargs: object) -> nn.Module:
    """In evaluation mode, with BN statistics that are not the defaults."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


@every_variant
def test_registered_and_counted(name: str) -> None:
    assert name in timm.list_models("emo*")
    model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == VARIANTS[name].parameters
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert model.pretrained_cfg["crop_pct"] == 0.875
    assert model.no_weight_decay() == set()


@every_variant
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (75, 100)])
def test_any_size_and_batch_one(name: str, size: tuple[int, int]) -> None:
    logits = settled(name, num_classes=7)(torch.randn(1, 3, *size))
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()


@every_variant
def test_backward_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=5, drop_path_rate=0.0).train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # keys' biases shift all scores of a query alike, which softmax does not see
    assert [n for n in missing if not n.endswith("qk.bias")] == []


@every_variant
def test_features(name: str) -> None:
    backbone = timm.create_model(name, features_only=True)
    x = torch.randn(1, 3, 96, 64)
    maps = backbone(x)
    variant = VARIANTS[name]
    assert backbone.feature_info.channels() == [variant.stem_dim, *variant.dims] == [m.shape[1] for m in maps]
    assert backbone.feature_info.reduction() == [2, 4, 8, 16, 32] == [96 // m.shape[2] for m in maps]
    picked = timm.create_model(name, features_only=True, out_indices=(2, 4))
    assert [m.shape[1] for m in picked(x)] == [variant.dims[1], variant.dims[3]]


@every_variant
def test_forward_intermediates(name: str) -> None:
    model = settled(name)
    x = torch.randn(2, 3, 64, 64)
    final, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(final, maps[-1])
    assert [m.shape[2] for m in maps] == [32, 16, 8, 4, 2]
    two = model.forward_intermediates(x, indices=[1, 2], stop_early=True, intermediates_only=True)
    assert torch.equal(two[1], maps[2])
    model.prune_intermediate_layers([2])
    assert len(model.stages) == 3
    with pytest.raises(ValueError, match="EMO's maps are 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NLC")


@every_variant
def test_head(name: str) -> None:
    model = settled(name, num_classes=6, in_chans=1)
    x = torch.randn(2, 1, 64, 64)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.allclose(pooled, features.mean((2, 3)))
    assert torch.allclose(model.get_classifier()(pooled), model(x))
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)


@every_variant
def test_grad_checkpointing_changes_nothing(name: str) -> None:
    model = settled(name, num_classes=3)
    x = torch.randn(1, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append(model.stages[1][0].shrink.conv.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-5)


@every_variant
def test_parameter_groups(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    layers = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.8)
    scales = [group["lr_scale"] for group in layers.param_groups]
    assert max(scales) == 1 and min(scales) == pytest.approx(0.8 ** (len(set(scales)) - 1))
    plain = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05)
    without = {id(p) for g in plain.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert without == {id(p) for p in model.parameters() if p.ndim <= 1}


@every_variant
def test_torch_export(name: str) -> None:
    model = settled(name, num_classes=5)
    x = torch.randn(2, 3, 64, 96)
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-5)


@every_variant
def test_resolved_args_rebuild(name: str) -> None:
    model = settled(name, num_classes=9, window_size="auto", img_size=(128, 160))
    again = create_model(name, **resolved_args(model)).eval()
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 128, 160)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("size", "window"),
    [
        (8, 4),
        (14, 7),
        (7, 7),
        (4, 4),
        (16, 8),
        (10, 5),
        (12, 6),
        (20, 5),
        (1, 1),
        (11, 11),
        (13, 13),
        (22, 11),
    ],
)
def test_auto_window_divides(size: int, window: int) -> None:
    assert auto_window(size, size) == (window, window)


def test_auto_window_at_128_keeps_four_windows_and_no_padding() -> None:
    model = create_model("emo_1m", window_size="auto", img_size=128)
    stage3 = [m for m in model.stages[3].modules() if isinstance(m, WindowAttention)]
    assert {m.window for m in stage3} == {(4, 4)}  # the map is 8x8
    assert padded_share(model, 128) == 0
    # with 7: 14*14 and 7*7 tokens for maps of 8*8 and 4*4
    assert padded_share(create_model("emo_1m"), 128) == pytest.approx(
        1 - (7 * 64 + 2 * 16) / (7 * 196 + 2 * 49)
    )


def test_window_forms() -> None:
    assert resolve_windows(7, None) == [7] * 4
    assert resolve_windows([0, 0, [4, 6], 4], None) == [0, 0, (4, 6), 4]
    with pytest.raises(ValueError, match="needs img_size"):
        resolve_windows("auto", None)
    with pytest.raises(ValueError, match="'automatic' is unknown"):
        resolve_windows("automatic", 128)
    with pytest.raises(ValueError, match="has 3 entries"):
        resolve_windows([7, 7, 7], None)


def test_names_and_arguments_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="did you mean 'emo_5m'"):
        create_model("emo_5")
    with pytest.raises(ValueError, match="'resnet18' does not take it"):
        create_model("resnet18", window_size=4)
    with pytest.raises(ValueError, match="widths"):
        create_model("emo_1m", widths=3)
    assert isinstance(metamobile.create_model("emo_1m"), EMO)


def test_a_timm_with_its_own_emo_does_not_break_the_import() -> None:
    """Ours is then the one that timm.create_model builds."""
    code = (
        "from timm.models import register_model\n"
        "def emo_5m(pretrained=False, **kwargs): return None\n"
        "register_model(emo_5m)\n"
        "import metamobile, timm\n"
        "assert type(timm.create_model('emo_5m')).__module__ == 'metamobile.models.emo'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
