"""What the papers print, row by row, where no other module of this package holds it. Without torch.

`peers.PEERS` holds the ImageNet rows, `heads.PRINTED` the parameters and FLOPs of our detectors and
segmenters, `grids.GRIDS` the ablations. All figures are as printed; "-" is not printed, or not at hand.
Source: EMOv2 (arXiv 2412.06674), whose tables carry EMO's rows too; READMEs and logs of the releases.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeerRow:
    """A network of others with a head: parameters in M, FLOPs in G, figures as printed, as `COLUMNS`."""

    name: str
    parameters: str
    flops: str
    figures: tuple[str, ...]


# Tables 7 and 19, README of EMO for emo_6m: millions of parameters and of FLOPs, top-1 in %, and with a
# teacher (5M: table 17 e; the release's README has 80.9).
EMOS = {
    "emo_1m": ("1.3", "261", "71.5", "-"),
    "emo_2m": ("2.3", "439", "75.1", "-"),
    "emo_5m": ("5.1", "903", "78.4", "-"),
    "emo_6m": ("6.1", "961", "79.0", "-"),
    "emov2_1m": ("1.4", "285", "72.3", "73.5"),
    "emov2_2m": ("2.3", "487", "75.8", "76.7"),
    "emov2_5m": ("5.1", "1,035", "79.4", "80.8"),
    "emov2_20m": ("20.1", "4,000", "83.3", "-"),
    "emov2_50m": ("49.8", "8,800", "84.1", "-"),
}

# Table 3: millions of parameters, billions of FLOPs, top-1 in %.
TRANSPLANTED = {
    "deit_tiny": ("5.7", "1.3", "72.2"),
    "deit_tiny_irmb": ("4.9", "1.1", "74.3"),
    "deit_tiny_i2rmb": ("5.0", "1.3", "75.0"),
    "pvt_tiny": ("13.2", "1.9", "75.1"),
    "pvt_tiny_irmb": ("11.7", "1.8", "75.4"),
    "pvt_tiny_i2rmb": ("11.9", "1.9", "76.1"),
}

# Table 6: top-1 in % of the 5M networks trained by the recipe of ...
OTHER_RECIPES = {
    "MobileNetv3": ("NaN", "NaN"),
    "DeiT": ("78.1", "78.8"),
    "EdgeNeXt": ("78.3", "79.1"),
    "Vim": ("77.9", "78.5"),
    "EMO": ("78.4", "79.4"),
}

# Table 17 (c): batch size, top-1 in % of EMOv2-5M.
BATCHES = {256: "78.9", 512: "79.2", 1024: "79.4", 2048: "79.4", 4096: "79.4"}

# Table 17 (e): EMOv2-5M at px, with a teacher, with longer training; G FLOPs, top-1 in %; our recipe for it.
STRONGER = (
    (224, "-", "-", "1.0", "79.4", "imagenet-emov2"),
    (256, "-", "-", "1.4", "79.9", "imagenet-emov2-256"),
    (224, "yes", "-", "1.0", "80.8", "imagenet-emov2-kd"),
    (224, "-", "yes", "1.0", "80.4", None),
    (512, "-", "-", "5.6", "81.5", "imagenet-emov2-512"),
    (512, "yes", "-", "5.6", "82.4", "imagenet-emov2-512-kd"),
    (512, "yes", "yes", "5.6", "82.9", None),
)

# Table 16: timm's or our name; pictures a second on a CPU and a GPU, ms on an iPhone 15, top-1 in %.
SPEED = (
    ("EdgeNeXt-XXS", "edgenext_xx_small", "73.1", "2860.6", "10.2", "71.2"),
    ("EMO-1M", "emo_1m", "158.4", "3414.6", "3.0", "71.5"),
    ("EMOv2-1M", "emov2_1m", "147.1", "3182.2", "3.6", "72.3"),
    ("EdgeNeXt-XS", "edgenext_x_small", "69.1", "1855.2", "17.6", "75.0"),
    ("EMO-2M", "emo_2m", "126.6", "2509.8", "3.7", "75.1"),
    ("EMOv2-2M", "emov2_2m", "118.2", "3312.4", "4.3", "75.8"),
    ("EdgeNeXt-S", "edgenext_small", "54.2", "1622.5", "22.5", "78.8"),
    ("EMO-5M", "emo_5m", "106.5", "1731.7", "4.9", "78.4"),
    ("EMOv2-5M", "emov2_5m", "93.9", "1607.8", "5.9", "79.4"),
)

# What the papers measure of each head, and the key of ours in `metamobile eval`'s figures.
BOX = ("box AP", "AP50", "AP75", "small", "medium", "large")
BOX_MASK = ("box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75")
MASK = ("mIoU",)
COLUMNS = {
    "ssdlite": BOX,
    "retinanet": BOX,
    "mask_rcnn": BOX_MASK,
    "deeplabv3": MASK,
    "fpn": MASK,
    "segformer": MASK,
    "pspnet": MASK,
}

Figures = dict[str, tuple[str, ...]]


def _split(**rows: str) -> Figures:
    return {name: tuple(text.split()) for name, text in rows.items()}


# By head, and of SSDLite by size too. SSDLite, RetinaNet: README. Mask R-CNN's masks of EMOv2: logs.
SSDLITE_320 = _split(
    emo_1m="22.0 37.3 22.0 2.1 20.6 43.2",
    emo_2m="25.2 42.0 25.3 3.3 25.9 47.6",
    emo_5m="27.9 45.2 28.1 5.2 30.2 50.6",
    emov2_1m="22.3 37.5 22.4 2.0 21.3 43.4",
    emov2_2m="26.0 43.0 26.5 3.6 26.6 50.2",
    emov2_5m="29.6 47.6 30.1 5.5 32.2 54.8",
    emov2_20m="33.1 51.9 33.9 8.9 36.8 57.3",
)
SSDLITE_512 = _split(
    emov2_1m="26.6 44.4 27.5 7.3 31.4 43.0",
    emov2_2m="30.7 49.8 31.7 9.9 37.1 47.3",
    emov2_5m="34.8 54.7 36.4 13.7 42.0 52.0",
    emov2_20m="38.3 58.4 40.7 17.9 45.2 54.6",
)
ACCURACY: dict[str, Figures] = {
    "retinanet": _split(
        emo_1m="34.4 54.2 36.2 20.2 37.1 46.0",
        emo_2m="36.2 56.6 38.1 21.7 38.8 48.1",
        emo_5m="38.9 59.8 41.0 23.8 42.2 51.7",
        emov2_1m="36.9 57.1 39.0 22.1 39.8 49.5",
        emov2_2m="39.3 60.0 41.4 23.9 43.1 51.6",
        emov2_5m="41.5 62.7 44.1 25.7 45.5 55.5",
        emov2_20m="43.8 65.0 47.1 28.0 47.4 59.0",
    ),
    "mask_rcnn": _split(
        emo_5m="39.3 61.7 42.4 36.4 58.4 38.7",
        emov2_1m="37.1 59.2 39.6 35.0 56.4 37.0",
        emov2_2m="39.5 61.8 42.4 36.9 58.9 39.4",
        emov2_5m="42.3 64.3 46.3 39.0 61.4 42.1",
        emov2_20m="44.2 66.2 48.7 40.6 63.6 43.4",
    ),
    "deeplabv3": _split(
        emo_1m="33.5",
        emo_2m="35.3",
        emo_5m="37.8",
        emov2_1m="34.6",
        emov2_2m="36.8",
        emov2_5m="39.8",
        emov2_20m="43.3",
    ),
    "pspnet": _split(
        emo_1m="33.2",
        emo_2m="34.5",
        emo_5m="38.2",
        emov2_1m="33.6",
        emov2_2m="35.7",
        emov2_5m="39.1",
        emov2_20m="43.4",
    ),
    "fpn": _split(
        emo_1m="34.2",
        emo_2m="37.3",
        emo_5m="40.4",
        emov2_1m="37.1",
        emov2_2m="39.9",
        emov2_5m="42.3",
        emov2_20m="46.8",
    ),
    "segformer": _split(emov2_1m="37.0", emov2_2m="40.2", emov2_5m="43.0", emov2_20m="47.3"),
}


def accuracy(head: str, name: str, side: int | None) -> tuple[str, ...]:
    """The printed figures of one of our networks; `side` tells SSDLite's two sizes apart."""
    figures = (SSDLITE_512 if side == 512 else SSDLITE_320) if head == "ssdlite" else ACCURACY[head]
    return figures[name]


def _peers(count: int, *rows: tuple[str, str, str, str]) -> list[PeerRow]:
    """Figures that are not printed become "-"."""
    return [
        PeerRow(name, parameters, flops, tuple((text.split() + ["-"] * count)[:count]))
        for name, parameters, flops, text in rows
    ]


# Tables 8 to 11, without the EMOs.
PEER_ROWS: dict[str, list[PeerRow]] = {
    "ssdlite": _peers(
        6,
        ("MNetv1", "5.1", "1.3", "22.2"),
        ("MNetv2", "4.3", "0.8", "22.1"),
        ("MNetv3", "5.0", "0.6", "22.0"),
        ("MViTv1-XXS", "1.7", "0.9", "19.9"),
        ("MViTv2-0.5", "2.0", "0.9", "21.2"),
        ("MViTv2-0.75", "3.6", "1.8", "24.6"),
        ("ResNet50", "26.6", "8.8", "25.2"),
        ("MViTv1-S", "5.7", "3.4", "27.7"),
        ("MViTv2-1.25", "8.2", "4.7", "27.8"),
        ("EdgeNeXt-S", "6.2", "2.1", "27.9"),
    ),
    "retinanet": _peers(
        6,
        ("ResNet-50", "37.7", "-", "36.3 55.3 38.6 19.3 40.0 48.8"),
        ("PVTv1-Tiny", "23.0", "-", "36.7 56.9 38.9 22.6 38.8 50.0"),
        ("PVTv2-B0", "13.0", "-", "37.2 57.2 39.5 23.1 40.4 49.7"),
        ("EdgeViT-XXS", "13.1", "-", "38.7 59.0 41.0 22.4 42.0 51.6"),
    ),
    "mask_rcnn": _peers(
        6,
        ("PVT-Tiny", "33.0", "-", "36.7 59.2 39.3 35.1 56.7 37.3"),
        ("PVTv2-B0", "23.0", "-", "38.2 60.5 40.7 36.2 57.8 38.6"),
        ("PoolFormer-S12", "31.0", "-", "37.3 59.0 40.1 34.6 55.8 36.9"),
        ("MPViT-T", "28.0", "-", "42.2 64.2 45.8 39.0 61.4 41.8"),
        ("EATFormer-Tiny", "25.9", "-", "42.3 64.7 46.2 39.0 61.5 42.0"),
    ),
    "deeplabv3": _peers(
        1,
        ("MViTv2-0.5", "6.3", "26.1", "31.9"),
        ("MViTv3-0.5", "6.3", "-", "33.5"),
        ("MNetv2", "18.7", "75.4", "34.1"),
        ("MViTv2-0.75", "9.6", "40.0", "34.7"),
        ("MViTv3-0.75", "9.7", "-", "36.4"),
        ("MViTv2-1.0", "13.4", "56.4", "37.0"),
        ("MViTv3-1.0", "13.6", "-", "39.1"),
    ),
    "pspnet": _peers(
        1,
        ("MNetv2", "13.7", "53.1", "29.7"),
        ("MViTv2-0.5", "3.6", "15.4", "31.8"),
        ("MViTv2-0.75", "6.2", "26.6", "35.2"),
        ("MViTv2-1.0", "9.4", "40.3", "36.5"),
    ),
    "fpn": _peers(
        1,
        ("ResNet-18", "15.5", "32.2", "32.9"),
        ("ResNet-50", "28.5", "45.6", "36.7"),
        ("PVTv1-Tiny", "17.0", "33.2", "35.7"),
        ("PVTv2-B0", "7.6", "25.0", "37.2"),
        ("ResNet-101", "47.5", "65.1", "38.8"),
        ("ResNeXt-101", "47.1", "64.7", "39.7"),
        ("PVTv1-Small", "28.2", "44.5", "39.8"),
        ("EdgeViT-XXS", "7.9", "24.4", "39.7"),
        ("EdgeViT-XS", "10.6", "27.7", "41.4"),
        ("PVTv2-B1", "17.8", "34.2", "42.5"),
    ),
    "segformer": _peers(1, ("MiT-B0", "3.8", "8.4", "37.4"), ("MiT-B1", "13.7", "15.9", "42.2")),
}
