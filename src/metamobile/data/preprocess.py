"""Preprocessing as data: one record, stored with weights and in exported files, executed by one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from metamobile.errors import nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_SHARE = 0.875  # of the shorter side, where a record does not say `resize`: 256 px for a crop of 224
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FITS = ("crop", "stretch", "inside")


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a network's input.

    `fit` "crop": `size` is (height, width) of the centre crop in pixels, `resize` the shorter side before it
    (None: size / 0.875). "stretch": the whole picture, resized to exactly `size`. "inside": the whole in its
    own form, as large as its shorter side stays within the smaller of `size` and its longer within the larger
    (see `shape_inside`). `mean` and `std` are of RGB values between 0 and 1.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fit: str = "crop"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation {self.interpolation!r} is unknown; known are {', '.join(INTERPOLATIONS)}"
                + nearest(self.interpolation, INTERPOLATIONS)
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size {self.size} is not a (height, width) of whole pixels")
        if self.fit not in FITS:
            raise ValueError(
                f"fit {self.fit!r} is unknown; known are {', '.join(FITS)}{nearest(self.fit, FITS)}"
            )
        if self.fit == "crop" and self.resize is not None and self.resize < max(self.size):
            raise ValueError(
                f"resize {self.resize} is below the crop {self.size}; use {max(self.size)} or more"
            )

    @property
    def shorter_side(self) -> int:
        """Shorter side of the picture, in pixels, before the crop."""
        return self.resize or round(max(self.size) / CROP_SHARE)

    def at_size(self, size: int | Sequence[int]) -> Preprocess:
        """For another side, or (height, width), in pixels; a crop takes the same share of the picture."""
        height, width = (size, size) if isinstance(size, int) else size
        resize = self.resize and round(self.resize * max(height, width) / max(self.size))
        return replace(self, size=(height, width), resize=resize)

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Preprocess:
        """Errors: ValueError for an unknown key, with the nearest one."""
        known = [f.name for f in fields(cls)]
        for key in record:
            if key not in known:
                raise ValueError(
                    f"preprocessing has no {key!r}; known are {', '.join(known)}{nearest(key, known)}"
                )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


def resize_shorter(picture: Image.Image, side: int, interpolation: str = "bicubic") -> Image.Image:
    """The picture with its shorter side at `side` pixels; the longer is rounded down, as torchvision does."""
    width, height = picture.size
    if min(width, height) == side:
        return picture
    shape = (side, int(side * height / width)) if width < height else (int(side * width / height), side)
    return picture.resize(shape, INTERPOLATIONS[interpolation])


def shape_inside(width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture that is scaled until its shorter side is the smaller of `size`, or its
    longer side the larger, whichever is first. Sides are rounded half up, as in MMCV's `rescale_size`."""
    scale = min(min(size) / min(width, height), max(size) / max(width, height))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def fit_picture(picture: Image.Image, record: Preprocess) -> Image.Image:
    """The picture as the network is to see it, resized and cropped as `record.fit` says."""
    if record.fit == "crop":
        picture = resize_shorter(picture, record.shorter_side, record.interpolation)
        height, width = record.size
        left = round((picture.width - width) / 2)
        top = round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))
    inside = record.fit == "inside"
    height, width = shape_inside(picture.width, picture.height, record.size) if inside else record.size
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), INTERPOLATIONS[record.interpolation])


def preprocess(picture: Image.Image, record: Preprocess) -> np.ndarray:
    """RGB picture -> float32 (3, H, W): resize and crop as `record.fit` says, scale to 0..1, normalise.

    H and W are `record.size`, but with the fit "inside" those of `shape_inside`, other for each form.
    """
    pixels = np.asarray(fit_picture(picture, record), np.float32) / 255
    normalised = (pixels - np.asarray(record.mean, np.float32)) / np.asarray(record.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))
