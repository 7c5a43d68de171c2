"""The deployed form: the same function, folded, of low rank, and the network itself untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import metamobile
from metamobile.models.blocks import irmb
from metamobile.models.create import create_model
from metamobile.models.variants import VARIANTS
from small_dense import make_dense


def unlike_new(network: nn.Module, height: int, width: int) -> nn.Module:
    """In evaluation mode and double precision, with norms and layer scales that are not those of a start."""
    torch.manual_seed(0)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.2)
        if name.endswith("layer_scale") and hasattr(module, "gamma"):
            nn.init.uniform_(module.gamma, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(3, 3, height, width))
    return network.eval().double()


def difference(network: nn.Module, *size: int) -> float:
    deployed = metamobile.deploy(network)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected, found = network(x), deployed(x)
    return float((expected - found).abs().max() / expected.abs().max())


class Ranks(TorchDispatchMode):
    highest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, Tensor):
                self.highest = max(self.highest, one.ndim)
        return found


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_answers_the_same(name: str) -> None:
    """At an odd size, where windows are padded."""
    network = unlike_new(create_model(name, num_classes=5), 72, 104)
    assert difference(network, 72, 104) < 1e-10


@pytest.mark.parametrize("size", [(224, 224), (96, 250)])
@pytest.mark.parametrize("name", ["emo_1m", "emov2_1m"])
def test_windows_one_and_many(name: str, size: tuple[int, int]) -> None:
    network = unlike_new(create_model(name, num_classes=5), *size)
    assert difference(network, *size) < 1e-10


VARIATIONS = {
    "windows of another form": {"window_size": (2, 3)},
    "contiguous": {"partition": "contiguous", "window_size": 2},
    "both cuts before the expansion": {"partition": "both", "window_size": 2},
    "side by side": {"parallel": True, "window_size": 2},
    "without convolutions": {"conv": False},
    "batch norm before attention, which pads": {"norms": ("batch",) * 4, "window_size": 4},
    "attention in every stage": {"attention": (True,) * 4},
    "the whole map": {"window_size": 0},
    "dilated": {"dilation": 2},
    "layer scale": {"layer_scale": 0.5},
    "no class": {"num_classes": 0},
}


@pytest.mark.parametrize("which", VARIATIONS)
def test_variations(which: str) -> None:
    args = {"num_classes": 5, **VARIATIONS[which]}
    assert difference(unlike_new(create_model("emo_1m", **args), 80, 112), 80, 112) < 1e-8


@pytest.mark.parametrize("args", [{"value_groups": True}, {"order": "after", "parallel": True}])
def test_blocks_that_no_variant_has(args: dict[str, Any]) -> None:
    block = nn.Sequential(irmb(16, dim_head=8, window=3, expand_ratio=2, **args)).double().eval()
    x = torch.randn(2, 16, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(metamobile.deploy(block)(x), block(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["emo_1m", "emov2_1m"])
def test_nothing_is_left_to_fold_and_no_rank_is_above_four(name: str) -> None:
    network = create_model(name, num_classes=5, window_size=2).eval()
    deployed = metamobile.deploy(network)
    left = [type(module).__name__ for module in deployed.modules()]
    assert "BatchNorm2d" not in left and "LayerScale2d" not in left
    with Ranks() as ranks, torch.no_grad():
        deployed(torch.randn(1, 3, 128, 128))
    assert ranks.highest == 4
    with Ranks() as ranks, torch.no_grad():
        network(torch.randn(1, 3, 128, 128))
    assert ranks.highest > 5, "the published form has such tensors: the probe sees them"


def test_the_network_itself_stays_as_it_is() -> None:
    network = create_model("emov2_1m", num_classes=5).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    deployed = metamobile.deploy(network)
    assert network.training and not deployed.training
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet", "fpn", "segformer"])
def test_segmenters(head: str) -> None:
    network = unlike_new(create_model("emo_1m", task="segment", head=head, num_classes=4), 64, 96)
    assert difference(network, 64, 96) < 1e-10


@pytest.mark.parametrize("head", ["ssdlite", "retinanet"])
def test_detectors(head: str) -> None:
    network = make_dense(head).double()
    deployed = metamobile.deploy(network)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for expected, found in zip(network.dense(x), deployed.dense(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.backbone.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_networks_of_timm(name: str) -> None:
    assert difference(unlike_new(create_model(name, num_classes=5), 64, 64), 64, 64) < 1e-8


def test_branches_of_timm_are_merged() -> None:
    network = unlike_new(create_model("repvit_m0_9", num_classes=5), 64, 64).float()
    deployed, x = metamobile.deploy(network), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), network(x), rtol=1e-3, atol=1e-4)
    assert len(list(deployed.modules())) < len(list(network.modules()))


def test_a_loaded_model_is_taken_too() -> None:
    model = metamobile.load("emo_1m.imagenette")
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(metamobile.deploy(model)(x), model.network(x), rtol=1e-4, atol=1e-4)
