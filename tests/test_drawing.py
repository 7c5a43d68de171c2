"""What drawings share: colours that can be told apart, text that fits, legends that wrap."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from metamobile.tasks.drawing import (
    SHADE,
    _generated,
    colour,
    enlarged,
    fit,
    font,
    ink_on,
    text_size,
    with_legend,
)


def luminance(colour: tuple[int, int, int]) -> float:
    """Source: WCAG 2.1, relative luminance."""
    parts = [part / 255 for part in colour]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_are_distinct_and_legible() -> None:
    colours = [colour(i) for i in range(1300)]
    assert len(set(colours)) == 1300
    assert all(isinstance(part, int) and 0 <= part <= 255 for shade in colours for part in shade)
    first = np.array(colours[:80], float)
    apart = np.linalg.norm(first[:, None] - first[None], axis=2) + 1000 * np.eye(80)
    assert apart.min() > 35
    assert np.linalg.norm(np.array(colours, float) - SHADE, axis=1).min() > 60
    assert min(contrast(shade, SHADE) for shade in colours[:20]) > 2.5
    assert isinstance(colour(10**6), tuple)  # there are fewer: some come twice


def test_colours_do_not_depend_on_what_was_asked_before() -> None:
    order = [900, 0, 25, 127, 128, 140]
    found = []
    for indices in (order, order[::-1]):
        _generated.cache_clear()
        found.append({i: colour(i) for i in indices})
    assert found[0] == found[1]


def test_ink_has_the_larger_contrast() -> None:
    for index in range(200):
        ground = colour(index)
        black, white = contrast((0, 0, 0), ground), contrast((255, 255, 255), ground)
        assert contrast(ink_on(ground), ground) == max(black, white) > 4.5


def test_fit_cuts_to_the_room() -> None:
    letters = font(20)
    assert fit("short", letters, 500) == "short"
    cut = fit("a long label", letters, 80)
    assert cut.endswith("…") and "a long label".startswith(cut[:-1])
    assert letters.getlength(cut) <= 80 < letters.getlength("a long label")
    assert font(20) is font(20) and font(20, bold=True).getname() != font(20).getname()


@pytest.mark.parametrize(
    "size, expected", [((32, 20), (256, 160)), ((100, 30), (200, 60)), ((256, 9), (256, 9))]
)
def test_enlarged_in_whole_steps(size: tuple[int, int], expected: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    large = enlarged(Image.fromarray(noise))
    assert large.size == expected
    step = expected[0] // size[0]
    np.testing.assert_array_equal(np.asarray(large), noise.repeat(step, axis=0).repeat(step, axis=1))
    assert enlarged(Image.new("L", (4, 4))).mode == "RGB"


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (40, 900), (2000, 300)])
def test_legend_keeps_the_picture_and_wraps(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    entries = [(f"class {i} 12.3 %", colour(i)) for i in range(11)]
    sheet = np.asarray(with_legend(picture, [*entries, ("and 4 more", None)]))
    width = max(256, size[0])
    left = (width - size[0]) // 2
    np.testing.assert_array_equal(sheet[: size[1], left : left + size[0]], noise)
    assert sheet.shape[1] == width
    strip, text = sheet[size[1] :], text_size(picture)
    places = []
    for _, shade in entries:  # a swatch each, in reading order
        rows, columns = np.nonzero((strip == shade).all(axis=2))
        assert len(rows) > 0.5 * (0.85 * text) ** 2
        places.append((rows.min(), columns.min()))
    assert places == sorted(places)
    assert len(strip) >= (1 + len({row for row, _ in places})) * text
    assert (strip[:, :3] == SHADE).all() and (strip[:, -3:] == SHADE).all()  # margins stay free
    if width < 1000:
        assert len({row for row, _ in places}) > 1


def test_legend_cuts_a_label_that_is_too_long() -> None:
    strip = np.asarray(with_legend(Image.new("RGB", (64, 64)), [("W" * 300, colour(0)), ("x", colour(1))]))[
        64:
    ]
    assert (strip[:, -3:] == SHADE).all()
    assert (strip == colour(1)).all(axis=2).sum() > 60


def test_legend_of_nothing() -> None:
    picture = Image.new("RGB", (64, 64))
    assert with_legend(picture, []).size == (64, 64)
