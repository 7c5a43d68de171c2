"""The authors' ImageNet weights, one row each: where they lie, and what is said of them. Without torch.

`blob` is git's own name for the file's content (SHA-1 of "blob <size>\\0" and the bytes), so that a download
can be held against what the authors' repository holds, whichever way it came.

Sources of `top1`. EMO: README of the official release (test of these files). EMOv2 at 224 px: best epoch in
the official training logs, of the weights as trained or of their average; which a file holds is not told.
"""

from __future__ import annotations

from dataclasses import dataclass

from metamobile.data.preprocess import Preprocess

_EMO = "https://raw.githubusercontent.com/zhangzjn/EMO/HEAD/resources"
_EMOV2 = "https://raw.githubusercontent.com/zhangzjn/data/HEAD/emov2_pretrained_weights"
_README = "README of the official EMO release"
_LOG = "best epoch of the official EMOv2 training log"


@dataclass(frozen=True)
class Published:
    """One file of the authors'.

    `top1` in percent on ImageNet-1K at `size` pixels; `top1_or` the other figure where two are published and
    the file does not tell which is its own.
    """

    variant: str
    url: str
    blob: str
    top1: float
    source: str
    top1_or: float | None = None
    size: int = 224
    window_size: int = 7

    @property
    def preprocess(self) -> Preprocess:
        """Bicubic to size / 0.875 (256 for 224), then the centre; the 0.875 is assumed for 512."""
        return Preprocess(size=(self.size, self.size), resize=round(self.size / 0.875))

    @property
    def top1_text(self) -> str:
        return f"{self.top1:.1f}" + (f" or {self.top1_or:.1f}" if self.top1_or else "")


# By name; where a network has several, the first is meant by the network's own name.
PUBLISHED: dict[str, Published] = {
    "emo_1m.in1k": Published(
        "emo_1m", f"{_EMO}/EMO_1M/net.pth", "76c4282de548fa76eca6011720b29d8f80ffa784", 71.498, _README
    ),
    "emo_2m.in1k": Published(
        "emo_2m", f"{_EMO}/EMO_2M/net.pth", "9ec7138d292ca9b2d07923aec05762f547db8cf2", 75.134, _README
    ),
    "emo_5m.in1k": Published(
        "emo_5m", f"{_EMO}/EMO_5M/net.pth", "3ea7450fa9c290c3c46f372c1f5cebe1198d1ce1", 78.422, _README
    ),
    "emo_6m.in1k": Published(
        "emo_6m", f"{_EMO}/EMO_6M/net.pth", "10a248725247cf18b51e449dbd1a220354457c99", 78.988, _README
    ),
    "emov2_1m.in1k": Published(
        "emov2_1m", f"{_EMOV2}/EMOv2_1M_224.pth", "4cbb1c0541597da1442bb5bd7f155fa9d00cd486", 72.326, _LOG
    ),
    "emov2_1m.in1k_kd": Published(
        "emov2_1m", f"{_EMOV2}/EMOv2_1M_224_KD.pth", "d3d292c37d874de97ed8828c61114b5365325d25", 73.486, _LOG
    ),
    "emov2_2m.in1k": Published(
        "emov2_2m", f"{_EMOV2}/EMOv2_2M_224.pth", "009fd7338ac833177c5ae2014061d56203c423ea", 75.766, _LOG
    ),
    "emov2_2m.in1k_kd": Published(
        "emov2_2m", f"{_EMOV2}/EMOv2_2M_224_KD.pth", "bcc37347a7082df62a5c5f025a3f322fc273b46d", 76.678, _LOG
    ),
    "emov2_5m.in1k": Published(
        "emov2_5m", f"{_EMOV2}/EMOv2_5M_224.pth", "174a94f26e6bd2456f396cca427702c3a70b412b", 79.448, _LOG
    ),
    "emov2_5m.in1k_kd": Published(
        "emov2_5m",
        f"{_EMOV2}/EMOv2_5M_224_KD.pth",
        "9332927c3751291dc574a151a10074bce706bb1f",
        80.854,
        f"{_LOG}; README of the release: 80.9, EMOv2 table 17: 80.8",
    ),
    "emov2_5m_512.in1k_kd": Published(
        "emov2_5m",
        f"{_EMOV2}/EMOv2_5M_512_KD.pth",
        "e1235b440edd1517bacd30fc6ff0c476098b2847",
        82.4,
        "EMOv2 table 17: 82.4 with distillation, 82.9 with distillation and longer training; "
        "which of them this file is, is not told",
        top1_or=82.9,
        size=512,
        window_size=8,
    ),
}


def published_name(name: str) -> str | None:
    """The full name in `PUBLISHED` that `name` means ("emo_5m": "emo_5m.in1k"), or None."""
    if name in PUBLISHED:
        return name
    return next((full for full in PUBLISHED if full.split(".")[0] == name), None)
