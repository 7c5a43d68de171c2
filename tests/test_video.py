"""Videos: frames answered as pictures are, a film that is whole or not there, broken files."""

from __future__ import annotations

import csv
import json
import logging
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metamobile.errors import PictureError
from metamobile.inference import video
from metamobile.inference.model import Model, load
from metamobile.inference.video import Film, Kept, device_of, film_at, is_video, on_frame, predict_video
from small_clips import Colours, cv2, frame_with_square, left_in, read_clip, write_clip
from small_model import make_run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Model:
    return load(make_run(tmp_path_factory.mktemp("runs") / "insects"))


def test_is_video(tmp_path: Path, monkeypatch) -> None:
    for yes in ("a.mp4", "b/IMG_0001.MOV", Path("c.webm"), "d.avi", "e.mkv", "f.m4v", "camera", "camera:12"):
        assert is_video(yes), yes
    for no in ("a.gif", "a.jpg", "clips", "mp4", "cameras", "camera:", "camera:x", "my/camera", "-", "*.png"):
        assert not is_video(no), no
    assert [device_of(name) for name in ("camera", "camera:0", "camera:12", "a.mp4")] == [0, 0, 12, None]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camera").mkdir()  # a folder of pictures keeps its name; the device has another
    assert not is_video("camera")
    assert is_video("camera:0")


def test_frames_are_answered_as_pictures_are(classifier: Model, clip: Path, tmp_path: Path) -> None:
    """Independent reference: the frames as OpenCV reads them, each given to the model as a picture."""
    answered = predict_video(classifier, str(clip), json=tmp_path / "a.json", csv=tmp_path / "a.csv", top=2)
    frames, _ = read_clip(clip)
    assert len(answered.results) == len(frames) == 6
    assert len({result.scores[0] for result in answered.results}) > 1  # the frames differ
    for number, (result, frame) in enumerate(zip(answered.results, frames, strict=True)):
        (alone,) = classifier.predict(Image.fromarray(frame), top=2)
        assert result.picture == f"{clip}#{number}"
        assert (result.scores, result.indices) == (alone.scores, alone.indices)
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["results"] == [result.to_dict() for result in answered.results]
    assert written["video"] == {"source": str(clip), "frames": 6, "frames_per_second": 12.5}
    assert "image_ids" not in written
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["picture"] for row in rows] == [f"{clip}#{number}" for number in range(6)]
    assert answered.task == "classify"
    assert not answered.failures


def test_segmenter(clip: Path, tmp_path: Path) -> None:
    """By hand: the square has 24 x 24 of 96 x 64 pixels; the codec blurs its edge by less than one."""
    answered = predict_video(
        Model(Colours()), clip, out=tmp_path / "out", json=tmp_path / "a.json", csv=tmp_path / "a.csv"
    )
    for number, result in enumerate(answered.results):
        assert result.mask.shape == (64, 96)
        x = 4 * number
        assert (result.mask[18:38, x + 2 : x + 22] == 0).all()
        assert dict(result.shares())[0] == pytest.approx(24 * 24 / (96 * 64), rel=0.12)
    written = json.loads((tmp_path / "a.json").read_text())
    assert [set(found["shares"]) for found in written["results"]] == [{"red", "blue"}] * 6
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 12
    assert left_in(tmp_path / "out") == ["clip.mp4"]  # and no mask a frame


def test_detector(clip: Path, tmp_path: Path) -> None:
    answered = predict_video(Model(Colours("detect")), clip, out=tmp_path / "out", json=tmp_path / "a.json")
    for number, result in enumerate(answered.results):
        (box,) = result.boxes
        np.testing.assert_allclose(box, [4 * number, 16, 4 * number + 24, 40], atol=1)
    entries = json.loads((tmp_path / "a.json").read_text())
    assert [entry["image_id"] for entry in entries] == [0, 1, 2, 3, 4, 5]
    assert {entry["category_id"] for entry in entries} == {7}
    assert len(read_clip(tmp_path / "out" / "clip.mp4")[0]) == 6


@pytest.mark.parametrize("size", [(96, 64), (320, 240)])
def test_the_film_has_the_frames_size_rate_and_number(tmp_path: Path, size: tuple[int, int]) -> None:
    """A drawing is enlarged, and has a legend below it: neither changes the film's size."""
    clip = write_clip(tmp_path / "clip.mp4", size=size)
    predict_video(Model(Colours()), clip, out=tmp_path / "out")
    frames, rate = read_clip(tmp_path / "out" / "clip.mp4")
    assert [frame.shape for frame in frames] == [(size[1], size[0], 3)] * 6
    assert rate == 12.5
    for number, frame in enumerate(frames):  # the square is still where it was, in the colour of its class
        inside = frame[20:36, 4 * number + 6 : 4 * number + 18].reshape(-1, 3).mean(axis=0)
        outside = frame[4:12, 60:90].reshape(-1, 3).mean(axis=0)
        assert np.abs(inside - outside).max() > 60


def test_odd_sides_grow_by_a_repeated_edge(tmp_path: Path) -> None:
    picture = Image.effect_noise((33, 17), 60).convert("RGB").resize((330, 170)).resize((33, 17))
    with film_at(tmp_path / "a.mp4", 25) as film:
        for _ in range(3):
            film.write(picture)
        film.write(picture.resize((50, 40)))  # a stream may change its size
    frames, _ = read_clip(tmp_path / "a.mp4")
    assert [frame.shape for frame in frames] == [(18, 34, 3)] * 4
    grown = video._grown(picture, (34, 18))
    np.testing.assert_array_equal(grown[:17, :33], np.asarray(picture))
    np.testing.assert_array_equal(grown[17, :33], grown[16, :33])
    np.testing.assert_array_equal(grown[:, 33], grown[:, 32])


def test_a_panel_lies_over_the_lower_left(tmp_path: Path) -> None:
    picture = Image.new("RGB", (400, 300), (200, 200, 200))
    sheet = Image.new("RGB", (400, 500), (17, 20, 26))
    sheet.paste(picture)
    sheet.paste((255, 255, 255), (10, 310, 190, 480))  # ends 10 pixels after its margin of 10
    shown = np.asarray(on_frame(sheet, picture))
    assert shown.shape == (300, 400, 3)
    dark = np.flatnonzero((shown[-1] < 100).all(axis=1))
    assert dark.max() + 1 == 100  # 200 x 200 pixels, halved to a third of the height
    assert (shown[:199] == 200).all()
    assert (shown[:, 101:] == 200).all()
    assert on_frame(picture, picture).tobytes() == picture.tobytes()


def test_rates_that_the_codec_refuses(tmp_path: Path) -> None:
    """66.123 frames a second is no fraction that MPEG-4 can store."""
    for rate, expected in ((29.97, 29.97), (66.123, 66.1), (1 / 7, 1 / 7)):
        with film_at(tmp_path / "a.mp4", rate) as film:
            film.write(frame_with_square(0))
        assert read_clip(tmp_path / "a.mp4")[1] == pytest.approx(expected, abs=1e-3)


def test_nothing_is_overwritten(clip: Path) -> None:
    before = clip.read_bytes()
    for _ in range(2):
        predict_video(Model(Colours()), clip, out=clip.parent)
    assert clip.read_bytes() == before
    assert left_in(clip.parent) == ["clip-2.mp4", "clip-3.mp4", "clip.mp4"]


def test_interrupted_writing_leaves_no_file(clip: Path, tmp_path: Path) -> None:
    for wrong in (KeyboardInterrupt, RuntimeError):
        runtime = Colours(interrupt_at=3)

        def fail(done: int, total: int | None, wrong: type[BaseException] = wrong) -> None:
            assert left_in(tmp_path / "out") == [f".clip.{video.os.getpid()}.part.mp4"]
            if done == 3:
                raise wrong

        with pytest.raises(wrong):
            predict_video(Model(runtime), clip, out=tmp_path / "out", json=tmp_path / "a.json", progress=fail)
        assert left_in(tmp_path / "out") == []
    assert left_in(tmp_path) == ["clip.mp4", "out"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """OpenCV tells nothing of it; a limit on the size of files does the same to it."""
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match="a.mp4: 20 frames were not written"),
            film_at(tmp_path / "a.mp4", 25) as film,
        ):
            for pixels in noise:
                film.write(Image.fromarray(pixels))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_in(tmp_path) == []


def test_progress(clip: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    predict_video(Model(Colours()), clip, progress=lambda *call: calls.append(call))
    assert calls == [(number, 6) for number in range(1, 7)]


def test_a_phones_video_is_upright(tmp_path: Path) -> None:
    """The file's own matrix says: a quarter turn clockwise, as of a phone held upright."""
    content = bytearray(write_clip(tmp_path / "clip.mp4", 2).read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack(">i", content[matrix : matrix + 4]) == (1 << 16,)
    turn = (0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *turn)
    (tmp_path / "turned.mp4").write_bytes(content)
    answered = predict_video(Model(Colours()), tmp_path / "turned.mp4", out=tmp_path / "out")
    first = answered.results[0]
    assert first.size == (64, 96)
    # rows 16 to 40 from the top become columns 24 to 48; columns 0 to 24 become rows
    assert (first.mask[2:22, 26:46] == 0).all()
    assert (first.mask[30:] == 2).all()
    assert read_clip(tmp_path / "out" / "turned.mp4")[0][0].shape == (96, 64, 3)


def test_files_without_a_video(tmp_path: Path, capfd) -> None:
    model = Model(Colours())
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all " * 100)
    whole = write_clip(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # an MP4's index is at its end
    (tmp_path / "folder.mp4").mkdir()
    for name, words in {
        "empty.mp4": "the file is empty",
        "text.mp4": "not a video that can be read, or cut off",
        "cut.mp4": "not a video that can be read, or cut off",
        "folder.mp4": "cannot be opened",
    }.items():
        with pytest.raises(PictureError, match=f"{name}: {words}") as caught:
            predict_video(model, tmp_path / name, out=tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="clop.mp4: no such file; did you mean 'clip.mp4'"):
        predict_video(model, tmp_path / "clop.mp4")
    with pytest.raises(ValueError, match="conf is no option of this model, whose task is segment"):
        predict_video(model, tmp_path / "clip.mp4", conf=0.5)
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr().err == ""  # FFmpeg and OpenCV say nothing beside it


def test_names_that_opencv_misreads(tmp_path: Path, monkeypatch) -> None:
    """A colon is no protocol, digits and a percent sign are no numbered series of pictures."""
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "clip_001.mp4", "a%02d.mp4"):
        write_clip(tmp_path / "clip.mp4", 2).rename(tmp_path / name)
        assert [r.picture for r in predict_video(Model(Colours()), name).results] == [
            f"{name}#0",
            f"{name}#1",
        ]


def test_damaged_frames_are_failures(tmp_path: Path) -> None:
    """Reading goes on after them, and frames keep their numbers."""
    clip = write_clip(tmp_path / "clip.mp4", 60, size=(320, 240))
    content = bytearray(clip.read_bytes())
    third = len(content) // 3
    for place in range(third, third + len(content) // 10):
        content[place] ^= 0x5A
    clip.write_bytes(content)
    answered = predict_video(Model(Colours("detect")), clip, json=tmp_path / "a.json", csv=tmp_path / "a.csv")
    bad = [int(failure.picture.rpartition("#")[2]) for failure in answered.failures]
    assert 0 < len(bad) < 20
    assert str(answered.failures[0]) == f"{clip}#{bad[0]}: this frame is damaged"
    numbers = [int(result.picture.rpartition("#")[2]) for result in answered.results]
    assert sorted(numbers + bad) == list(range(60))
    np.testing.assert_allclose(answered.results[-1].boxes[0], [4 * 59, 16, 4 * 59 + 24, 40], atol=3)
    assert [entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())] == numbers
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["picture"] for row in rows if row["error"]] == [f"{clip}#{number}" for number in bad]


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    """The head of an AVI tells of frames that are not there."""
    whole = write_clip(tmp_path / "clip.avi", 60, codec="MJPG").read_bytes()
    (tmp_path / "clip.avi").write_bytes(whole[: len(whole) // 2])
    calls: list[tuple[int, int | None]] = []
    answered = predict_video(
        Model(Colours()), tmp_path / "clip.avi", progress=lambda *call: calls.append(call)
    )
    read = len(answered.results)
    assert 5 < read < 40
    assert calls[-1] == (read, 60)
    (failure,) = answered.failures
    assert f"clip.avi: ends after {read} of 60 frames" in str(failure)


def test_a_rate_that_cannot_be_is_told(clip: Path, monkeypatch, caplog) -> None:
    real = cv2.VideoCapture

    class Odd:
        def __init__(self, *args: Any) -> None:
            self.capture = real(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.capture, name)

        def get(self, key: int) -> float:
            odd = {cv2.CAP_PROP_FPS: 90000.0, cv2.CAP_PROP_FRAME_COUNT: -9.2e18}
            return odd[key] if key in odd else self.capture.get(key)

    monkeypatch.setattr(cv2, "VideoCapture", Odd)
    calls: list[tuple[int, int | None]] = []
    with caplog.at_level(logging.WARNING):
        predict_video(Model(Colours()), clip, out=clip.parent, progress=lambda *call: calls.append(call))
    assert "clip.mp4: a frame rate of 90000 cannot be" in caplog.text
    assert calls[-1] == (6, None)
    monkeypatch.undo()
    assert read_clip(clip.parent / "clip-2.mp4")[1] == 30


def test_kept_results_are_small_and_the_same(monkeypatch) -> None:
    monkeypatch.setattr(video, "IN_MEMORY", 1000)
    masks = [np.full((400, 600), number, np.uint8) for number in range(30)]
    kept = Kept()
    for number, mask in enumerate(masks):
        kept.append((number, mask))
    assert len(kept) == 30
    assert [number for number, _ in kept] == list(range(30))
    for index in (0, 7, -1):
        np.testing.assert_array_equal(kept[index][1], masks[index])
    assert [number for number, _ in kept[3:9:2]] == [3, 5, 7]
    with pytest.raises(IndexError):
        kept[30]
    assert kept._ends[-1] < 0.02 * sum(mask.nbytes for mask in masks)
    assert kept._file._rolled  # to a file on disk


def test_missing_library(clip: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for source in (clip, "camera"):
        with pytest.raises(ValueError, match=r'need OpenCV: pip install "metamobile\[video\]"'):
            predict_video(Model(Colours()), source)


def test_a_library_that_cannot_be_loaded(clip: Path, tmp_path: Path, monkeypatch) -> None:
    """What the build of OpenCV with windows says on a server."""
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"libGL.so.1: .*; pip install opencv-python-headless"):
        predict_video(Model(Colours()), clip)


def test_no_torch_and_no_opencv_until_needed() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "import metamobile_cli\n"
        "from metamobile.inference.video import is_video\n"
        "print(is_video('a.mp4'), 'cv2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"


def test_no_codec(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video, "CODECS", ("none",))
    film = Film(tmp_path / "a.mp4", 25)
    with pytest.raises(ValueError, match="OpenCV cannot write a video of 96 x 64 pixels there"):
        film.write(frame_with_square(0))
