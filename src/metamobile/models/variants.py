"""The published networks, one row each. Reads without torch, so that listing them is instant.

Each row holds the four stages after the stem (the papers' stages 1 to 4, strides 4, 8, 16, 32).

Sources. Depths, dims, expansion ratios, head dims, drop path: official configurations of EMO (arXiv
2301.01146) and EMOv2 (arXiv 2412.06674, tables 4 and 18). Parameters: exact count of that network with 1,000
classes. `flops`: the authors' training logs at 224 px, counted as their tool counts (one per multiply-add,
two per element in batch norm, five in layer norm); for EMOv2-20M and 50M the same count of the official
network. `top1`, on ImageNet-1K at 224 px, trained without distillation: EMO, README of the official release
(test of the published weights); EMOv2, tables 7 and 19.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """Configuration and published figures of one network.

    `head_dims` are channels a head, `drop_path` the rate of the last block, `flops` in millions by the
    papers' counting rule, `macs` in millions the multiply-adds of convolutions, linear layers and matrix
    products (our count, `study.complexity`), `top1` in percent.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    expand_ratios: tuple[float, float, float, float]
    head_dims: tuple[int, int, int, int]
    drop_path: float
    parameters: int
    flops: float
    macs: float
    top1: float
    stem_dim: int = 24
    stem_se: bool = True
    stem_act: bool = False
    kernels: tuple[int, int, int, int] = (3, 3, 5, 5)
    attention: tuple[bool, bool, bool, bool] = (False, False, True, True)
    partition: str = "strided"
    order: str = "before"
    layer_scale: float | None = None
    paper: str = "arXiv:2301.01146"


# What all EMOv2 share: spanning attention on expanded values, 5x5 kernels, layer scale, a plainer stem.
_V2: dict[str, Any] = {
    "stem_se": False,
    "stem_act": True,
    "kernels": (5, 5, 5, 5),
    "partition": "both",
    "order": "after",
    "layer_scale": 1e-6,
    "paper": "arXiv:2412.06674",
}

VARIANTS: dict[str, Variant] = {
    "emo_1m": Variant(
        depths=(2, 2, 8, 3),
        dims=(32, 48, 80, 168),
        expand_ratios=(2.0, 2.5, 3.0, 3.5),
        head_dims=(16, 16, 20, 21),
        drop_path=0.04036,
        parameters=1_361_168,
        flops=260.844,
        macs=255.238,
        top1=71.498,
    ),
    "emo_2m": Variant(
        depths=(3, 3, 9, 3),
        dims=(32, 48, 120, 200),
        expand_ratios=(2.0, 2.5, 3.0, 3.5),
        head_dims=(16, 16, 20, 20),
        drop_path=0.05,
        parameters=2_377_472,
        flops=439.363,
        macs=431.917,
        top1=75.134,
    ),
    "emo_5m": Variant(
        depths=(3, 3, 9, 3),
        dims=(48, 72, 160, 288),
        expand_ratios=(2.0, 3.0, 4.0, 4.0),
        head_dims=(24, 24, 32, 32),
        drop_path=0.05,
        parameters=5_108_848,
        flops=902.584,
        macs=892.224,
        top1=78.422,
    ),
    "emo_6m": Variant(
        depths=(3, 3, 9, 3),
        dims=(48, 72, 160, 320),
        expand_ratios=(2.0, 3.0, 4.0, 5.0),
        head_dims=(16, 24, 20, 32),
        drop_path=0.05,
        parameters=6_168_496,
        flops=960.753,
        macs=950.25,
        top1=78.988,
    ),
    "emov2_1m": Variant(
        depths=(2, 2, 8, 3),
        dims=(32, 48, 80, 180),
        expand_ratios=(2.0, 2.5, 3.0, 3.5),
        head_dims=(16, 16, 20, 20),
        drop_path=0.04036,
        parameters=1_460_844,
        flops=284.757,
        macs=279.936,
        top1=72.3,
        stem_dim=16,
        **_V2,
    ),
    "emov2_2m": Variant(
        depths=(3, 3, 9, 3),
        dims=(32, 48, 120, 200),
        expand_ratios=(2.0, 2.5, 3.0, 3.5),
        head_dims=(16, 16, 20, 20),
        drop_path=0.05,
        parameters=2_384_312,
        flops=487.455,
        macs=480.812,
        top1=75.8,
        stem_dim=16,
        **_V2,
    ),
    "emov2_5m": Variant(
        depths=(3, 3, 9, 3),
        dims=(48, 72, 160, 288),
        expand_ratios=(2.0, 3.0, 4.0, 4.0),
        head_dims=(16, 24, 32, 32),
        drop_path=0.05,
        parameters=5_126_440,
        flops=1035.474,
        macs=1025.114,
        top1=79.4,
        stem_dim=24,
        **_V2,
    ),
    "emov2_20m": Variant(
        depths=(3, 3, 13, 3),
        dims=(64, 128, 320, 448),
        expand_ratios=(2.0, 3.0, 4.0, 4.0),
        head_dims=(16, 32, 32, 32),
        drop_path=0.1,
        parameters=20_195_208,
        flops=4017.165,
        macs=3997.004,
        top1=83.3,
        stem_dim=32,
        **_V2,
    ),
    "emov2_50m": Variant(
        depths=(5, 8, 20, 7),
        dims=(64, 128, 384, 512),
        expand_ratios=(2.0, 3.0, 4.0, 4.0),
        head_dims=(16, 32, 32, 32),
        drop_path=0.2,
        parameters=49_815_560,
        flops=8804.167,
        macs=8767.263,
        top1=84.1,
        stem_dim=32,
        **_V2,
    ),
}
