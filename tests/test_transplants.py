"""DeiT against timm's, PVT against torch's attention, transplants against the papers' figures."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from metamobile.models.create import create_model
from metamobile.models.operators import WindowAttention
from metamobile.models.transplants import TRANSPLANTS, Pyramid, ReducedAttention
from metamobile.study.complexity import complexity

every_transplant = pytest.mark.parametrize("name", TRANSPLANTS)


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter away from its start, norms and biases too; float64, in evaluation mode."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.double().eval()


def deit_from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of timm's deit_tiny_patch16_224 under our names: linear layers are 1x1 convolutions."""
    position = state["pos_embed"].transpose(1, 2)  # (1, C, T)
    ours = {
        "stages.0.class_token": state["cls_token"].transpose(1, 2),
        "stages.0.class_position": position[:, :, :1],
        "stages.0.position": position[:, :, 1:].unflatten(2, (14, 14)),
    }
    for leaf in ("weight", "bias"):
        ours[f"stages.0.patch.{leaf}"] = state[f"patch_embed.proj.{leaf}"]
        ours |= {f"{part}.{leaf}": state[f"{part}.{leaf}"] for part in ("norm", "head")}
        for index in range(12):
            theirs, attention, mlp = (
                f"blocks.{index}",
                f"stages.0.blocks.{2 * index}",
                f"stages.0.blocks.{2 * index + 1}",
            )
            qkv = state[f"{theirs}.attn.qkv.{leaf}"]
            block = {
                f"{attention}.norm": state[f"{theirs}.norm1.{leaf}"],
                f"{attention}.operator.qk": qkv[:384],
                f"{attention}.expand.conv": qkv[384:],
                f"{attention}.shrink.conv": state[f"{theirs}.attn.proj.{leaf}"],
                f"{mlp}.norm": state[f"{theirs}.norm2.{leaf}"],
                f"{mlp}.expand.conv": state[f"{theirs}.mlp.fc1.{leaf}"],
                f"{mlp}.shrink.conv": state[f"{theirs}.mlp.fc2.{leaf}"],
            }
            ours |= {f"{key}.{leaf}": t[:, :, None, None] if t.ndim == 2 else t for key, t in block.items()}
    return ours


def test_deit_is_timms() -> None:
    reference = randomise(timm.create_model("deit_tiny_patch16_224"))
    ours = timm.create_model("deit_tiny").double().eval()
    ours.load_state_dict(deit_from_timm(reference.state_dict()))
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(ours(x), reference(x)) < 1e-6


def test_reduced_attention_is_torchs_with_keys_from_a_smaller_map() -> None:
    ours = randomise(ReducedAttention(24, 8, reduction=2))
    value, project = randomise(nn.Conv2d(24, 24, 1)), randomise(nn.Conv2d(24, 24, 1))
    reference = nn.MultiheadAttention(24, 3, batch_first=True).double().eval()
    reference.in_proj_weight.data = torch.cat([ours.qk.weight, value.weight]).flatten(1)
    reference.in_proj_bias.data = torch.cat([ours.qk.bias, value.bias])
    reference.out_proj.weight.data, reference.out_proj.bias.data = project.weight.flatten(1), project.bias
    x = torch.randn(2, 24, 9, 6, dtype=torch.float64)  # the reduction leaves the ninth row out
    kernels = ours.reduce[0].weight.flatten(1)
    patches = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)  # (B, h*w, C*2*2)
    norm = ours.reduce[1]
    small = nn.functional.layer_norm(
        patches @ kernels.T + ours.reduce[0].bias, (24,), norm.weight, norm.bias, 1e-5
    )
    assert small.shape[1] == 12
    expected, _ = reference(x.flatten(2).transpose(1, 2), small, small)
    assert relative_difference(project(ours(x, value)).flatten(2).transpose(1, 2), expected) < 1e-10


def test_reduced_attention_tells_its_cost() -> None:
    attention = ReducedAttention(3, 3, reduction=2)
    (whole,) = complexity(attention, (14, 8))
    assert whole.macs == attention.macs(14, 8) == 3 * 3 * (112 + 28 + 112) + 112 * 28 * 6
    assert attention.max_path_length(14, 8) == 1


# Parameters exactly; GFLOPs at 224 px by the papers' rule; then as the paper prints them.
FIGURES = {
    "deit_tiny": (5_717_416, 1.258, 5.7, 1.3),
    "deit_tiny_irmb": (4_922_152, 1.095, 4.9, 1.1),
    "deit_tiny_i2rmb": (5_069_608, 1.301, 5.0, 1.3),
    "pvt_tiny": (13_229_288, 1.943, 13.2, 1.9),
    "pvt_tiny_irmb": (11_784_936, 1.838, 11.7, 1.8),
    "pvt_tiny_i2rmb": (11_940_584, 1.932, 11.9, 1.9),
}


def counts(name: str, **options: object) -> tuple[int, float]:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    (whole,) = complexity(model, 224)
    return whole.parameters, round(whole.flops_paper / 1e9, 3)


@every_transplant
def test_figures_print_as_published(name: str) -> None:
    parameters, flops = counts(name)
    assert (parameters, flops) == FIGURES[name][:2]
    printed = (parameters // 100_000 / 10, round(flops, 1))  # parameters cut off, FLOPs rounded
    assert printed == FIGURES[name][2:]


@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("deit_tiny_irmb", {"window": 7}, (4_922_152, 0.963)),
        ("deit_tiny_irmb", {"order": "after"}, (4_922_152, 1.361)),
        ("deit_tiny_i2rmb", {"window": 7}, (5_069_608, 1.036)),
        ("deit_tiny_i2rmb", {"window": 7, "order": "after"}, (5_069_608, 1.169)),
        ("deit_tiny_i2rmb", {"partition": "strided"}, (5_069_608, 1.124)),
        ("pvt_tiny_irmb", {"reductions": (1,) * 4, "window": 7}, (9_914_088, 1.826)),
        (
            "pvt_tiny_irmb",
            {"reductions": (1,) * 4, "window": 7, "expand_ratios": (4,) * 4},
            (9_567_976, 1.389),
        ),
        ("pvt_tiny_irmb", {"expand_ratios": (4,) * 4}, (11_438_824, 1.401)),
        ("pvt_tiny_irmb", {"order": "after"}, (11_784_936, 1.555)),
        ("pvt_tiny_i2rmb", {"reductions": (1,) * 4, "window": 7}, (10_069_736, 1.991)),
    ],
)
def test_what_fits_less(name: str, options: dict, figures: tuple[int, float]) -> None:
    assert counts(name, **options) == figures


@every_transplant
@pytest.mark.parametrize("size", [(64, 64), (97, 75)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    model = create_model(name, num_classes=7).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()
    info = model.feature_info
    assert [tuple(m.shape[1:]) for m in maps] == [
        (row["num_chs"], size[0] // row["reduction"], size[1] // row["reduction"]) for row in info
    ]


@every_transplant
def test_backward_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=5).train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # keys' biases shift all scores of a query alike, which softmax does not see
    assert [n for n in missing if not n.endswith("qk.bias")] == []


@every_transplant
def test_timms_contract(name: str) -> None:
    model = timm.create_model(name, num_classes=4).eval()
    x = torch.randn(1, 3, 64, 64)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.get_classifier()(pooled), model(x))
    final, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(final, features)
    flat = maps[-1].flatten(2)
    assert torch.equal(flat, features[:, :, 0, 1:] if model.class_token else features.flatten(2))
    backbone = timm.create_model(name, features_only=True)
    assert [m.shape[1] for m in backbone(x)] == backbone.feature_info.channels()
    exempt = model.no_weight_decay()
    assert len(exempt) == len(model.stages) + 2 * model.class_token
    assert exempt < {n for n, _ in model.named_parameters()}
    model.set_grad_checkpointing()
    model(x).sum().backward()
    model.reset_classifier(0)
    assert torch.equal(model.eval()(x), pooled)


@every_transplant
def test_torch_export(name: str) -> None:
    model = timm.create_model(name, num_classes=5, depths=(1,) * len(TRANSPLANTS[name]["dims"])).eval()
    x = torch.randn(2, 3, 64, 96)
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-5)


def test_drop_path_grows_and_both_cuts_of_one_window_are_twice_one() -> None:
    model = timm.create_model("deit_tiny", drop_path_rate=0.11)
    rates = [getattr(block.drop_path, "drop_prob", 0) for block in model.stages[0].blocks]
    assert rates == pytest.approx([i // 2 * 0.01 for i in range(24)])
    both, one = WindowAttention(16, 8, 0, "both"), WindowAttention(16, 8, 0, "strided")
    one.load_state_dict(both.state_dict())
    x = torch.randn(1, 16, 5, 4)
    assert torch.allclose(both(x), 2 * one(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": "irbm"}, "'irbm' is unknown; known are 'transformer' and 'irmb'"),
        ({"reductions": (8, 4, 2, 2)}, "the last of reductions is 2; .* expected 1"),
        ({"partition": "tiles", "block": "irmb"}, "known are strided, contiguous, both"),
    ],
)
def test_settings_that_do_not_fit(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        timm.create_model("pvt_tiny", **options)
    assert isinstance(create_model("deit_tiny_irmb"), Pyramid)
