"""Reading pictures right: rotation, transparency, colour models, depth; and a clear word on a broken one."""

from __future__ import annotations

import glob
import io
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metamobile.errors import PictureError, nearest

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
    }
)
_SUFFIXES = tuple(PICTURE_SUFFIXES)
LEFT_BEHIND = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})  # by macOS's archives, Synology, Windows
NOTHING_GIVEN = "no picture was given; name files, folders or globs, or '-' for paths on standard input"
Source = str | Path | bytes | BinaryIO


def read_picture(source: Source) -> Image.Image:
    """The picture as RGB, fully decoded.

    EXIF rotation is applied, transparency laid over white, 16 bit scaled over its full range; of an
    animation, the first frame. Errors: PictureError naming the file and the reason.
    """
    name = str(source) if isinstance(source, (str, Path)) else "picture"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file; give the path of a picture") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{name}: not a picture that can be read; expected JPEG, PNG, WebP, AVIF, TIFF, GIF or BMP"
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: too large ({error}); make it smaller") from error
    # Pillow's decoders report damaged data through any of these, AVIF's through RuntimeError
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's, not a decoder's
            raise PictureError(
                f"{name}: cannot be opened ({error.strerror}); expected a picture file"
            ) from error
        raise PictureError(f"{name}: damaged or truncated ({error}); replace it or leave it out") from error
    try:
        return to_rgb(upright)
    except ValueError as error:
        raise PictureError(f"{name}: {error}; save it as 8-bit RGB or grey") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB. Errors: ValueError for numbers without a known white, and for CIE Lab."""
    if picture.mode == "F" or picture.mode.startswith("I"):  # Pillow's own conversion clips at 255
        picture = Image.fromarray(_to_8_bits(np.asarray(picture).astype(np.float64), picture.mode))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of 16 or 32 bits -> uint8, the whole range of the format onto 0..255."""
    if mode == "F":
        white = 1.0
    elif mode == "I" and values.max(initial=0) > 0xFFFF:
        white = float(0x7FFFFFFF)
    else:  # "I;16" and its byte orders; also what Pillow before 11.3 makes of a 16-bit PNG, "I"
        white = float(0xFFFF)
    if not (values.min(initial=0) >= 0 and values.max(initial=0) <= white):  # also true of NaN
        raise ValueError(f"grey values from {values.min():g} to {values.max():g} do not lie in 0..{white:g}")
    return (values * (255 / white)).round().astype(np.uint8)


def is_picture(path: str | Path) -> bool:
    """By name alone: a known suffix, not hidden."""
    name = os.path.basename(path)
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def is_junk(name: str) -> bool:
    """What is no data by its name: hidden files and folders, and what systems leave behind."""
    return name.startswith(".") or name in LEFT_BEHIND


def names_in(folder: str | Path, prefix: str = "") -> Iterator[str]:
    """Files at any depth, as paths below `folder` with "/" between parts, sorted part by part; no junk.

    Folders are read entry by entry with the kinds that the file system tells along: asking for each of
    ImageNet's 1.3 million files would take minutes. Folders that are links are not entered.
    """
    with os.scandir(folder) as scanned:
        entries = sorted((e for e in scanned if not is_junk(e.name)), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_file():
            yield prefix + entry.name
        elif entry.is_dir(follow_symlinks=False):
            yield from names_in(entry.path, f"{prefix}{entry.name}/")


def files_in(folder: Path) -> list[Path]:
    """Files at any depth, sorted; no junk."""
    return [folder / name for name in names_in(folder)]


def pictures_in(folder: Path) -> list[Path]:
    """Pictures at any depth, sorted."""
    return [folder / name for name in names_in(folder) if is_picture(name)]


def find_pictures(items: Sequence[str | Path]) -> list[Path]:
    """Pictures named by files, folders (searched through), globs, or "-" for paths on standard input.

    Errors: ValueError for a path that does not exist, with the nearest name, or when nothing is found.
    """
    found: list[Path] = []
    for item in items:
        path = Path(item)
        if str(item) == "-":
            found += [Path(line.strip()) for line in sys.stdin if line.strip()]
        elif path.is_dir():
            inside = pictures_in(path)
            if not inside:
                raise ValueError(f"{path}: no picture inside; expected files such as *.jpg or *.png")
            found += inside
        elif path.exists():
            found.append(path)
        elif matches := sorted(glob.glob(str(item), recursive=True)):
            found += find_pictures(matches)
        else:
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ValueError(f"{item}: no such file or folder{nearest(path.name, siblings)}")
    if not found:
        raise ValueError(NOTHING_GIVEN)
    return found
