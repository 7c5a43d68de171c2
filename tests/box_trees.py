"""Small data sets with boxes, as COCO's json and as YOLO's text files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from metamobile.data.boxes import BoxData, BoxSample, open_boxes

Box = Sequence[float]  # class from 0, x, y, width, height in pixels


def picture(path: Path, size: tuple[int, int] = (40, 30), orientation: int | None = None) -> Path:
    """Noise that its name decides, `size` as stored; EXIF may turn it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(str(path.name).encode())).integers(0, 256, (*size[::-1], 3), np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return path


def image(number: int, name: str, size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def annotation(number: int, image_id: int, category: int, bbox: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, **more}


def coco(
    path: Path,
    images: list,
    annotations: list,
    categories: Sequence[tuple[int, str]] = ((1, "cat"), (2, "dog")),
) -> Path:
    """`categories` are ids and names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": number, "name": name} for number, name in categories]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": rows}))
    return path


def coco_split(path: Path, folder: Path, names: Sequence[str], prefix: str = "") -> Path:
    """Pictures in `folder`, each with a cat and a dog; the json calls them by `prefix` and name."""
    for name in names:
        picture(folder / name)
    rows = []
    for i in range(len(names)):
        rows += [annotation(2 * i, i, 1, [1, 2, 10, 12]), annotation(2 * i + 1, i, 2, [5, 6, 20, 8])]
    return coco(path, [image(i, prefix + name) for i, name in enumerate(names)], rows)


CAT_AND_DOG = [[1, 2, 11, 14], [5, 6, 25, 14]]  # of coco_split and yolo_split, as corners


def yolo_split(folder: Path, labels: Path, names: Sequence[str]) -> None:
    """The same as `coco_split` in YOLO's files."""
    for name in names:
        picture(folder / name)
        rows = [yolo_row(0, 1, 2, 10, 12), yolo_row(1, 5, 6, 20, 8)]
        text(labels / f"{Path(name).stem}.txt", *rows)


def yolo_row(label: int, x: float, y: float, w: float, h: float, size: tuple[int, int] = (40, 30)) -> str:
    values = (x + w / 2) / size[0], (y + h / 2) / size[1], w / size[0], h / size[1]
    return " ".join([str(label), *(f"{value:.9f}" for value in values)])


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def data_yaml(file: Path, /, **content: Any) -> Path:
    return text(file, yaml.safe_dump(content, sort_keys=False))


def opened(data: Path, **settings: object) -> BoxData:
    return open_boxes(data, **({"val_fraction": 0} | settings))  # type: ignore[arg-type]


def names(samples: list[BoxSample]) -> list[str]:
    return [sample.path.name for sample in samples]
