"""Augmented boxes and masks lie on their objects, found by colour; chance is torch's; batches are plain."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.models.detection import Target, check_targets
from metamobile.tasks.detect.augment import Augment, Item, collate, iou_crop, mosaic
from metamobile.training.recipe import Recipe

GROUND = (60, 40, 60)
CLASSES = 3  # objects of class k have all of channel k and nothing of the others
SHAPE = [80, 112]  # height, width
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "flip": {"hflip": 1.0},
    "expand": {"expand": 1.0},
    "crop": {"iou_crop": True},
    "all": {"hflip": 0.5, "expand": 0.5, "iou_crop": True},
}
every_change = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())


def recipe(changes: dict[str, Any], **data: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "task": "detect",
            "data": {"size": SHAPE, "fit": "stretch", "interpolation": "bilinear", **data},
            "augment": {"hflip": 0.0, **changes},
        }
    )


def painted(seed: int, objects: int = 3, size: tuple[int, int] = (120, 90)) -> Item:
    """A red, a green and a blue rectangle."""
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    boxes, masks = [], np.zeros((objects, height, width), bool)
    labels = rng.permutation(CLASSES)[:objects]
    for index, label in enumerate(labels):
        left, right = index * width // objects, (index + 1) * width // objects  # side by side
        x1, x2 = left + rng.integers(0, 8), right - rng.integers(0, 8)
        y1 = rng.integers(0, height - 20)
        y2 = rng.integers(y1 + 12, height + 1)
        pixels[y1:y2, x1:x2] = 255 * np.eye(CLASSES)[label]
        masks[index, y1:y2, x1:x2] = True
        boxes.append((x1, y1, x2, y2))
    return Item(Image.fromarray(pixels), np.array(boxes, np.float32).reshape(-1, 4), labels, masks)


def recoloured(item: Item, label: int) -> Item:
    """Of one object, as another class."""
    assert item.masks is not None
    pixels = np.array(item.picture)
    pixels[item.masks[0]] = 255 * np.eye(CLASSES)[label]
    return item._replace(picture=Image.fromarray(pixels), labels=np.array([label]))


def shown(pixels: Tensor, settings: Recipe) -> np.ndarray:
    """Normalised (3, H, W) -> colours (H, W, 3) from 0 to 1."""
    mean, std = settings.data.mean, settings.data.std
    return pixels.permute(1, 2, 0).numpy() * std + mean


def coloured(colours: np.ndarray, label: int) -> np.ndarray:
    """Where half of a pixel at least is the object's; ground and mean have less than half its colour."""
    return colours[..., label] > 0.74


def assert_bounds(box: np.ndarray, where: np.ndarray, within: float) -> None:
    """The box (4,) and the extent of `where` (H, W) differ by at most `within` pixels on each side."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(box - extent).max() <= within, f"box {box}, colour {extent}"


def augmented(
    changes: dict[str, Any], seed: int, item: Item, masks: bool = False, **data: Any
) -> tuple[np.ndarray, Target]:
    settings = recipe(changes, **data)
    torch.manual_seed(seed)
    pixels, target = Augment(settings, masks)(*item)
    check_targets([target], pixels[None], CLASSES, masks)
    assert pixels.shape == (3, *settings.data.shape) or settings.data.fit == "inside"
    return shown(pixels, settings), target


@every_change
def test_boxes_bound_their_colours(changes: dict[str, Any]) -> None:
    bounded = 0
    for seed in range(60):
        item = painted(seed)
        colours, target = augmented(changes, seed, item)
        boxes, labels = target["boxes"].numpy(), target["labels"].tolist()
        assert set(labels) <= set(item.labels.tolist()) and len(set(labels)) == len(labels) > 0
        if not changes.get("iou_crop"):
            assert sorted(labels) == sorted(item.labels.tolist()), "only crops lose objects"
        for box, label in zip(boxes, labels, strict=True):
            if (box[2:] - box[:2]).min() >= 4:  # smaller ones blend with what is around them
                assert_bounds(box, coloured(colours, label), 1.5)
                bounded += 1
    assert bounded >= 60


@every_change
def test_masks_are_their_colours(changes: dict[str, Any]) -> None:
    """Without blending, to the pixel."""
    for seed in range(40):
        item = painted(seed)
        assert item.masks is not None
        colours, target = augmented(changes, seed, item, True, interpolation="nearest")
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            where = coloured(colours, int(label))
            assert mask.any() and np.array_equal(mask.numpy(), where)
            assert_bounds(box.numpy(), where, 1)


def test_masks_do_not_change_the_rest() -> None:
    for seed in range(10):
        (pixels, target), (other, masked) = (
            augmented(CHANGES["all"], seed, painted(seed), masks) for masks in (False, True)
        )
        assert "masks" not in target and np.array_equal(pixels, other)
        assert torch.equal(target["boxes"], masked["boxes"])
        assert torch.equal(target["labels"], masked["labels"])


def test_photometric_distortion_moves_nothing_and_leaves_the_ground_alone() -> None:
    """A white object on black stays the lightest, whatever is done; a picture is expanded by the mean."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[10:50, 20:44] = 255
    item = Item(Image.fromarray(pixels), np.array([[20, 10, 44, 50]]), np.array([0]))
    changes = {**CHANGES["all"], "photometric": True}
    checked, looks = 0, set()
    for seed in range(60):
        colours, target = augmented(
            changes, seed, item, mean=[0.0] * 3, std=[1.0] * 3, interpolation="nearest"
        )
        box = target["boxes"][0].numpy()
        looks.add(round(float(colours.max()), 2))
        if (box[2:] - box[:2]).min() >= 4:
            assert_bounds(box, colours.min(2) > colours.max() - 0.22, 1.5)
            checked += 1
    assert checked > 50 and len(looks) > 5
    plain = Item(Image.new("RGB", (64, 64), (200, 90, 30)), np.array([[0, 0, 64, 64]]), np.array([0]))
    colours_seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        found, target = Augment(recipe({"expand": 1.0, "photometric": True}))(*plain)
        left, top, right, bottom = target["boxes"][0].int().tolist()
        assert (found[:, top:bottom, left:right] != 0).all()
        colours_seen.add(round(float(found[0, top, left]), 3))
        found[:, top:bottom, left:right] = 0
        assert (found == 0).all(), "outside the picture, exactly the mean"
    assert len(colours_seen) > 10


def test_nothing_random_is_evaluation() -> None:
    """Training without augmentation sees what `preprocess` makes of a picture."""
    item = painted(0)
    for fit, size in (("stretch", SHAPE), ("inside", [48, 100]), ("inside", [200, 333])):
        settings = recipe({}, size=size, fit=fit, interpolation="bicubic")
        pixels, target = Augment(settings)(*item)
        expected = preprocess(item.picture, Preprocess(tuple(size), interpolation="bicubic", fit=fit))
        assert np.allclose(pixels, expected, atol=1e-5)
        scale = np.array([pixels.shape[2] / 120, pixels.shape[1] / 90] * 2)
        assert np.allclose(target["boxes"], item.boxes * scale, atol=1e-4)


def test_inside_keeps_the_form_of_what_is_seen() -> None:
    for seed in range(20):
        settings = recipe(CHANGES["all"], size=[64, 96], fit="inside")
        torch.manual_seed(seed)
        pixels, target = Augment(settings)(*painted(seed))
        sides = sorted(pixels.shape[1:])
        assert sides[0] == 64 and sides[1] <= 96 or sides[0] <= 64 and sides[1] == 96
        for box, label in zip(target["boxes"].numpy(), target["labels"].tolist(), strict=True):
            if (box[2:] - box[:2]).min() >= 4:
                assert_bounds(box, coloured(shown(pixels, settings), label), 1.5)


def test_expansion_is_uniform_up_to_four_times() -> None:
    whole = Item(Image.new("RGB", (100, 100), "white"), np.array([[0, 0, 100, 100]]), np.array([0]))
    augment = Augment(recipe({"expand": 0.5}, size=256))
    torch.manual_seed(0)
    boxes = torch.cat([augment(*whole)[1]["boxes"] for _ in range(400)])
    sides = boxes[:, 2:] - boxes[:, :2]
    ratios = (256 / sides).mean(1).numpy()
    expanded = ratios[ratios > 1]
    assert 160 < len(expanded) < 240
    assert ks_2samp(expanded, np.random.default_rng(0).uniform(1, 4, 5000)).pvalue > 0.01
    at = (boxes[:, :2] / (256 - sides).clamp(min=1e-3))[
        ratios > 1.2
    ]  # 0 at left or top, 1 at right or bottom
    assert ks_2samp(at.flatten().numpy(), np.random.default_rng(1).uniform(0, 1, 5000)).pvalue > 0.01


def test_crops_of_expanded_pictures_are_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop around the first two boxes that keeps the first: it lies where it lay, the second has no box."""

    def around_two(boxes: np.ndarray, width: int, height: int) -> tuple[tuple, np.ndarray]:
        assert (boxes >= 0).all() and (boxes[:, 2:] <= (width, height)).all()
        low, high = boxes[:2, :2].min(0).astype(int), boxes[:2, 2:].max(0).astype(int)
        return (*low.tolist(), *high.tolist()), np.array([True, False, False])

    monkeypatch.setattr("metamobile.tasks.detect.augment.iou_crop", around_two)
    for seed in range(20):
        item = painted(seed)
        low, high = item.boxes[:2, :2].min(0), item.boxes[:2, 2:].max(0)
        scale = np.array(SHAPE[::-1]) / (high - low)
        colours, target = augmented({"expand": 1.0, "iou_crop": True}, seed, item, interpolation="nearest")
        assert target["labels"].tolist() == [item.labels[0]]
        expected = np.concatenate([(item.boxes[0, :2] - low) * scale, (item.boxes[0, 2:] - low) * scale])
        assert np.allclose(target["boxes"][0], expected, atol=1e-3)
        assert_bounds(expected, coloured(colours, int(item.labels[0])), 1)
        assert coloured(colours, int(item.labels[1])).any()


def test_crops_keep_the_rule() -> None:
    boxes = np.array([[5, 5, 40, 60], [30, 20, 95, 70], [70, 2, 78, 9]], float)
    whole = 0
    for _ in range(300):
        found = iou_crop(boxes, 100, 80)
        if found is None:
            whole += 1
            continue
        (left, top, right, bottom), kept = found
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
        assert 0.5 <= (right - left) / (bottom - top) <= 2
        assert right - left >= 30 and bottom - top >= 24
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        assert kept.any() and np.array_equal(kept, (left < x) & (x < right) & (top < y) & (y < bottom))
    assert 20 < whole < 150, "a seventh, and more for overlaps that no crop has"


def test_crops_are_distributed_as_torchvisions() -> None:
    boxes = torch.tensor([[10.0, 8, 90, 70], [60, 40, 95, 75]])
    tv = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(80, 100))  # type: ignore[call-overload]
    reference = v2.RandomIoUCrop()
    theirs = [reference.make_params([tv]) for _ in range(250)]
    ours = [iou_crop(boxes.double().numpy(), 100, 80) for _ in range(250)]
    crops = [
        [(p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]) for p in theirs if p],
        [found[0] for found in ours if found is not None],
    ]
    assert abs(len(crops[0]) - len(crops[1])) < 40
    a, b = (torch.tensor(one, dtype=torch.float32) for one in crops)
    for side in range(4):
        assert ks_2samp(a[:, side], b[:, side]).pvalue > 0.005
    assert ks_2samp(box_iou(a, boxes).amax(1), box_iou(b, boxes).amax(1)).pvalue > 0.005


def test_a_picture_with_boxes_is_left_with_one() -> None:
    """Expanded four times, an object of three pixels would be under one."""
    tiny = Item(Image.new("RGB", (64, 64)), np.array([[40, 20, 43, 23]]), np.array([2]))
    for seed in range(60):
        _, target = augmented({"expand": 1.0, "iou_crop": True}, seed, tiny, size=64)
        assert target["labels"].tolist() == [2]


def test_boxes_without_area_and_objects_without_pixels_go() -> None:
    masks = np.zeros((4, 64, 64), bool)
    masks[0, 8:56, 8:12] = masks[0, 8:56, 52:56] = True  # seen at the sides of its box alone
    masks[1, 20:40, 20:40] = True
    boxes = np.array([[8, 8, 56, 56], [20, 20, 40, 40], [30, 30, 30, 50], [70, 3, 90, 20]], float)
    item = Item(Image.new("RGB", (64, 64)), boxes, np.array([0, 1, 2, 3]), masks)
    _, target = augmented({}, 0, item, True, size=64)
    assert target["labels"].tolist() == [0, 1]
    lost = 0
    for seed in range(100):
        _, target = augmented({"iou_crop": True}, seed, item, True, size=64)
        assert target["masks"].flatten(1).any(1).all() and len(target["labels"])
        lost += 0 not in target["labels"].tolist()
    assert lost


def test_no_boxes() -> None:
    empty = painted(0, objects=0)
    for masks in (False, True):
        for seed in range(20):
            colours, target = augmented({**CHANGES["all"], "photometric": True}, seed, empty, masks)
            assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
            if masks:
                assert target["masks"].shape == (0, *SHAPE)


def test_chance_is_torchs_alone() -> None:
    def run(seed: int) -> tuple[np.ndarray, Target]:
        random.seed(None)
        np.random.seed(None)
        return augmented({**CHANGES["all"], "photometric": True}, seed, painted(3), True)

    (pixels, target), (again, same) = run(7), run(7)
    assert np.array_equal(pixels, again)
    assert all(torch.equal(target[key], same[key]) for key in target)  # type: ignore[literal-required]
    assert any(not np.array_equal(pixels, run(seed)[0]) for seed in (8, 9))


def test_plain_tensors() -> None:
    item = painted(1)
    before = [np.array(value) for value in item]
    pixels, target = Augment(recipe({**CHANGES["all"], "photometric": True}), masks=True)(*item)
    values = [pixels, *target.values()]
    assert [type(value) for value in values] == [Tensor] * 4
    assert [value.dtype for value in values] == [torch.float32, torch.float32, torch.int64, torch.bool]
    assert list(target) == ["boxes", "labels", "masks"]
    assert all(np.array_equal(old, value) for old, value in zip(before, item, strict=True)), (
        "given, unchanged"
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match="give masks"):
        Augment(recipe({}), masks=True)(*painted(0)[:3])
    with pytest.raises(ValueError, match="expected stretch or inside"):
        Augment(recipe({}, fit="crop"))
    with pytest.raises(ValueError, match="four pictures; 3 are given"):
        mosaic([painted(0)] * 3, (64, 64))


# --- mosaic ---


@pytest.mark.parametrize("size", [(96, 96), (80, 128)])
def test_mosaic_boxes_and_masks_are_their_colours(size: tuple[int, int]) -> None:
    """One object a picture, each of its own colour and label."""
    bounded, forms = 0, [(120, 90), (60, 100), (64, 64)]
    for seed in range(40):
        empty = painted(0, objects=0, size=(200, 50))
        items = [recoloured(painted(seed + k, 1, form), k) for k, form in enumerate(forms)] + [empty]
        items = items[seed % 4 :] + items[: seed % 4]
        made = mosaic(items, size)
        assert made.picture.size == size[::-1] and made.masks is not None
        assert made.masks.shape == (len(made.boxes), *size)
        colours = np.asarray(made.picture) / 255
        for box, label, mask in zip(made.boxes, made.labels, made.masks, strict=True):
            assert 0 <= box[0] < box[2] <= size[1] and 0 <= box[1] < box[3] <= size[0]
            if (box[2:] - box[:2]).min() >= 4:
                where = coloured(colours, int(label))
                assert_bounds(box, where, 1.5)
                edge = 2 * int((box[2:] - box[:2]).sum() + 4)
                assert (mask != where).sum() <= edge
                bounded += 1
    assert bounded > 80


def test_mosaic_lays_four_pictures_around_a_point() -> None:
    plain = [
        (Image.new("RGB", (50, 50), colour), np.zeros((0, 4)), np.zeros(0))
        for colour in ("red", "lime", "blue", "yellow")
    ]
    points = set()
    for seed in range(20):
        torch.manual_seed(seed)
        made = mosaic(plain, (64, 64), mean=(0.0, 0.0, 0.0))
        pixels = np.asarray(made.picture)
        where = [
            (pixels == colour).all(2) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
        ]
        y, x = (np.flatnonzero(where[0].any(axis))[-1] + 1 for axis in (1, 0))
        points.add((x, y))
        assert 16 <= x <= 48 and 16 <= y <= 48
        expected = np.zeros((4, 64, 64), bool)  # half the canvas each, cut off at its edges
        expected[0, max(y - 32, 0) : y, max(x - 32, 0) : x] = True
        expected[1, max(y - 32, 0) : y, x : x + 32] = True
        expected[2, y : y + 32, max(x - 32, 0) : x] = True
        expected[3, y : y + 32, x : x + 32] = True
        assert np.array_equal(where, expected)
        assert (pixels[~expected.any(0)] == 0).all()
        assert made.boxes.shape == (0, 4) and made.labels.shape == (0,) and made.masks is None
    assert len(points) > 15


def test_mosaic_goes_on_to_augment() -> None:
    items = [painted(k) for k in range(4)]
    with_masks = mosaic(items, (160, 224))
    assert with_masks.masks is not None and mosaic([items[0][:3], *items[1:]], (160, 224)).masks is None
    for seed in range(10):
        augmented(CHANGES["all"], seed, with_masks, True)


# --- batches ---


def test_batch_of_one_size_is_stacked() -> None:
    items = [Augment(recipe({}, size=[50, 70]), masks=True)(*painted(k)) for k in range(3)]
    pixels, targets = collate(items)
    assert pixels.shape == (3, 3, 50, 70) and type(pixels) is Tensor
    assert all(torch.equal(pixels[k], items[k][0]) and targets[k] is items[k][1] for k in range(3))


def test_batch_of_sizes_is_padded_right_and_below() -> None:
    augment = Augment(recipe({}, size=[48, 70], fit="inside"), masks=True)
    items = [augment(*painted(k, size=size)) for k, size in enumerate([(120, 90), (90, 120), (200, 80)])]
    assert [tuple(pixels.shape[1:]) for pixels, _ in items] == [(48, 64), (64, 48), (28, 70)]
    pixels, targets = collate(items)
    assert pixels.shape == (3, 3, 64, 96)
    check_targets(targets, pixels, CLASSES, masks=True)
    for one, target, (before, own) in zip(pixels, targets, items, strict=True):
        height, width = before.shape[1:]
        assert torch.equal(one[:, :height, :width], before)
        assert torch.equal(target["masks"][:, :height, :width], own["masks"])
        assert torch.equal(target["boxes"], own["boxes"]) and torch.equal(target["labels"], own["labels"])
        for maps in (one, target["masks"]):
            assert not maps[:, height:].any() and not maps[:, :, width:].any()
    boxes_alone = [(pixels, {k: v for k, v in own.items() if k != "masks"}) for pixels, own in items]
    assert all("masks" not in target for target in collate(boxes_alone)[1])  # type: ignore[arg-type]
