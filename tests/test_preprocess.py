"""The one preprocessing function equals torchvision's transforms, and its record survives a round trip."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from metamobile.data.preprocess import INTERPOLATIONS, Preprocess, preprocess, resize_shorter, shape_inside

SIZES = [(97, 61), (61, 97), (64, 64), (333, 200), (45, 301), (31, 30), (500, 375)]  # (width, height)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def torchvision_answer(picture: Image.Image, record: Preprocess) -> np.ndarray:
    steps = [
        Resize(record.shorter_side, InterpolationMode(record.interpolation)),
        CenterCrop(record.size),
        ToTensor(),
        Normalize(record.mean, record.std),
    ]
    return Compose(steps)(picture).numpy()


@pytest.mark.parametrize("size", [(64, 64), (65, 65), (33, 47), (48, 40)])
@pytest.mark.parametrize("shape", SIZES)
def test_equals_torchvision(shape: tuple[int, int], size: tuple[int, int]) -> None:
    for resize in (None, max(size), max(size) + 9):
        record = Preprocess(size, resize)
        ours = preprocess(noise(*shape), record)
        assert ours.shape == (3, *size) and ours.dtype == np.float32 and ours.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(ours, torchvision_answer(noise(*shape), record), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_interpolations_mean_what_torchvision_means(interpolation: str) -> None:
    record = Preprocess((40, 40), 53, interpolation, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    for shape in SIZES:
        expected = torchvision_answer(noise(*shape), record)
        np.testing.assert_allclose(preprocess(noise(*shape), record), expected, rtol=0, atol=1e-6)


def test_default_is_256_then_224() -> None:
    record = Preprocess()
    assert record.shorter_side == 256
    np.testing.assert_allclose(
        preprocess(noise(500, 375), record), torchvision_answer(noise(500, 375), record), rtol=0, atol=1e-6
    )


def test_resize_shorter_leaves_the_right_size_alone() -> None:
    picture = noise(40, 61)
    assert resize_shorter(picture, 40) is picture
    assert resize_shorter(picture, 20).size == (20, 30)  # 30.5 rounded down
    again = resize_shorter(resize_shorter(picture, 33), 33)
    assert np.array_equal(np.asarray(again), np.asarray(resize_shorter(picture, 33)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_stretch_is_torchvisions_resize_to_both_sides(interpolation: str) -> None:
    record = Preprocess((40, 56), None, interpolation, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "stretch")
    whole = [
        Resize((40, 56), InterpolationMode(interpolation)),
        ToTensor(),
        Normalize(record.mean, record.std),
    ]
    for shape in [*SIZES, (56, 40), (40, 56), (1, 1)]:
        ours = preprocess(noise(*shape), record)
        assert ours.shape == (3, 40, 56) and ours.dtype == np.float32 and ours.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(ours, Compose(whole)(noise(*shape)).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),  # (width, height), limits, (height, width) by hand
    [
        ((640, 480), (800, 1333), (800, 1067)),  # 5/3: 1066.67 is rounded up
        ((480, 640), (800, 1333), (1067, 800)),  # the same, upright
        ((640, 427), (800, 1333), (800, 1199)),  # 1199.06
        ((1000, 300), (800, 1333), (400, 1333)),  # the longer side is first: 1.333 x 300 = 399.9
        ((683, 512), (512, 2048), (512, 683)),  # as it is
        ((500, 375), (2048, 512), (512, 683)),  # limits in either order
        ((500, 375), (512, 512), (384, 512)),
        ((100, 25), (10, 1000), (10, 40)),
        ((50, 33), (4, 5), (3, 5)),  # 3.3 is rounded down
        ((30, 20), (3, 9), (3, 5)),  # 4.5 is rounded up, as MMCV does
        ((500, 1), (32, 64), (1, 64)),  # 0.128, yet a pixel
    ],
)
def test_inside_keeps_the_form_within_both_limits(
    shape: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert shape_inside(*shape, size) == expected


def test_inside_is_the_whole_picture_resized() -> None:
    record = Preprocess((48, 80), interpolation="bilinear", fit="inside")
    for shape, expected in [((97, 61), (48, 76)), ((61, 97), (76, 48)), ((333, 100), (24, 80))]:
        steps = [Resize(expected, InterpolationMode.BILINEAR), ToTensor(), Normalize(record.mean, record.std)]
        ours = preprocess(noise(*shape), record)
        assert ours.shape == (3, *expected)
        np.testing.assert_allclose(ours, Compose(steps)(noise(*shape)).numpy(), rtol=0, atol=1e-6)


def test_the_fit_is_in_the_record_and_a_record_without_it_crops() -> None:
    record = Preprocess((320, 320), fit="stretch")
    assert record.to_dict()["fit"] == "stretch"
    assert Preprocess.from_dict(record.to_dict()) == record
    old = Preprocess((96, 96), 100).to_dict()
    del old["fit"]
    assert Preprocess.from_dict(old) == Preprocess((96, 96), 100, fit="crop")


def test_record_round_trip() -> None:
    record = Preprocess((96, 160), 200, "bilinear", (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
    assert Preprocess.from_dict(record.to_dict()) == record
    assert isinstance(record.to_dict()["size"], list)  # what JSON gives back


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"preprocessing has no 'interpolaton'.*did you mean 'interpolation'\?"
    ):
        Preprocess.from_dict({"interpolaton": "bicubic"})
    with pytest.raises(ValueError, match=r"'bicubc' is unknown; known are nearest.*did you mean 'bicubic'\?"):
        Preprocess(interpolation="bicubc")
    with pytest.raises(ValueError, match=r"resize 90 is below the crop \(64, 96\); .*96"):
        Preprocess((64, 96), 90)
    assert Preprocess((64, 96), 90, fit="stretch").resize == 90  # of no effect there
    with pytest.raises(ValueError, match="fit 'strech' is unknown; known are crop, .*did you mean 'stretch'"):
        Preprocess(fit="strech")
    with pytest.raises(ValueError, match="is not a \\(height, width\\) of whole pixels"):
        Preprocess((0, 5))
