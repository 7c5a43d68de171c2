"""Any network as a backbone: its maps at strides 4, 8, 16 and 32, which the heads of dense tasks share.

Shapes: B batch, C channels, H W height and width of the picture.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metamobile.models.create import create_model

STRIDES = [4, 8, 16, 32]
PROBE = (64, 64)  # height and width of a picture that tells which parameters make a map

# timm's networks that are built for one picture size, by module, and what makes them take any.
_ANY_SIZE: dict[str, dict[str, Any]] = {
    "vision_transformer": {"dynamic_img_size": True},
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
}


class Backbone(nn.Module):
    """(B, 3, H, W) -> maps (B, channels[i], H / strides[i], W / strides[i]), the finest first.

    The last four maps have strides 4, 8, 16 and 32: stages 1 to 4. Most networks have a map of stride 2
    before them; `channels` and `strides` tell. Maps are the stages' own, without the classifier's final
    norm. Sides that a stride does not divide are rounded up, as convolutions of stride 2 do. A network that
    cuts the picture into patches would lose the rest, so it gets zeros at the right and the bottom.

    `network` is timm's feature extractor. One that has a single stride, as a ViT, gets a `SimplePyramid`,
    whose maps begin at `finest_stride`.

    Two ways to keep what was learned in classification, both in force whenever the model is set to train:
    `norm_eval`: the network's batch norms normalise by their stored statistics and leave them as they are.
    `frozen_stages` n: all that makes the first n of the five stages, up to the map of stride 2^n, does not
    learn, and runs as in evaluation, without dropout and drop path. The papers' detectors have
    "frozen_stages=1", counted from 0: that is 2 here, stem and stage 1.

    Errors: ValueError for strides that no head can use, and for stages that cannot be frozen.
    """

    channels: list[int]
    strides: list[int]

    def __init__(
        self,
        network: Any,
        name: str = "the network",
        finest_stride: int = STRIDES[0],
        *,
        norm_eval: bool = False,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.in_chans: int = getattr(network, "in_chans", 3)
        self.pretrained_cfg: dict[str, Any] = dict(network.pretrained_cfg)
        self.channels = list(network.feature_info.channels())
        self.strides = list(network.feature_info.reduction())
        # by name, as its type is an enumeration of timm's; a few of timm's networks give (B, H, W, C)
        self.channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
        self.multiple = self.strides[-1] if self.strides[0] > 2 else 1
        self.pyramid: SimplePyramid | None = None
        if len(set(self.strides)) == 1 and self.strides[0] in STRIDES:
            self.pyramid = SimplePyramid(self.channels[-1], self.strides[0], finest_stride)
            self.channels, self.strides = self.pyramid.channels, self.pyramid.strides
        elif self.strides[-4:] != STRIDES:
            raise ValueError(
                f"{name} has maps of strides {', '.join(map(str, self.strides))}; expected are 4, 8, 16, 32 "
                "as the last four, or one of them alone: take another network"
            )
        self.norm_eval = norm_eval
        self.frozen: frozenset[str] = frozenset()  # names of the network's modules that do not learn
        if frozen_stages:
            self.frozen = self._freeze(frozen_stages)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """As of any module, but batch norms and frozen stages stay in evaluation mode (see the class)."""
        super().train(mode)
        for name, module in self.network.named_modules():
            if name in self.frozen:
                module.eval()
            elif self.norm_eval and isinstance(module, _BatchNorm):
                module.training = False
        return self

    def _freeze(self, stages: int) -> frozenset[str]:
        """Let no parameter learn that the stage's map depends on; names of the modules that have no other."""
        strides = self.strides
        if self.pyramid is not None:
            raise ValueError(
                f"frozen_stages is {stages}, but {self.name} has no stages, as its maps have one stride; "
                "expected 0"
            )
        known = [n for n in range(1, 6) if 2**n in strides]
        if stages not in known:
            raise ValueError(
                f"frozen_stages is {stages}, but {self.name} has no map of stride {2**stages}, where stage "
                f"{stages} of five ends; expected 0, {', '.join(map(str, known))}"
            )
        learning = [p for p in self.network.parameters() if p.requires_grad]
        with torch.enable_grad():
            end = self.eval()(torch.zeros(1, self.in_chans, *PROBE))[strides.index(2**stages)]
            gradients = torch.autograd.grad(end.sum(), learning, allow_unused=True)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.requires_grad_(gradient is None)
        return frozenset(name for name, module in self.network.named_modules() if _learns_nothing(module))

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        if self.multiple > 1:
            x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        maps: list[Tensor] = list(self.network(x))
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        if self.pyramid is not None:
            maps = self.pyramid(maps[-1])
        if self.multiple > 1:  # what lies on the zeros alone goes again; -(-a // b) rounds a / b up
            maps = [
                m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, self.strides, strict=True)
            ]
        return maps


def _learns_nothing(module: nn.Module) -> bool:
    """Whether the module has parameters, and none of them learns."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


class SimplePyramid(nn.Module):
    """The last map of a network with one stride, (B, C, h, w), -> maps at strides 4, 8, 16, 32.

    `finest_stride` leaves out the maps before it, for heads that would not use them.
    After a layer norm, finer maps come from 2x2 transposed convolutions, each halving the channels, and
    coarser ones from every second row and column. Source: ViTDet (arXiv 2203.16527) section 3; its last
    convolutions are left out, as each head has its own.
    """

    def __init__(self, dim: int, stride: int, finest_stride: int = STRIDES[0]) -> None:
        super().__init__()
        self.strides = [target for target in STRIDES if target >= finest_stride]
        self.channels = [dim * min(target, stride) // stride for target in self.strides]
        self.norm = LayerNorm2d(dim)
        self.levels = nn.ModuleList(_level(dim, stride, target) for target in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm(x)
        return [level(x) for level in self.levels]


def _level(dim: int, stride: int, target: int) -> nn.Module:
    """From the map at `stride` to one at `target`."""
    if target >= stride:
        return nn.MaxPool2d(1, target // stride) if target > stride else nn.Identity()
    layers: list[nn.Module] = []
    while stride > target:
        if layers:
            layers += [LayerNorm2d(dim), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, dim // 2, 2, 2))
        dim, stride = dim // 2, stride // 2
    return nn.Sequential(*layers)


def make_backbone(
    name: str,
    *,
    pretrained: bool = False,
    finest_stride: int = STRIDES[0],
    norm_eval: bool = False,
    frozen_stages: int = 0,
    **args: Any,
) -> Backbone:
    """A network of ours or of timm's as a backbone, for pictures of any size.

    `pretrained` loads the weights that `create_model` would load; `finest_stride` is the finest that the
    head uses, `norm_eval` and `frozen_stages` hold what was learned (see `Backbone`); other
    arguments, such as EMO's `window_size`, go to the network. Errors: ValueError for an unknown name, an
    argument that the network does not take, a network without the maps that heads need, and stages that
    cannot be frozen.
    """
    args = {**any_size(name), **args}
    network = create_model(name, pretrained=pretrained, num_classes=0, features_only=True, **args)
    return Backbone(network, name, finest_stride, norm_eval=norm_eval, frozen_stages=frozen_stages)


def any_size(name: str) -> dict[str, Any]:
    """The argument that lets a network of timm's take pictures of any size, if it needs one."""
    architecture = name.split(".")[0]
    return next(
        (args for module, args in _ANY_SIZE.items() if architecture in timm.list_models(module=module)), {}
    )
