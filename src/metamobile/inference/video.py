"""Videos and cameras for `metamobile predict`: frames in, answers and a film out. Without torch.

H and W: height and width of a frame in pixels.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageChops

from metamobile.deploy.raw import reader
from metamobile.errors import PictureError, nearest
from metamobile.files import free_name, write_text
from metamobile.inference.model import Model, check_options
from metamobile.tasks import get_results
from metamobile.tasks.drawing import enlarged

if TYPE_CHECKING:
    from metamobile.inference.predict import Predictions

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})
CODECS = ("avc1", "mp4v")  # H.264, which pip's OpenCV for Linux cannot write; MPEG-4 Part 2, which all can
USUAL_RATE = 30.0  # frames a second, where a file or a camera does not tell its own
PANEL, OPACITY = 1 / 3, 0.85  # share of a frame's height that a legend may take; how much of it is seen
SHORT = 0.95  # share of the frames told of, below which a file counts as cut off: the count may be a few off
PATIENCE, WARM_UP = 300, 5  # reads in a row without a frame, after which a file or a camera is given up
IN_MEMORY = 64 << 20  # bytes of packed results, before they go to a temporary file
_CAMERA = re.compile(r"camera(?::(\d+))?")


def is_video(item: str | Path) -> bool:
    """By name alone: a suffix of VIDEO_SUFFIXES; "camera" or "camera:1". A GIF is a picture."""
    return device_of(item) is not None or Path(item).suffix.lower() in VIDEO_SUFFIXES


def device_of(item: str | Path) -> int | None:
    """The number of a camera, 0 for "camera"; None for all else, and for a file or folder of that name."""
    found = _CAMERA.fullmatch(str(item))
    return None if found is None or Path(item).exists() else int(found[1] or 0)


def predict_video(
    model: Model,
    source: str | Path,
    *,
    out: str | Path | None = None,
    json: str | Path | None = None,
    csv: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    called: str | None = None,
    **options: Any,
) -> Predictions:
    """Answer for each frame of a video file, or of a camera ("camera", "camera:1") until Ctrl-C.

    A result's `picture` is "clip.mp4#12", counted from 0; its image_id in COCO's results is 12. The annotated
    video goes into the folder `out` as clip.mp4 (nothing that is there is overwritten), whole or not at all:
    of the frames' size with even sides, at their rate, without sound, in H.264 where this OpenCV can write
    it, else in MPEG-4 Part 2, which browsers do not play. A camera's keeps pace with what was seen.
    `progress` is called with (frames done, frames in all or None) after each. `called` is the model's name in
    the JSON, else its variant.

    `results` is a sequence that unpacks a result at each look, so that the masks of a long video need little
    memory; those of a camera are kept for `json` and `csv` only. Frames that cannot be read are failures, as
    is the missing end of a file. `options` are those of `predict`. Errors: ValueError for an unknown option,
    a missing library, camera or file; PictureError for a file without any frame that can be read.
    """
    # here, as that module may import this one
    from metamobile.inference.predict import Failure, Predictions, check_places

    check_places(out, json, csv)
    card, module = model.card, get_results(model.card.task)
    check_options(options, module.OPTIONS, card.task)
    runtime = module.configure(model.runtime, **options)
    read = reader(runtime)
    kept, numbers = Kept(), []
    with ExitStack() as stack:
        clip = stack.enter_context(Clip(source))
        keep = clip.device is None or json is not None or csv is not None
        film = None
        if out is not None:
            path = free_name(Path(out) / f"{clip.stem}.mp4")
            film = stack.enter_context(film_at(path, clip.rate, live=clip.device is not None))
        try:
            for number, picture in clip:
                name, pixels = f"{source}#{number}", read(picture)
                outputs, shape = runtime.run(pixels[None]), (pixels.shape[1], pixels.shape[2])
                (result,) = module.decode(outputs, card.names, [name], [picture.size], [shape], **options)
                if keep:
                    numbers.append(number)  # first: a Ctrl-C in between must not leave a result without one
                    kept.append(result)
                if film is not None:
                    film.write(on_frame(module.draw(picture, result), picture))
                if progress is not None:
                    progress(clip.position, clip.total)
        except KeyboardInterrupt:
            if clip.device is None:
                raise
            # the way to end a camera's stream: what was seen so far is the answer

    failures = [Failure(f"{source}#{number}", error) for number, error in clip.failures]
    about: dict[str, Any] = {"model": called or card.variant, "variant": card.variant, "classes": card.names}
    about |= {"category_ids": card.category_ids, "failures": [vars(failure) for failure in failures]}
    about["video"] = {"source": str(source), "frames": clip.read, "frames_per_second": clip.rate}
    if hasattr(module, "to_coco"):  # only that format has numbers for pictures
        about["image_ids"] = numbers
    if json is not None:
        write_text(json, module.json_text(kept, about))
    if csv is not None:
        write_text(csv, module.csv_text(kept, [(failure.picture, failure.error) for failure in failures]))
    return Predictions(card.task, cast("list[Any]", kept), failures)


class Kept(Sequence[Any]):
    """Results, packed, and beyond IN_MEMORY in a temporary file; each look at one gives a new copy of it."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # as long as the results live
        self._ends = [0]

    def append(self, result: Any) -> None:
        packed = zlib.compress(pickle.dumps(result, pickle.HIGHEST_PROTOCOL), level=1)
        self._file.seek(self._ends[-1])
        self._file.write(packed)
        self._ends.append(self._ends[-1] + len(packed))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        """By a number, or a list by a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        self._file.seek(self._ends[place])
        return pickle.loads(zlib.decompress(self._file.read(self._ends[place + 1] - self._ends[place])))


class Clip:
    """An open video file or camera: iterate over it once for (number, upright RGB picture) of its frames.

    device: of a camera, else None. rate: frames a second. position: frames passed, of which `read` could be
    read. failures: (frame number, what is wrong).
    """

    def __init__(self, source: str | Path) -> None:
        """Errors: as `predict_video`."""
        self.source, self.device = str(source), device_of(source)
        self.position = self.read = 0
        self.failures: list[tuple[int, str]] = []
        self._cv2 = load_opencv()
        if self.device is None:
            self._capture = _open_file(self._cv2, Path(source))
        else:
            self._capture = _open_camera(self._cv2, self.device)
        rate = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        told = 0 < rate <= 1000  # not so for NaN, nor for the ticks of a clock, 90000 a second
        self.rate = rate if told else USUAL_RATE
        if self.device is None and not told:
            logging.getLogger(__name__).warning(
                "%s: a frame rate of %g cannot be; it is taken as %g a second", source, rate, USUAL_RATE
            )
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        self._told = int(count) if self.device is None and 0 < count < 1e9 else None

    @property
    def stem(self) -> str:
        """Name of what is written, without its ending."""
        return Path(self.source).stem if self.device is None else self.source.replace(":", "-")

    @property
    def total(self) -> int | None:
        """Frames in all as the file tells, which is not reliable, but not below `position`."""
        return None if self._told is None else max(self._told, self.position)

    def __iter__(self) -> Iterator[tuple[int, Image.Image]]:
        """Errors: ValueError for a camera, PictureError for a file, without any frame that can be read."""
        missed = 0  # reads without a frame since the last one: damage in a file, if one more comes
        while not missed or self._may_go_on(missed):
            whole, frame = self._capture.read()
            if not whole:
                missed += 1
                continue
            if self.device is None:
                for number in range(self.position, self.position + missed):
                    self.failures.append((number, f"{self.source}#{number}: this frame is damaged"))
                self.position += missed
            self.position, self.read, missed = self.position + 1, self.read + 1, 0
            yield self.position - 1, _to_picture(self._cv2, frame)
        if not self.read:
            if self.device is not None:
                raise ValueError(f"{self.source}: it opens but sends no picture; close what else may use it")
            raise PictureError(f"{self.source}: no frame can be read; replace it or leave it out")
        if self._told is not None and self.position < SHORT * self._told:
            error = f"ends after {self.position} of {self._told} frames; it may be cut off or damaged"
            self.failures.append((self.position, f"{self.source}: {error}"))

    def _may_go_on(self, missed: int) -> bool:
        """A damaged frame is not the end of a file, nor is a late one that of a camera."""
        if self.device is not None:
            return missed < WARM_UP
        return missed < PATIENCE and self.position + missed < (self._told or 0)

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()


class Film:
    """A video file being written, by its first frame's size. live: frames are shown as long as they took."""

    def __init__(self, path: Path, rate: float, live: bool = False) -> None:
        self.path, self.rate, self.live = path, rate, live
        self.frames = 0
        self._cv2 = load_opencv()
        self._writer: Any = None
        self._size, self._start = (0, 0), 0.0

    def write(self, picture: Image.Image) -> None:
        """One of another size than the first is resized. Errors: ValueError for what cannot be written."""
        if self._writer is None:
            self._size = picture.width + picture.width % 2, picture.height + picture.height % 2
            self._writer = self._open()
            self._start = time.monotonic()
        times = 1
        if self.live:
            times = int((time.monotonic() - self._start) * self.rate) + 1 - self.frames
        frame = self._cv2.cvtColor(_grown(picture, self._size), self._cv2.COLOR_RGB2BGR)
        for _ in range(times):
            self._writer.write(frame)
            self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()

    def _open(self) -> Any:
        rates = dict.fromkeys((self.rate, round(self.rate, 1), max(1.0, round(self.rate))))
        for rate in rates:  # MPEG-4 refuses fractions with a denominator over 65535, such as 66.123 a second
            for codec in CODECS:
                with _silent(self._cv2):
                    code = self._cv2.VideoWriter.fourcc(*codec)
                    writer = self._cv2.VideoWriter(str(self.path), code, rate, self._size)
                if writer.isOpened():
                    self.rate = rate
                    return writer
        sides = " x ".join(map(str, self._size))
        raise ValueError(
            f"{self.path.parent}: OpenCV cannot write a video of {sides} pixels there; expected a folder to "
            f"write into and one of the codecs {', '.join(CODECS)}"
        )


@contextmanager
def film_at(path: Path, rate: float, live: bool = False) -> Iterator[Film]:
    """A film that becomes `path` when the block ends, if it has a frame, and vanishes when it raises.

    Errors: OSError for a file that is not whole then: OpenCV does not tell of a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")  # the ending is the format
    film = Film(temporary, rate, live)
    try:
        yield film
        film.close()
        if film.frames:
            if not _is_whole(film):
                raise OSError(f"{path}: {film.frames} frames were not written; is the disk full?")
            os.replace(temporary, path)
    finally:
        film.close()
        temporary.unlink(missing_ok=True)


def on_frame(sheet: Image.Image, picture: Image.Image) -> Image.Image:
    """A drawing at its picture's size; what it has below the picture is laid over the lower left corner."""
    inner = enlarged(picture).size
    left = (sheet.width - inner[0]) // 2
    shown = sheet.crop((left, 0, left + inner[0], inner[1]))
    if shown.size != picture.size:
        shown = shown.resize(picture.size, Image.Resampling.LANCZOS)
    if sheet.height == inner[1]:
        return shown
    panel = sheet.crop((0, inner[1], sheet.width, sheet.height))
    ground = Image.new(panel.mode, panel.size, panel.getpixel((0, panel.height - 1)))
    inked = ImageChops.difference(panel, ground).getbbox() or (0, 0, 1, 1)
    panel = panel.crop((0, 0, min(panel.width, inked[2] + inked[0]), panel.height))  # margins of equal width
    scale = min(1, shown.width / panel.width, PANEL * shown.height / panel.height)
    panel = panel.resize(
        (max(1, round(panel.width * scale)), max(1, round(panel.height * scale))), Image.Resampling.LANCZOS
    )
    corner = (0, shown.height - panel.height)
    under = shown.crop((*corner, panel.width, shown.height))
    shown.paste(Image.blend(under, panel, OPACITY), corner)
    return shown


def load_opencv() -> Any:
    """Errors: ValueError where it is missing or cannot be loaded."""
    # What FFmpeg would write to stderr is said in our own words. It looks here once, at its first use.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ValueError('videos and cameras need OpenCV: pip install "metamobile[video]"') from error
    except ImportError as error:  # the build with windows asks for libraries that servers do not have
        raise ValueError(f"OpenCV cannot be loaded ({error}); pip install opencv-python-headless") from error
    return cv2


@contextmanager
def _silent(cv2: Any) -> Iterator[None]:
    """OpenCV's own messages off. They have one home in version 4 and another in version 5."""
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(0)
    try:
        yield
    finally:
        log.setLogLevel(level)


def _open_file(cv2: Any, path: Path) -> Any:
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such file{nearest(path.name, siblings)}")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise PictureError(f"{path}: cannot be opened ({error.strerror}); expected a video file") from error
    if empty:
        raise PictureError(f"{path}: the file is empty; replace it or leave it out")
    # FFmpeg alone: other readers take digits in a name for a numbered series of pictures
    ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    with _silent(cv2):
        # absolute, since FFmpeg takes what stands before a colon for a protocol
        capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG if ffmpeg else cv2.CAP_ANY)
    if not capture.isOpened():
        raise PictureError(
            f"{path}: not a video that can be read, or cut off; expected a whole MP4, MOV, AVI, MKV or WebM"
        )
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # upright, as a phone's file says; not on in each version
    return capture


def _open_camera(cv2: Any, device: int) -> Any:
    with _silent(cv2):
        capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        raise ValueError(
            f"camera {device} cannot be opened; expected one that is plugged in, allowed to this program and "
            f"used by no other; the next is called camera:{device + 1}"
        )
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # what is seen now, not some frames ago
    return capture


def _to_picture(cv2: Any, frame: np.ndarray) -> Image.Image:
    """uint8 (H, W, 3) in blue, green, red, or (H, W) in grey."""
    grey = frame.ndim == 2 or frame.shape[2] == 1
    return Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB if grey else cv2.COLOR_BGR2RGB))


def _grown(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) of this size: an edge repeated where a side is odd, resized if it is another size."""
    width, height = size[0] - picture.width, size[1] - picture.height
    if not (0 <= width <= 1 and 0 <= height <= 1):
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
    return np.pad(np.asarray(picture), ((0, height), (0, width), (0, 0)), mode="edge")


def _is_whole(film: Film) -> bool:
    cv2 = load_opencv()
    with _silent(cv2):
        check = cv2.VideoCapture(str(film.path.absolute()))
        whole = check.isOpened() and check.read()[0]
        check.release()
    return whole
