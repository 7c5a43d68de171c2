"""Pictures and their boxes, changed at random for training, and put together to batches.

Photometric distortion, expansion, a random crop, resizing, a flip, normalisation, in this order. Source: SSD
(arXiv 1512.02325), sections 2.2 and 3.6. The EMO papers train SSDLite so, and RetinaNet and Mask R-CNN with
the flip alone.

Expansion, crop and resizing are decided first, from the boxes alone; then what is seen of the picture is
resampled once, and distorted when it is small, in a fifth of the time that one step after another takes. All
chance comes from torch's global generator.

Shapes: n boxes (x1, y1, x2, y2) in pixels, H W height and width, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from metamobile.data.preprocess import IMAGENET_MEAN, INTERPOLATIONS, shape_inside
from metamobile.models.detection import Target

if TYPE_CHECKING:
    from metamobile.training.recipe import Recipe

EXPANSION = 4.0  # largest, of both sides
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # least IoU of a crop and some box; 1 leaves the picture whole
TRIALS = 40  # crops for each of these
CROP_SIDES = (0.3, 1.0)  # shares of the picture's sides
CROP_SHAPES = (0.5, 2.0)  # width by height
LEAST_SIDE = 1.0  # pixels; smaller boxes are left out
STRIDE = 32  # of batches whose pictures differ in size

Window = tuple[int, int, int, int]  # left, top, right, bottom


class Item(NamedTuple):
    """A picture (RGB) and its truth: boxes (n, 4), labels (n,) from 0, masks bool (n, H, W) or None."""

    picture: Image.Image
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None


class Augment:
    """A picture and its boxes -> pixels float32 (3, H, W), normalised, and the target of `models.detection`.

    `recipe.data` gives shape, fit, interpolation, mean and std; `recipe.augment` hflip and expand
    (probabilities), iou_crop and photometric (on or off). With `masks` targets have masks too. Dropped are
    boxes cut to less than a pixel and, where masks are known, objects of which nothing is left to see; where
    that would be all of them, the picture is neither expanded nor cropped. Boxes of crowds are not to be
    given: they are nothing to learn.

    Errors: ValueError for the fit "crop".
    """

    def __init__(self, recipe: Recipe, masks: bool = False) -> None:
        data, augment = recipe.data, recipe.augment
        if data.fit == "crop":
            raise ValueError("data.fit is crop, which cuts boxes off; expected stretch or inside")
        self.shape, self.fit, self.interpolation = data.shape, data.fit, data.interpolation
        self.mean, self.std = ([255 * value for value in values] for values in (data.mean, data.std))
        self.hflip, self.expand, self.iou_crop = augment.hflip, augment.expand, augment.iou_crop
        # its contrast turns about the picture's mean, where SSD's and MMDetection's multiplies
        self.photometric = v2.RandomPhotometricDistort() if augment.photometric else None
        self.masks = masks

    def __call__(
        self, picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray | None = None
    ) -> tuple[Tensor, Target]:
        """Errors: ValueError where masks are to be learned and none are given."""
        if self.masks and masks is None:
            raise ValueError(
                "a picture has boxes and no masks; give masks, or make Augment(..., masks=False)"
            )
        item = _clean(Item(picture, boxes, labels, masks if self.masks else None))
        window, kept = self._window(item)
        shape = _fitted((window[2] - window[0], window[3] - window[1]), self.shape, self.fit)
        placement = _place(picture.size, window, shape)
        truth = placement.truth(_take(item, kept), shape)
        if len(item.boxes) and not len(truth.boxes):
            shape = _fitted(picture.size, self.shape, self.fit)
            placement = _place(picture.size, (0, 0, *picture.size), shape)
            truth = placement.truth(item, shape)
        pixels = self._pixels(placement.resample(picture, self.interpolation))
        # zero is the mean, once normalised: the ground that a picture is expanded with
        left, top, right, bottom = placement.target
        pixels = pad(pixels, (left, shape[1] - right, top, shape[0] - bottom))
        return _flip(pixels, _target(truth)) if torch.rand(()) < self.hflip else (pixels, _target(truth))

    def _window(self, item: Item) -> tuple[Window, np.ndarray]:
        """What to see of the picture, reaching beyond it where it is expanded, and which boxes stay (n,)."""
        width, height = item.picture.size
        left, top = 0, 0
        if torch.rand(()) < self.expand:
            ratio, x, y = torch.rand(3).tolist()
            ratio = 1 + ratio * (EXPANSION - 1)
            larger = int(width * ratio), int(height * ratio)
            left, top = -int((larger[0] - width) * x), -int((larger[1] - height) * y)
            width, height = larger
        kept = np.ones(len(item.boxes), bool)
        if self.iou_crop and len(kept):
            found = iou_crop(item.boxes - np.array([left, top, left, top]), width, height)
            if found is not None:
                crop, kept = found
                return (left + crop[0], top + crop[1], left + crop[2], top + crop[3]), kept
        return (left, top, left + width, top + height), kept

    def _pixels(self, part: Image.Image) -> Tensor:
        pixels = F.pil_to_tensor(part).contiguous()
        if self.photometric is not None:
            pixels = self.photometric(pixels)
        return F.normalize(pixels.float(), self.mean, self.std, inplace=True)


def _fitted(size: tuple[int, int], shape: tuple[int, int], fit: str) -> tuple[int, int]:
    """(height, width) of what is made of a picture of `size` (width, height)."""
    return shape_inside(*size, shape) if fit == "inside" else shape


def iou_crop(boxes: np.ndarray, width: int, height: int) -> tuple[Window, np.ndarray] | None:
    """A random crop of a picture with boxes (n, 4), and which of them (n,) have their centre in it: one at
    least, and one with a least IoU with the crop. None: the picture stays whole.

    The rule of torchvision's RandomIoUCrop, which makes its trials one after another: 20 ms, against 1.
    """
    x1, y1, x2, y2 = boxes.T
    centre_x, centre_y, areas = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * (y2 - y1)
    low, high = CROP_SIDES
    while True:
        overlap = OVERLAPS[int(torch.randint(len(OVERLAPS), ()))]
        if overlap >= 1:
            return None
        shares = torch.rand(4, TRIALS, 1).double().numpy()  # (trials, 1) each, against boxes (n,)
        w, h = (np.floor(s * (low + (high - low) * r)) for s, r in zip((width, height), shares, strict=False))
        left, top = np.floor((width - w) * shares[2]), np.floor((height - h) * shares[3])
        right, bottom = left + w, top + h
        inside = (left < centre_x) & (centre_x < right) & (top < centre_y) & (centre_y < bottom)
        shared_w = np.minimum(x2, right) - np.maximum(x1, left)
        shared_h = np.minimum(y2, bottom) - np.maximum(y1, top)
        shared = shared_w.clip(0) * shared_h.clip(0)
        iou = shared / (areas + w * h - shared)
        form = (w >= CROP_SHAPES[0] * h) & (w <= CROP_SHAPES[1] * h)
        good = ((inside & (iou >= overlap)).any(1) & form[:, 0]).nonzero()[0]
        if len(good):
            first = good[0]
            x, y, to_x, to_y = (int(side[first, 0]) for side in (left, top, right, bottom))
            return (x, y, to_x, to_y), inside[first]


class _Placement(NamedTuple):
    """The part `source` of a picture goes to the rectangle `target` of a canvas."""

    source: tuple[float, float, float, float]
    target: Window

    def resample(self, picture: Image.Image, interpolation: str) -> Image.Image:
        left, top, right, bottom = self.target
        return picture.resize((right - left, bottom - top), INTERPOLATIONS[interpolation], box=self.source)

    def truth(self, item: Item, shape: tuple[int, int]) -> Item:
        """The item's boxes and masks on a canvas of `shape`, without those that are gone."""
        x1, y1, x2, y2 = self.source
        left, top, right, bottom = self.target
        scale = (right - left) / (x2 - x1), (bottom - top) / (y2 - y1)
        boxes = (item.boxes - (x1, y1, x1, y1)) * (scale * 2) + (left, top, left, top)
        boxes = boxes.clip((left, top, left, top), (right, bottom, right, bottom))
        moved = _take(item._replace(boxes=boxes), np.all(boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE, axis=1))
        if moved.masks is None:
            return moved
        masks = np.zeros((len(moved.boxes), *shape), bool)
        for mask, source in zip(masks, moved.masks, strict=True):
            mask[top:bottom, left:right] = self.resample(Image.fromarray(source.astype(np.uint8)), "nearest")
        return _take(moved._replace(masks=masks), np.any(masks, axis=(1, 2)))


def _place(size: tuple[int, int], window: Window, shape: tuple[int, int]) -> _Placement:
    """How a picture of `size` (width, height) comes on a canvas (height, width) that shows `window`."""
    source, target = [], []
    for axis in (0, 1):
        low, high = window[axis], window[axis + 2]
        seen = max(low, 0), min(high, size[axis])
        side = shape[1 - axis]
        start, end = (round((at - low) / (high - low) * side) for at in seen)
        start = min(start, side - 1)
        source.append(seen)
        target.append((start, max(end, start + 1)))  # at least a pixel
    (x1, x2), (y1, y2) = source
    (left, right), (top, bottom) = target
    return _Placement((x1, y1, x2, y2), (left, top, right, bottom))


def _take(item: Item, kept: np.ndarray) -> Item:
    masks = None if item.masks is None else item.masks[kept]
    return Item(item.picture, item.boxes[kept], item.labels[kept], masks)


def _clean(item: Item) -> Item:
    """Boxes within the picture, without those that have no area there."""
    boxes = np.asarray(item.boxes, np.float64).reshape(-1, 4).clip(0, item.picture.size * 2)
    return _take(item._replace(boxes=boxes), np.all(boxes[:, 2:] > boxes[:, :2], axis=1))


def _target(item: Item) -> Target:
    target: Target = {
        "boxes": torch.from_numpy(item.boxes).float(),
        "labels": torch.from_numpy(np.asarray(item.labels, np.int64)),
    }
    if item.masks is not None:
        target["masks"] = torch.from_numpy(item.masks)
    return target


def _flip(pixels: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Left and right exchanged."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    width = pixels.shape[-1]
    flipped: Target = {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    return pixels.flip(-1), flipped


def mosaic(items: Sequence[tuple], size: tuple[int, int], mean: Sequence[float] = IMAGENET_MEAN) -> Item:
    """Four items (picture, boxes, labels, masks or None) -> one of `size` (height, width), for `Augment`.

    They meet at a random point of the canvas's middle half; each has its own form and half the canvas's size.
    What reaches beyond is cut off, the rest filled with `mean`. With twice the network's size as `size`, a
    picture keeps the size it has without mosaic. Masks are kept if all four have them. Source: YOLOv4
    (arXiv 2004.10934), section 3.3; layout as in MMDetection. Errors: ValueError for other than four items.
    """
    if len(items) != 4:
        raise ValueError(f"a mosaic is made of four pictures; {len(items)} are given")
    height, width = size
    x, y = (
        int(side * (0.25 + share / 2))
        for side, share in zip((width, height), torch.rand(2).tolist(), strict=True)
    )
    canvas = Image.new("RGB", (width, height), tuple(round(255 * value) for value in mean))
    parts = []
    for index, given in enumerate(items):
        item = _clean(Item(*given))
        size_x, size_y = item.picture.size
        scale = min(width / 2 / size_x, height / 2 / size_y)
        w, h = max(1, round(size_x * scale)), max(1, round(size_y * scale))
        left, top = (x if index % 2 else x - w), (y if index // 2 else y - h)
        x1, y1, x2, y2 = target = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
        per_x, per_y = size_x / w, size_y / h
        source = (
            (x1 - left) * per_x,
            (y1 - top) * per_y,
            min((x2 - left) * per_x, size_x),
            min((y2 - top) * per_y, size_y),
        )
        placement = _Placement(source, target)
        canvas.paste(placement.resample(item.picture, "bilinear"), target[:2])
        parts.append(placement.truth(item, size))
    boxes, labels = (np.concatenate([part[index] for part in parts]) for index in (1, 2))
    masks = [part.masks for part in parts if part.masks is not None]
    return Item(canvas, boxes, labels, np.concatenate(masks) if len(masks) == len(parts) else None)


def collate(items: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Items of `Augment` -> pixels (B, 3, H, W) and the targets.

    Pictures of different sizes are padded with zeros, right and below, to the largest sides of the batch,
    rounded up to a multiple of 32; masks likewise.
    """
    shapes = {tuple(pixels.shape[1:]) for pixels, _ in items}
    if len(shapes) == 1:
        return torch.stack([pixels for pixels, _ in items]), [target for _, target in items]
    height, width = (-(-max(sides) // STRIDE) * STRIDE for sides in zip(*shapes, strict=True))

    def padded(maps: Tensor) -> Tensor:
        return pad(maps, (0, width - maps.shape[2], 0, height - maps.shape[1]))

    targets: list[Target] = [
        {**target, "masks": padded(target["masks"])} if "masks" in target else target for _, target in items
    ]
    return torch.stack([padded(pixels) for pixels, _ in items]), targets
