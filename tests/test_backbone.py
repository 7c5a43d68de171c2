"""The backbone's maps: timm's own, at the strides it tells, for pictures of any size."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from metamobile.models.backbone import STRIDES, Backbone, SimplePyramid, make_backbone
from metamobile.models.create import create_model
from metamobile.models.detectors import HEADS as DETECTORS
from metamobile.models.operators import WindowAttention
from metamobile.models.segmenters import HEADS as SEGMENTERS
from metamobile.models.variants import VARIANTS

SMALL_VIT: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 64}
SMALL_SWIN: dict[str, Any] = {
    "embed_dim": 24,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 4, 8),
    "img_size": 64,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "emo_1m": {},
    "emov2_1m": {},
    "mobilenetv3_small_050": {},
    "edgenext_xx_small": {},
    "resnet18": {},
    "pvt_tiny": {},
    "deit_tiny_irmb": {},
    "vit_tiny_patch16_224": SMALL_VIT,
    "swin_tiny_patch4_window7_224": SMALL_SWIN,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 96), (97, 131)])
def test_maps_are_what_channels_and_strides_tell(name: str, size: tuple[int, int]) -> None:
    backbone = make_backbone(name, **NETWORKS[name]).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size))
    assert backbone.strides[-4:] == STRIDES
    expected = [
        (1, c, -(-size[0] // s), -(-size[1] // s))
        for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(torch.isfinite(m).all() for m in maps)


def test_maps_of_a_network_with_stages_are_timms() -> None:
    torch.manual_seed(0)
    backbone = make_backbone("resnet18").eval()
    reference: Any = timm.create_model("resnet18", features_only=True).eval()
    reference.load_state_dict(backbone.network.state_dict())
    x = torch.randn(1, 3, 75, 64)
    with torch.no_grad():
        pairs = list(zip(backbone(x), reference(x), strict=True))
    assert backbone.channels == reference.feature_info.channels()
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_channels_come_first_where_timm_puts_them_last() -> None:
    backbone = make_backbone("swin_tiny_patch4_window7_224", **SMALL_SWIN).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = list(zip(backbone(x), backbone.network(x), strict=True))
    assert all(torch.equal(ours.permute(0, 2, 3, 1), theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("name", ["edgenext_xx_small", "vit_tiny_patch16_224"])
def test_a_network_of_patches_sees_the_last_rows_and_columns(name: str) -> None:
    """Without padding, pixels that make no whole patch would have no effect."""
    backbone = make_backbone(name, **NETWORKS[name]).eval()
    x = torch.randn(1, 3, 67, 67)
    changed = x.clone()
    changed[:, :, -1, -1] += 1
    with torch.no_grad():
        assert not torch.equal(backbone(x)[-1], backbone(changed)[-1])


def test_simple_pyramid_keeps_the_map_and_its_place() -> None:
    pyramid = SimplePyramid(32, 16)
    assert pyramid.channels == [8, 16, 32, 32]
    x = torch.randn(1, 32, 6, 4)
    maps = pyramid(x)
    normed = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (32,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps[2], normed)
    assert torch.equal(maps[3], maps[2][..., ::2, ::2])
    # transposed convolutions of side 2 and stride 2: one position of the map becomes a square of its own
    moved = x.clone()
    moved[..., 2, 1] += torch.randn(32)
    for finer, reach in zip(pyramid(moved)[:2], (4, 2), strict=True):
        differs = (finer != maps[0 if reach == 4 else 1]).any(1)[0]
        rows, columns = torch.nonzero(differs, as_tuple=True)
        assert set(rows.tolist()) == set(range(2 * reach, 3 * reach))
        assert set(columns.tolist()) == set(range(reach, 2 * reach))


@pytest.mark.parametrize("stride", STRIDES)
def test_simple_pyramid_from_any_stride(stride: int) -> None:
    side = 128 // stride
    pyramid = SimplePyramid(16, stride)
    maps = pyramid(torch.randn(1, 16, side, side))
    assert [m.shape[2] for m in maps] == [32, 16, 8, 4]
    assert [m.shape[1] for m in maps] == pyramid.channels


def test_simple_pyramid_leaves_out_what_is_finer_than_asked() -> None:
    backbone = make_backbone("vit_tiny_patch16_224", finest_stride=16, **SMALL_VIT)
    assert (backbone.strides, backbone.channels) == ([16, 32], [48, 48])
    assert [m.shape[2] for m in backbone(torch.randn(1, 3, 64, 64))] == [4, 2]
    assert not [n for n, _ in backbone.named_parameters() if "pyramid.levels" in n]


@pytest.mark.parametrize("window", [7, 10, 16])
def test_window_is_the_callers(window: int) -> None:
    backbone = make_backbone("emo_1m", window_size=window)
    windows = {m.window for m in backbone.modules() if isinstance(m, WindowAttention)}
    assert windows == {window}


NORMED = ["resnet18", "mobilenetv3_small_050", "emo_1m", "emov2_1m"]  # with batch norms

# what lies before the map of stride 4, by how the names begin; written down from the networks' own code
STEMS = {
    "resnet18": ("conv1.", "bn1.", "layer1."),
    "mobilenetv3_small_050": ("conv_stem.", "bn1.", "blocks.0."),
    "edgenext_xx_small": ("stem_0.", "stem_1.", "stages_0."),
    "emo_1m": ("model.stages.0.", "model.stages.1."),
    "emov2_1m": ("model.stages.0.", "model.stages.1."),
    "pvt_tiny": ("model.stages.0.",),
}


def trained(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the network's tensors before and after a step that moves all that learns."""
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    sum(m.square().mean() for m in backbone.train()(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    return before, backbone.network.state_dict()


def is_statistic(name: str) -> bool:
    return "running_" in name or name.endswith("num_batches_tracked")


@pytest.mark.parametrize("name", STEMS)
def test_frozen_stages_stay_as_they_are(name: str) -> None:
    before, after = trained(make_backbone(name, frozen_stages=2))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    stem = {key for key in before if key.startswith(STEMS[name])}
    assert stem and not moved & stem
    # all else moves, statistics too; a bias of zero that a norm takes off again has no gradient, nor decay
    assert not {key for key in set(before) - stem - moved if before[key].any()}


@pytest.mark.parametrize("stages", range(1, 6))
def test_our_frozen_stages_are_the_first_ones(stages: int) -> None:
    backbone = make_backbone("emo_1m", frozen_stages=stages)
    frozen = {name for name, p in backbone.network.named_parameters() if not p.requires_grad}
    first = tuple(f"model.stages.{i}." for i in range(stages))
    assert frozen == {name for name, _ in backbone.network.named_parameters() if name.startswith(first)}


def test_a_frozen_stage_runs_as_in_evaluation() -> None:
    """Its map is that of evaluation, whatever drop path and batch norms would do; the next map is not."""
    torch.manual_seed(0)
    backbone = make_backbone("emo_1m", frozen_stages=3, drop_path_rate=0.9)
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        alone, training = backbone.eval()(x), backbone.train()(x)
    assert all(torch.equal(a, b) for a, b in zip(alone[:3], training[:3], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(alone[3:], training[3:], strict=True))
    assert backbone.training and backbone.network.training
    assert not any(module.training for module in backbone.eval().modules())


@pytest.mark.parametrize("name", NORMED)
def test_norm_eval_keeps_the_statistics_and_no_more(name: str) -> None:
    backbone = make_backbone(name, norm_eval=True)
    with torch.no_grad():
        for key, buffer in backbone.network.named_buffers():
            if "running_" in key:  # so that statistics of the batch would be others
                buffer.uniform_(0.5, 1.5)
    before, after = trained(backbone)
    assert {key for key in before if torch.equal(before[key], after[key]) and before[key].any()} == {
        key for key in before if is_statistic(key) and before[key].any()
    }
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [m for m in backbone.modules() if not isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms) and all(m.training for m in others)


def test_batch_norms_learn_their_statistics_unless_told() -> None:
    before, after = trained(make_backbone("emo_1m"))
    statistics = [key for key in before if "running_" in key]
    assert statistics and not any(torch.equal(before[key], after[key]) for key in statistics)


@pytest.mark.parametrize(("task", "head"), [("segment", "deeplabv3"), ("detect", "ssdlite")])
def test_heads_hand_it_on_and_keep_their_own_norms_learning(task: str, head: str) -> None:
    model: Any = create_model("emo_1m", task=task, head=head, num_classes=2, norm_eval=True, frozen_stages=2)
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training != name.startswith("backbone."), name
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    stem = ("backbone.network.model.stages.0.", "backbone.network.model.stages.1.")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(stem)}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_takes_every_head(name: str) -> None:
    with torch.device("meta"):
        for task, heads in (("detect", DETECTORS), ("segment", SEGMENTERS)):
            for head in heads:
                model: Any = create_model(name, task=task, head=head, num_classes=3)
                assert (model.task, model.settings["head"]) == (task, head)


def test_freezing_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    free = make_backbone("emo_1m").network.state_dict(), torch.rand(1)
    torch.manual_seed(3)
    frozen = make_backbone("emo_1m", frozen_stages=2).network.state_dict(), torch.rand(1)
    assert all(torch.equal(free[0][key], frozen[0][key]) for key in free[0])
    assert torch.equal(free[1], frozen[1])


def test_errors_say_what_is_expected() -> None:
    with pytest.raises(
        ValueError,
        match="frozen_stages is 1, but edgenext_xx_small has no map of stride 2, .* 0, 2, 3, 4, 5$",
    ):
        make_backbone("edgenext_xx_small", frozen_stages=1)
    with pytest.raises(ValueError, match="frozen_stages is 2, but vit_.* has no stages, .*; expected 0"):
        make_backbone("vit_tiny_patch16_224", frozen_stages=2, **SMALL_VIT)
    with pytest.raises(ValueError, match="no network is called 'emo_1'.*did you mean 'emo_1m'"):
        make_backbone("emo_1")
    with pytest.raises(ValueError, match="window_size is EMO's; 'resnet18' does not take it"):
        make_backbone("resnet18", window_size=7)
    with pytest.raises(ValueError, match="efficientvit_m0 has maps of strides 16, 32, 64; expected are 4, 8"):
        make_backbone("efficientvit_m0")
