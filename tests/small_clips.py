"""Small clips of a moving square, and a network to be followed by hand: for videos and cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metamobile.data.preprocess import Preprocess
from metamobile.inference import video
from metamobile.weights.card import Card

cv2 = pytest.importorskip("cv2")
video.load_opencv()  # before its first use here: FFmpeg looks only then how much it may say

GROUND, RED = (20, 40, 200), (220, 30, 30)  # RGB; JPEG-like codecs keep them within some levels


def frame_with_square(number: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A red square of 24 pixels on blue, which moves by 4 pixels a frame."""
    picture = Image.new("RGB", size, GROUND)
    picture.paste(RED, (4 * number, 16, 4 * number + 24, 40))
    return picture


def write_clip(
    path: Path, frames: int = 6, *, codec: str = "mp4v", rate: float = 12.5, size: tuple[int, int] = (96, 64)
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.asarray(frame_with_square(number, size))[:, :, ::-1].copy())
    writer.release()
    return path


def read_clip(path: Path) -> tuple[list[np.ndarray], float]:
    """All frames in RGB, and the rate."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1][:, :, ::-1].copy())
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return frames, rate


class Colours:
    """A segmenter to be followed by hand: a pixel's class is its largest channel; or a detector of red."""

    name = "colours"

    def __init__(self, task: str = "segment", interrupt_at: int | None = None) -> None:
        record = Preprocess(size=(64, 96), mean=(0, 0, 0), std=(1, 1, 1), fit="stretch")
        classes = ["red", "green", "blue"]
        self.card = Card("colours", {}, task=task, classes=classes, preprocess=record)
        self.card.category_ids = [7, 8, 9]
        self.calls, self.interrupt_at = 0, interrupt_at

    def run(self, batch: np.ndarray) -> Any:
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls += 1
        if self.card.task == "segment":
            return batch
        rows, columns = np.nonzero(batch[0].argmax(0) == 0)
        box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
        return [{"boxes": np.array(box, np.float32), "scores": np.array([0.9]), "labels": np.array([0])}]


def left_in(folder: Path) -> list[str]:
    """Also hidden files."""
    return sorted(path.name for path in folder.iterdir())
