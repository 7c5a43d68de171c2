"""Cameras: a stream that ends by Ctrl-C, one that does not work, a film that keeps its pace. None is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metamobile.inference import video
from metamobile.inference.model import Model
from metamobile.inference.video import film_at, predict_video
from small_clips import Colours, cv2, frame_with_square, left_in, read_clip


class FakeCamera:
    """Device 0 sends these frames, exactly; no other device is there."""

    def __init__(self, frames: list[Image.Image], rate: float = 0.0, fails: tuple[int, ...] = ()) -> None:
        self.frames, self.rate, self.fails = iter(frames), rate, fails
        self.reads, self.released, self.settings = 0, False, {}
        self.real = cv2.VideoCapture

    def __call__(self, source: int | str, *api: int) -> Any:
        if isinstance(source, str):
            return self.real(source, *api)
        return self if source == 0 else SimpleNamespace(isOpened=lambda: False)

    def isOpened(self) -> bool:  # noqa: N802  # OpenCV's name
        return True

    def get(self, key: int) -> float:
        return self.rate if key == cv2.CAP_PROP_FPS else -1.0

    def set(self, key: int, value: float) -> bool:
        self.settings[key] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.reads += 1
        frame = None if self.reads in self.fails else next(self.frames, None)
        return (False, None) if frame is None else (True, np.asarray(frame)[:, :, ::-1].copy())

    def release(self) -> None:
        self.released = True


@pytest.fixture
def plug_in(monkeypatch) -> Callable[..., FakeCamera]:
    def plugged(*args: Any, **kwargs: Any) -> FakeCamera:
        camera = FakeCamera(*args, **kwargs)
        monkeypatch.setattr(cv2, "VideoCapture", camera)
        return camera

    return plugged


def test_camera(plug_in, tmp_path: Path, capfd) -> None:
    """Frames come without a codec here: colours are in their right order, answers exact."""
    frames = [frame_with_square(number) for number in range(4)]
    camera = plug_in(frames, rate=25.0)
    answered = predict_video(Model(Colours()), "camera", out=tmp_path, json=tmp_path / "a.json")
    assert [result.picture for result in answered.results] == [f"camera#{number}" for number in range(4)]
    for result, frame in zip(answered.results, frames, strict=True):
        np.testing.assert_array_equal(result.mask, np.asarray(frame).argmax(axis=2))
    assert camera.released
    assert camera.settings == {cv2.CAP_PROP_BUFFERSIZE: 1}
    assert left_in(tmp_path) == ["a.json", "camera.mp4"]
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_ends_a_camera(plug_in, tmp_path: Path) -> None:
    def forever() -> Iterator[Image.Image]:
        while True:
            yield frame_with_square(3)

    plug_in([])
    calls: list[tuple[int, int | None]] = []
    camera = plug_in([])
    camera.frames = forever()
    answered = predict_video(
        Model(Colours(interrupt_at=7)),
        "camera:0",
        out=tmp_path / "out",
        csv=tmp_path / "a.csv",
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(number, None) for number in range(1, 8)]
    assert len(answered.results) == 7
    assert camera.released
    assert left_in(tmp_path / "out") == ["camera-0.mp4"]
    assert read_clip(tmp_path / "out" / "camera-0.mp4")[0]
    # nothing was asked for: nothing piles up; and no frame, no film
    assert len(predict_video(Model(Colours(interrupt_at=7)), "camera").results) == 0
    predict_video(Model(Colours(interrupt_at=0)), "camera", out=tmp_path / "none")
    assert left_in(tmp_path / "none") == []


def test_cameras_that_do_not_work(plug_in) -> None:
    camera = plug_in([])
    with pytest.raises(ValueError, match="^camera 3 cannot be opened; expected one that is plugged in"):
        predict_video(Model(Colours()), "camera:3")
    with pytest.raises(ValueError, match="^camera: it opens but sends no picture"):
        predict_video(Model(Colours()), "camera")
    assert camera.released
    plug_in([frame_with_square(0), frame_with_square(1)], fails=(1, 2, 4))  # warming up, then a late one
    calls: list[int] = []
    answered = predict_video(Model(Colours()), "camera", progress=lambda done, total: calls.append(done))
    assert calls == [1, 2]
    assert not answered.failures


def test_no_camera_here_is_one_error(capfd) -> None:
    """The real OpenCV, with a device number that no machine has."""
    with pytest.raises(ValueError, match="^camera 97 cannot be opened"):
        predict_video(Model(Colours()), "camera:97")
    assert capfd.readouterr().err == ""


def test_a_cameras_film_keeps_the_pace(tmp_path: Path, monkeypatch) -> None:
    """By hand: at 10 a second, frames seen at 0, 0.25, 0.35 and 1.05 s fill the places 0, 1-2, 3 and 4-10."""
    times = iter([100.0, 100.0, 100.25, 100.35, 101.05])
    monkeypatch.setattr(video.time, "monotonic", lambda: next(times))
    greys = (40, 100, 160, 220)
    with film_at(tmp_path / "a.mp4", 10, live=True) as film:
        for grey in greys:
            film.write(Image.new("RGB", (32, 32), (grey,) * 3))
    seen = [
        greys[np.abs(np.array(greys) - frame.mean()).argmin()] for frame in read_clip(tmp_path / "a.mp4")[0]
    ]
    assert seen == [40] + [100] * 2 + [160] + [220] * 7
