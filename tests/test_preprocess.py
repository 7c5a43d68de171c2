"""The one preprocessing function equals torchvision's transforms, and its record survives a round trip."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from metamobile.data.preprocess import INTERPOLATIONS, Preprocess, preprocess, resize_shorter

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
    with pytest.raises(ValueError, match="is not a \\(height, width\\) of whole pixels"):
        Preprocess((0, 5))
