"""`metamobile predict`: pictures in, answers out; a broken one does not stop the others. Without torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metamobile.data.pictures import NOTHING_GIVEN, find_pictures, read_picture
from metamobile.deploy.raw import Read, reader
from metamobile.deploy.runtimes import Pixels
from metamobile.errors import PictureError
from metamobile.files import expect_file, expect_folder, free_name, write_text
from metamobile.inference.model import Model, check_options, load, model_name
from metamobile.inference.video import is_video, predict_video
from metamobile.tasks import get_results


@dataclass
class Failure:
    """A picture that could not be read, and why."""

    picture: str
    error: str

    def __str__(self) -> str:
        return self.error


@dataclass
class Predictions:
    """Answers in the order of the pictures, of the task's own type, and the pictures without one."""

    task: str
    results: Sequence[Any] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "results": [result.to_dict() for result in self.results],
            "failures": [vars(failure) for failure in self.failures],
        }


def predict(
    model: str | Path | Model,
    pictures: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    json: str | Path | None = None,
    csv: str | Path | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
    **options: Any,
) -> Predictions:
    """Answer for files, folders, globs or "-" (paths from stdin), a batch at a time.

    A video, or "camera" ("camera:1"), is answered frame by frame (see `predict_video`). Writes annotated
    pictures into the folder `out` (nothing that is there is overwritten), all answers into `json`, and their
    table into `csv`. `progress` gets (done, in all or None) of pictures or frames. `options` are the task's
    own: a classifier's `top`, a detector's `conf` and `iou`, a segmenter's `slide`; so is `batch_size` unless
    given. A path that is not there is a failure beside others that are. Errors: ValueError for an unknown
    model, an option that is not the task's, nothing to read, or a file or folder that cannot be written.
    """
    given = [pictures] if isinstance(pictures, str | Path) else pictures
    check_places(out, json, csv)
    opened = model if isinstance(model, Model) else load(model, device)
    if len(given) == 1 and is_video(given[0]):
        return predict_video(
            opened,
            given[0],
            out=out,
            json=json,
            csv=csv,
            progress=progress,
            called=model_name(model),
            **options,
        )
    paths, missing = find_given(given)
    card, module = opened.card, get_results(opened.card.task)
    check_options(options, module.OPTIONS, card.task)
    batch_size = module.BATCH_SIZE if batch_size is None else batch_size
    runtime = module.configure(opened.runtime, **options)
    found: list[Any] = []
    answered = Predictions(card.task, found, missing)
    done = 0
    for batch in read_batches(paths, reader(runtime), batch_size, workers):
        answered.failures += batch.failures
        done += len(batch.paths) + len(batch.failures)
        if progress is not None:
            progress(done, len(paths))
        if not batch.paths:
            continue
        names = [str(path) for path in batch.paths]
        results = module.decode(
            runtime.run(batch.pixels), card.names, names, batch.sizes, batch.shapes, **options
        )
        found += results
        if out is not None:
            for path, result in zip(batch.paths, results, strict=True):
                drawing = free_name(Path(out) / f"{path.stem}.jpg")
                module.draw(read_picture(path), result).save(drawing, quality=92)
                module.save_more(result, drawing)
    about: dict[str, Any] = {"model": model_name(model), "variant": card.variant, "classes": card.names}
    about |= {"category_ids": card.category_ids, "failures": [vars(f) for f in answered.failures]}
    if json is not None:
        write_text(json, module.json_text(answered.results, about))
    if csv is not None:
        failures = [(failure.picture, failure.error) for failure in answered.failures]
        write_text(csv, module.csv_text(answered.results, failures))
    return answered


def check_places(out: str | Path | None, json: str | Path | None, csv: str | Path | None) -> None:
    """Errors: ValueError, before any work, for a file `out` and for a folder `json` or `csv`."""
    if out is not None:
        expect_folder(out)
    for path in (json, csv):
        if path is not None:
            expect_file(path)


def find_given(given: Sequence[str | Path]) -> tuple[list[Path], list[Failure]]:
    """As `find_pictures`, but with what is not there, and a video among others, as failures.

    Errors: ValueError where nothing is there.
    """
    paths: list[Path] = []
    failures: list[Failure] = []
    for item in given:
        if is_video(item):
            failures.append(
                Failure(str(item), f"{item}: a video or camera is answered alone, without others")
            )
            continue
        try:
            paths += find_pictures([item])
        except ValueError as error:
            failures.append(Failure(str(item), str(error)))
    if not paths:
        raise ValueError("; ".join(map(str, failures)) or NOTHING_GIVEN)
    return paths, failures


class Batch(NamedTuple):
    """Pictures that were read: (B, 3, h, w), as the runtime takes them, their (width, height) before; and
    those that could not be."""

    paths: list[Path]
    pixels: Pixels
    sizes: list[tuple[int, int]]
    failures: list[Failure]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of the network's input, for each picture."""
        return [(self.pixels.shape[2], self.pixels.shape[3])] * len(self.paths)


def read_batches(paths: Sequence[Path], prepare: Read, batch_size: int, workers: int = 1) -> Iterator[Batch]:
    """Read and `prepare` (see `deploy.raw.reader`) in `workers` threads, one batch ahead; pictures of a batch
    have one size."""
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected at least 1")

    def read(path: Path) -> tuple[Pixels, tuple[int, int]]:
        picture = read_picture(path)
        return prepare(picture), picture.size

    def collect(futures: list[tuple[Path, Future[Any]]]) -> Iterator[Batch]:
        done, failures = [], []
        for path, future in futures:
            try:
                done.append((path, *future.result()))
            except PictureError as error:
                failures.append(Failure(str(path), str(error)))
        if not done:
            yield Batch([], np.empty((0, 3, 0, 0), np.float32), [], failures)
        for _, group in groupby(done, key=lambda item: item[1].shape):
            some, pixels, sizes = zip(*group, strict=True)
            yield Batch(list(some), np.stack(pixels), list(sizes), failures)
            failures = []

    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead: deque[list[tuple[Path, Future[Any]]]] = deque()
        for start in range(0, len(paths), batch_size):
            ahead.append([(path, pool.submit(read, path)) for path in paths[start : start + batch_size]])
            if len(ahead) == 2:
                yield from collect(ahead.popleft())
        while ahead:
            yield from collect(ahead.popleft())
