"""Pictures are read right in every rotation, colour model and depth, and broken ones are named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from metamobile.data.pictures import files_in, find_pictures, is_picture, names_in, pictures_in, read_picture
from metamobile.errors import PictureError

RED, GREEN, BLUE, WHITE = (220, 30, 40), (20, 200, 60), (30, 40, 210), (255, 255, 255)


def quarters(width: int = 32, height: int = 48) -> Image.Image:
    """Red top left, green top right, blue below left, white below right."""
    picture = Image.new("RGB", (width, height), WHITE)
    for colour, corner in ((RED, (0, 0)), (GREEN, (width // 2, 0)), (BLUE, (0, height // 2))):
        picture.paste(colour, (*corner, corner[0] + width // 2, corner[1] + height // 2))
    return picture


def stored(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> int:
    assert a.size == b.size
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


# what a camera does to the picture before it stores it with that orientation
UNDO = {
    1: (),
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_270,),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UNDO)
def test_exif_orientations_stand_upright(orientation: int, kind: str) -> None:
    expected = quarters()
    lying = expected
    for step in UNDO[orientation]:
        lying = lying.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = read_picture(stored(lying, kind, exif=exif, **options))
    assert picture.mode == "RGB"
    assert difference(picture, expected) <= (6 if kind == "JPEG" else 0)


def test_turning_six_is_clockwise() -> None:
    """Orientation 6, a phone held upright: the stored top left becomes the top right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(stored(quarters(), exif=exif))
    assert picture.size == (48, 32)
    assert picture.getpixel((47, 0)) == RED and picture.getpixel((47, 31)) == GREEN


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(kind: str) -> None:
    picture = Image.new("RGBA", (4, 1))
    for x, alpha in enumerate((0, 51, 128, 255)):
        picture.putpixel((x, 0), (200, 100, 0, alpha))
    read = read_picture(
        stored(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    )
    for x, alpha in enumerate((0, 51, 128, 255)):
        expected = [round(255 + (channel - 255) * alpha / 255) for channel in (200, 100, 0)]
        assert np.abs(np.array(read.getpixel((x, 0))) - expected).max() <= 1


def test_grey_with_alpha() -> None:
    picture = Image.new("LA", (2, 1), (10, 255))
    picture.putpixel((1, 0), (10, 0))
    read = read_picture(stored(picture))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(10, 10, 10), WHITE]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(kind: str) -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([*RED, *GREEN])
    picture.putpixel((1, 0), 1)
    opaque = read_picture(stored(picture, kind))
    assert [opaque.getpixel((x, 0)) for x in (0, 1)] == [RED, GREEN]
    read = read_picture(stored(picture, kind, transparency=1))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_palette_with_shades_of_transparency() -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([*RED, 0, 0, 0])
    picture.putpixel((1, 0), 1)
    read = read_picture(stored(picture, transparency=bytes([255, 128])))
    assert read.getpixel((0, 0)) == RED
    assert read.getpixel((1, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_one_colour_declared_transparent() -> None:
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), BLUE)
    read = read_picture(stored(picture, transparency=BLUE))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_has_the_same_colours(kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    content = stored(quarters().convert("CMYK"), kind, **options)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    assert difference(read_picture(content), quarters()) <= 6


def test_grey_and_black_and_white() -> None:
    grey = quarters().convert("L")
    assert difference(read_picture(stored(grey, "JPEG", quality=100)), grey.convert("RGB")) <= 3
    assert difference(read_picture(stored(grey.convert("1"))), grey.convert("1").convert("RGB")) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(kind: str) -> None:
    values = np.array([[0, 200, 32768, 65535]], np.uint16)
    read = np.asarray(read_picture(stored(Image.fromarray(values), kind)))
    assert read[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (read == read[..., :1]).all()


def test_sixteen_bit_dark_picture_stays_dark() -> None:
    """Values below 256 are nearly black of 65,535, and not 8-bit ones."""
    values = np.full((4, 4), 250, np.uint16)
    assert np.asarray(read_picture(stored(Image.fromarray(values)))).max() == 1


def test_numbers_without_a_white_are_named() -> None:
    shares = np.linspace(0, 1, 5, dtype=np.float32)[None]
    assert np.asarray(read_picture(stored(Image.fromarray(shares), "TIFF")))[0, :, 0].tolist() == [
        0,
        64,
        128,
        191,
        255,
    ]
    heights = Image.fromarray(shares * 4000)
    with pytest.raises(
        PictureError, match=r"grey values from 0 to 4000 do not lie in 0\.\.1; save it as 8-bit"
    ):
        read_picture(stored(heights, "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    read = read_picture(stored(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert read.getpixel((3, 3)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_are_named(tmp_path: Path, kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = stored(noise, kind)
    path = tmp_path / "cat.jpg"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        PictureError, match=r"cat\.jpg: (damaged or truncated|not a picture that can be read)"
    ):
        read_picture(path)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    with pytest.raises(PictureError, match=r"notes\.jpg: not a picture that can be read; expected JPEG"):
        read_picture(text)
    with pytest.raises(PictureError, match="no such file; give the path of a picture"):
        read_picture(tmp_path / "gone.jpg")
    with pytest.raises(PictureError, match=r"cannot be opened \(Is a directory\)"):
        read_picture(tmp_path)


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    quarters().save(path)
    content = path.read_bytes()
    for source in (path, str(path), content, io.BytesIO(content)):
        assert difference(read_picture(source), quarters()) == 0


def test_names_in_a_folder(tmp_path: Path) -> None:
    """As pathlib lists and sorts them, "a/b" before "a-b", without what systems leave behind."""
    for name in (
        "a/z.jpg",
        "a-b/y.jpg",
        "a.jpg",
        "b/.x/c.jpg",
        ".d.jpg",
        "__MACOSX/a/z.jpg",
        "a/b/c/d.txt",
        "a0.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    every = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    kept = [p for p in every if not any(part.startswith((".", "__")) for part in p.parts)]
    assert [Path(name) for name in names_in(tmp_path)] == kept
    assert files_in(tmp_path) == [tmp_path / p for p in kept]
    assert pictures_in(tmp_path) == [tmp_path / p for p in kept if p.suffix == ".jpg"]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.b.Tiff", "x/a.png"])
def test_pictures_by_name(name: str) -> None:
    assert is_picture(name) and is_picture(Path(name))
    for other in (f"{name}.txt", "jpg", ".jpg", f"{Path(name).parent}/._{Path(name).name}"):
        assert not is_picture(other)


def test_find_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "deep/c.webp", ".ipynb_checkpoints/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    everything = [tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "deep/c.webp"]
    assert find_pictures([tmp_path]) == everything
    assert find_pictures([str(tmp_path / "*.png")]) == [tmp_path / "a.png"]
    assert find_pictures([str(tmp_path / "notes.txt")]) == [tmp_path / "notes.txt"]  # named by the user
    monkeypatch.setattr(sys, "stdin", io.StringIO("x.jpg\n\ny.jpg\n"))
    assert find_pictures(["-"]) == [Path("x.jpg"), Path("y.jpg")]
    with pytest.raises(ValueError, match=r"no such file or folder; did you mean 'a\.png'\?"):
        find_pictures([str(tmp_path / "aa.png")])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no picture inside"):
        find_pictures([tmp_path / "none"])
    with pytest.raises(ValueError, match="no picture was given"):
        find_pictures([])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF tags, as it should
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM"])
def test_damage_of_any_sort_is_a_picture_error(kind: str) -> None:
    """Whatever a decoder raises on random damage, `read_picture` raises nothing but PictureError."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    rng = np.random.default_rng(0)
    whole = stored(Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)), kind)
    broken = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(300, len(whole)), 3):  # the header and what follows
            damaged[place] = rng.integers(256)
        try:
            assert read_picture(bytes(damaged)).mode == "RGB"
        except PictureError:
            broken += 1
    assert broken
