"""What the EMOv2 paper (arXiv 2412.06674) prints of mobile networks: its marks, figures and tasks.

A network that timm or this package has is named by that name too. The EMOs' own rows are `variants`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from metamobile.models.variants import VARIANTS

CRITERIA = ("usability", "uniformity", "efficiency and effectiveness", "generalisation")

# Table 1: yes, partly or no for each of CRITERIA.
MARKS: dict[str, tuple[str, str, str, str]] = {
    "MobileNet": ("yes", "yes", "partly", "no"),
    "MobileViT": ("partly", "partly", "partly", "no"),
    "EdgeNeXt": ("partly", "no", "yes", "no"),
    "EdgeViT": ("yes", "partly", "partly", "no"),
    "RepViT": ("yes", "no", "yes", "no"),
    "EfficientFormerV2": ("yes", "partly", "yes", "no"),
    "EfficientVMamba": ("no", "no", "partly", "no"),
    "MogaNet": ("yes", "yes", "yes", "no"),
    "EMO": ("yes", "yes", "yes", "no"),
    "EMOv2": ("yes", "yes", "yes", "yes"),
}

# How a network's name begins, for the series that timm or this package has.
PREFIXES: dict[str, str] = {
    "mobilenetv1_": "MobileNet",
    "mobilenetv2_": "MobileNet",
    "mobilenetv3_": "MobileNet",
    "mobilenetv4_": "MobileNet",
    "mobilevit_": "MobileViT",
    "mobilevitv2_": "MobileViT",
    "edgenext_": "EdgeNeXt",
    "repvit_": "RepViT",
    "efficientformerv2_": "EfficientFormerV2",
    "emo_": "EMO",
    "emov2_": "EMOv2",
}

# Families of tasks with a figure in that paper, and its tables. What other papers report is not counted.
TASKS: dict[str, dict[str, str]] = {
    "MobileNet": {"classification": "7", "detection": "8", "segmentation": "11"},
    "MobileViT": {"classification": "7", "detection": "8", "segmentation": "11"},
    "EdgeNeXt": {"classification": "7", "detection": "8", "segmentation": "12", "video": "13"},
    "EdgeViT": {"classification": "7", "detection": "9", "segmentation": "11"},
    "RepViT": {"classification": "7"},
    "EfficientFormerV2": {"classification": "7"},
    "EfficientVMamba": {"classification": "7"},
    "EMO": {"classification": "7", "detection": "8, 10", "segmentation": "11"},
    "EMOv2": {
        "classification": "7, 19",
        "detection": "8, 9, 10",
        "segmentation": "11, 12",
        "video": "13",
        "generation": "14",
    },
}


@dataclass(frozen=True)
class Peer:
    """One network: millions of parameters and of FLOPs at `size` pixels, ImageNet-1K top-1 in percent.

    `top1` is without a teacher, `distilled` with one; None where the table has none.
    """

    name: str
    model: str | None
    parameters: float
    flops: float
    size: int
    top1: float | None
    distilled: float | None = None


# Table 7, but for the EMOs; then the larger ones of table 19.
_OTHERS = (
    Peer("MNetv1-0.50", None, 1.3, 149, 224, 63.7),
    Peer("MNetv3-L-0.50", None, 2.6, 69, 224, 68.8),
    Peer("MViTv1-XXS", "mobilevit_xxs", 1.3, 364, 256, 69.0),
    Peer("MViTv2-0.5", "mobilevitv2_050", 1.4, 466, 256, 70.2),
    Peer("EdgeNeXt-XXS", "edgenext_xx_small", 1.3, 261, 256, 71.2),
    Peer("EATFormer-Mobile", None, 1.8, 360, 224, 69.4),
    Peer("MNetv2-1.40", "mobilenetv2_140", 6.9, 585, 224, 74.7),
    Peer("MNetv3-L-0.75", "mobilenetv3_large_075", 4.0, 155, 224, 73.3),
    Peer("FasterNet-T0", "fasternet_t0", 3.9, 340, 224, 71.9),
    Peer("GhostNetV3-0.5x", "ghostnetv3_050", 2.7, 48, 224, None, 69.4),
    Peer("MNetv4-Conv-S", "mobilenetv4_conv_small", 3.8, 200, 224, None, 73.8),
    Peer("MoCoViT-1.0", None, 5.3, 147, 224, 74.5),
    Peer("PVTv2-B0", "pvt_v2_b0", 3.7, 572, 224, 70.5),
    Peer("MViTv1-XS", "mobilevit_xs", 2.3, 986, 256, 74.8),
    Peer("MFormer-96M", None, 4.6, 96, 224, 72.8),
    Peer("EdgeNeXt-XS", "edgenext_x_small", 2.3, 538, 256, 75.0),
    Peer("EdgeViT-XXS", None, 4.1, 557, 256, 74.4),
    Peer("tiny-MOAT-0", None, 3.4, 800, 224, 75.5),
    Peer("EfficientViT-M1", "efficientvit_m1", 3.0, 167, 224, 68.4),
    Peer("EfficientFormerV2-S0", "efficientformerv2_s0", 3.5, 400, 224, None, 75.7),
    Peer("EATFormer-Lite", None, 3.5, 910, 224, 75.4),
    Peer("MNetv3-L-1.25", None, 7.5, 356, 224, 76.6),
    Peer("EfficientNet-B0", "efficientnet_b0", 5.3, 399, 224, 77.1),
    Peer("FasterNet-T2", "fasternet_t2", 15.0, 1910, 224, 78.9),
    Peer("RepViT-M1.0", "repvit_m1_0", 6.8, 1100, 224, 78.6, 80.0),
    Peer("GhostNetV3-1.3x", "ghostnetv3_130", 8.9, 269, 224, None, 79.1),
    # printed with 224 px; but only 256 px, which timm gives it too, come near that many FLOPs
    Peer("MNetv4-Conv-M", "mobilenetv4_conv_medium", 9.2, 1000, 256, None, 79.9),
    Peer("DeiT-Ti", "deit_tiny_patch16_224", 5.7, 1258, 224, 72.2),
    Peer("XCiT-T12", "xcit_tiny_12_p16_224", 6.7, 1254, 224, 77.1),
    Peer("LightViT-T", None, 9.4, 700, 224, 78.7),
    Peer("MViTv1-S", "mobilevit_s", 5.6, 2009, 256, 78.4),
    Peer("MViTv2-1.0", "mobilevitv2_100", 4.9, 1851, 256, 78.1),
    Peer("EdgeNeXt-S", "edgenext_small", 5.6, 965, 224, 78.8),
    Peer("PoolFormer-S12", "poolformer_s12", 11.9, 1823, 224, 77.2),
    Peer("MFormer-294M", None, 11.4, 294, 224, 77.9),
    Peer("MPViT-T", None, 5.8, 1654, 224, 78.2),
    Peer("EdgeViT-XS", None, 6.7, 1136, 256, 77.5),
    Peer("tiny-MOAT-1", None, 5.1, 1200, 224, 78.3),
    Peer("EfficientViT-M5", "efficientvit_m5", 12.4, 522, 224, 77.1),
    Peer("Vim-Ti", None, 7.0, 1500, 224, 76.1),
    Peer("EfficientVMamba-T", None, 6.0, 800, 224, 76.5),
    Peer("EfficientVMamba-S", None, 11.0, 1300, 224, 78.7),
    Peer("VRWKV-T", None, 6.2, 1200, 224, 75.1),
    Peer("MSVMamba-S", None, 7.0, 900, 224, 77.3),
    Peer("MambaOut-Femto", "mambaout_femto", 7.0, 1200, 224, 78.9),
    Peer("ResNet-50", "resnet50", 25.5, 4100, 224, 80.4),
    Peer("ConvNeXt-T", "convnext_tiny", 28.5, 4500, 224, 82.1),
    Peer("PVTv2-B2", "pvt_v2_b2", 25.3, 4000, 224, 82.0),
    Peer("Swin-T", "swin_tiny_patch4_window7_224", 28.2, 4500, 224, 81.3),
    Peer("PoolFormer-S36", "poolformer_s36", 30.8, 5000, 224, 81.4),
    Peer("ViTAEv2-S", None, 19.3, 5700, 224, 82.6),
    Peer("EATFormer-Small", None, 24.3, 4300, 224, 83.1),
    Peer("EMOv1-20M", None, 20.5, 3800, 224, 82.0),
    Peer("ResNet-152", "resnet152", 60.1, 11500, 224, 82.0),
    Peer("Swin-B", "swin_base_patch4_window7_224", 87.7, 15500, 224, 83.5),
    Peer("PoolFormer-M48", "poolformer_m48", 73.4, 11600, 224, 82.5),
    Peer("ViTAEv2-48M", None, 48.6, 13400, 224, 83.8),
    Peer("EATFormer-Base", None, 49.0, 8900, 224, 83.9),
)

# Tables 7 and 17 (e).
_EMO_DISTILLED = {"emov2_1m": 73.5, "emov2_2m": 76.7, "emov2_5m": 80.8}


def _emos() -> Iterator[Peer]:
    """Of the EMOs, `variants` holds the published figures."""
    for name, row in VARIANTS.items():
        teacher = _EMO_DISTILLED.get(name)
        yield Peer(name, name, row.parameters / 1e6, row.flops, 224, round(row.top1, 1), teacher)


PEERS: tuple[Peer, ...] = (*_OTHERS, *_emos())


def find_peer(architecture: str) -> Peer | None:
    return next((peer for peer in PEERS if peer.model == architecture), None)


def find_series(architecture: str) -> str | None:
    """The series of table 1 that a network belongs to."""
    return next((series for start, series in PREFIXES.items() if architecture.startswith(start)), None)
