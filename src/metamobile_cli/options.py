"""What several verbs share: their options, the forms of their arguments, and words on stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import typer
from typer import Argument, Option

MODEL = Argument(metavar="MODEL", help="Run folder, model file, exported file or weights by name.")
DATA = Option(metavar="DATA", help="Folder of pictures with classes, boxes or masks; or: shapes.")
TASK = Option(metavar="NAME", help="classify, detect or segment; else found by looking.")
SIZE = Option(metavar="PX", help="Input size in pixels: 128, or 96,160 (height,width).")
BATCH_SIZE = Option(metavar="N", min=1, help="Pictures at a time; else as suits the task.")
WORKERS = Option(metavar="N", min=0, help="Readers of pictures beside the network; 0: none.")
IOU = Option(min=0, max=1, metavar="SHARE", help="Of a detector: overlap that drops the worse box.")
SLIDE = Option(
    min=32, metavar="PX", help="Of a segmenter: overlapping windows of this side of the resized picture."
)
DEVICE = Option(metavar="NAME", help="Where to compute: auto, cpu, cuda or mps.")


def given(**options: object) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def split_commas(values: Sequence[str]) -> list[str]:
    """["onnx,openvino", "ncnn"] -> three names."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def split_settings(values: Sequence[str]) -> list[str]:
    """["a.b=1,c.d=2"] -> two settings. A comma splits only before the next `key=`: lists stay whole."""
    return [part for value in values for part in re.split(r",(?=\s*[A-Za-z_][\w.]*=)", value)]


def parse_numbers(flag: str, text: str) -> list[int]:
    """ "7,14" -> [7, 14]."""
    parts = split_commas([text])
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{flag} {text!r}: expected whole numbers with commas between them, such as 7,14")
    return [int(part) for part in parts]


def parse_size(text: str | None) -> int | list[int] | None:
    """ "128" -> 128; "96,160" or "96x160" -> [96, 160] (height, width)."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--size {text!r}: expected pixels such as 128, or height,width such as 96,160")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else sides


def parse_size_or_any(text: str | None) -> int | list[int] | Literal["any"] | None:
    """As `parse_size`; and "any" for itself."""
    if text == "any":
        return "any"
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"{error}, or any") from error


def is_picture(word: str, *, empty: bool = False) -> bool:
    """Whether it names pictures or a video, and no model: a file, a folder, a glob, stdin. A folder is none
    if it is a run or an exported model, holds no picture (unless `empty`), or is called as a network; a path
    such as ./emo_1m tells it apart."""
    from metamobile.data.pictures import PICTURE_SUFFIXES
    from metamobile.inference.video import is_video

    path = Path(word)
    return (
        word == "-"
        or path.suffix.lower() in PICTURE_SUFFIXES
        or is_video(word)
        or any(sign in word for sign in "*?[")
        or (
            path.is_dir()
            and not holds_model(path)
            and (empty or holds_picture(path))
            and not is_networks_name(word)
        )
    )


def holds_picture(folder: Path) -> bool:
    from metamobile.data.pictures import PICTURE_SUFFIXES

    return any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*"))


def holds_model(folder: Path) -> bool:
    """Whether it is a run, or a file of a format that is a folder."""
    from metamobile.deploy.formats import format_of

    return any((folder / name).is_file() for name in ("metrics.jsonl", "model.safetensors")) or bool(
        format_of(folder)
    )


def is_networks_name(word: str) -> bool:
    """Whether a network or weights are called so, ours or timm's."""
    from metamobile.models.variants import VARIANTS
    from metamobile.weights.find import SHIPPED
    from metamobile.weights.published import published_name

    if word in VARIANTS or word in SHIPPED or published_name(word):
        return True
    if "/" in word:
        return False
    import timm

    return bool(timm.is_model(word))


def split_models(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models and pictures among the words. Errors: ValueError where either is missing."""
    pictures = [word for word in words if is_picture(word)]
    models = [word for word in words if word not in pictures]
    if pictures and (missing := [word for word in models if "/" in word and not Path(word).exists()]):
        raise ValueError(f"{', '.join(missing)}: no such file or folder, and no model's name")
    if not models or not pictures:
        what = "picture" if models else "model"
        folder = next((word for word in models if Path(word).is_dir() and not holds_model(Path(word))), None)
        hint = f"; a folder of pictures that is called as a network is ./{folder}" if folder else ""
        raise ValueError(
            f"no {what} among {', '.join(words)}; expected models, then files, folders or globs{hint}"
        )
    return models, pictures


def remark(text: str) -> None:
    print(text, file=sys.stderr)


def complain(text: str) -> None:
    """One line on stderr that begins with "error:", in red on a terminal."""
    typer.secho(f"error: {text}", fg="red", err=True)
