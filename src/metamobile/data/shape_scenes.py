"""Pictures of several drawn shapes, as folders for detection and for segmentation, with their truth known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metamobile.data.shapes import SHAPE_CLASSES, Scene, draw_scene, drawn_once
from metamobile.files import write_text

SPLITS = ("train", "val")
LEAST_SEEN = 16  # pixels; an object of which less is left under later ones is not annotated


def write_boxes(
    out: str | Path,
    train: int = 400,
    val: int = 100,
    size: int = 128,
    objects: tuple[int, int] = (1, 4),
    seed: int = 0,
) -> Path:
    """Boxes and masks in COCO's layout: out/annotations/instances_{train,val}.json, out/{train,val}/*.png.

    Each picture has from objects[0] to objects[1] shapes; picture i of a split depends on (seed, split, i)
    alone. Categories are numbered from 1. What is hidden but for fewer than 16 pixels is left out.
    """
    out = Path(out)
    categories = [
        {"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(SHAPE_CLASSES, 1)
    ]
    for split, count in zip(SPLITS, (train, val), strict=True):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, scene in _scenes(split, count, size, objects, seed):
            name, image_id = _save(scene.image, out / split, index), index + 1
            images.append({"id": image_id, "file_name": name, "width": size, "height": size})
            for annotation in _annotations(scene):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(out / "annotations" / f"instances_{split}.json", json.dumps(content))
    return out


def write_masks(
    out: str | Path,
    train: int = 400,
    val: int = 100,
    size: int = 128,
    objects: tuple[int, int] = (1, 4),
    seed: int = 0,
) -> Path:
    """A class for each pixel: out/images/{train,val}/*.png, out/masks/{train,val}/*.png, out/classes.txt.

    A mask's numbers are lines of classes.txt from 0, the background. Pictures are those of `write_boxes`; a
    pixel of a shape counts as such however little of it is seen.
    """
    out = Path(out)
    for split, count in zip(SPLITS, (train, val), strict=True):
        for index, scene in _scenes(split, count, size, objects, seed):
            _save(scene.image, out / "images" / split, index)
            numbers = (scene.masks * (scene.labels[:, None, None] + 1)).sum(0)  # masks share no pixel
            _save(Image.fromarray(numbers.astype(np.uint8)), out / "masks" / split, index)
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in ("background", *SHAPE_CLASSES)))
    return out


def boxes_folder() -> Path:
    """The data set "shapes" of detection, drawn at first use into metamobile's cache."""
    return drawn_once("shape-boxes-v1", write_boxes)


def masks_folder() -> Path:
    """The data set "shapes" of segmentation, drawn at first use into metamobile's cache."""
    return drawn_once("shape-masks-v1", write_masks)


def _scenes(
    split: str, count: int, size: int, objects: tuple[int, int], seed: int
) -> Iterator[tuple[int, Scene]]:
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        shapes = int(rng.integers(objects[0], objects[1], endpoint=True))
        yield index, draw_scene(rng, size, shapes)


def _annotations(scene: Scene) -> Iterator[dict[str, Any]]:
    """COCO's entries, without ids, of the objects that are seen."""
    from faster_coco_eval.core import mask as coco_mask

    for label, box, mask in zip(scene.labels.tolist(), scene.boxes.tolist(), scene.masks, strict=True):
        area = int(mask.sum())
        if area < LEAST_SEEN:
            continue
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        x1, y1, x2, y2 = box
        yield {
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
            "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode("ascii")},
        }


def _save(picture: Image.Image, folder: Path, index: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{index:05}.png"
    picture.save(folder / name)
    return name
