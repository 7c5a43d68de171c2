"""`metamobile predict`: pictures in, answers out; a broken one does not stop the others. Without torch."""

from __future__ import annotations

import csv as csv_format
import io
import json as json_format
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metamobile.data.pictures import find_pictures, read_picture
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.deploy.runtimes import Pixels
from metamobile.errors import PictureError
from metamobile.files import write_text
from metamobile.inference.model import Model, load
from metamobile.tasks.classify.results import Classification, decode, draw


@dataclass
class Failure:
    """A picture that could not be read, and why."""

    picture: str
    error: str

    def __str__(self) -> str:
        return self.error


@dataclass
class Predictions:
    """Answers in the order of the pictures, and the pictures without one."""

    results: list[Classification] = field(default_factory=list)
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
    top: int = 5,
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 1,
) -> Predictions:
    """Answer for files, folders, globs or "-" (paths from stdin), a batch at a time.

    Writes annotated pictures into the folder `out` (nothing that is there is overwritten), all answers into
    `json`, and one row a picture into `csv`. Errors: ValueError for an unknown model or nothing to read.
    """
    given = [pictures] if isinstance(pictures, str | Path) else pictures
    paths = find_pictures(given)
    opened = model if isinstance(model, Model) else load(model, device)
    answered = Predictions()
    for read, pixels, failures in read_batches(paths, opened.card.preprocess, batch_size, workers):
        answered.failures += failures
        if not read:
            continue
        results = decode(opened.runtime.run(pixels), opened.card, [str(path) for path in read], top)
        answered.results += results
        if out is not None:
            for path, result in zip(read, results, strict=True):
                draw(read_picture(path), result).save(_free_name(Path(out), path.stem), quality=92)
    if json is not None:
        about = {"model": _about(model), "variant": opened.card.variant, "classes": opened.card.names}
        write_text(json, json_format.dumps(about | answered.to_dict(), indent=1, ensure_ascii=False) + "\n")
    if csv is not None:
        write_text(csv, _table(answered, min(top, len(opened.card.names))))
    return answered


def read_batches(
    paths: Sequence[Path], record: Preprocess, batch_size: int, workers: int = 1
) -> Iterator[tuple[list[Path], Pixels, list[Failure]]]:
    """Read and preprocess in `workers` threads, one batch ahead: what was read, (B, 3, H, W), what failed."""
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected at least 1")

    def read(path: Path) -> Pixels:
        return preprocess(read_picture(path), record)

    def collect(futures: list[tuple[Path, Future[Pixels]]]) -> tuple[list[Path], Pixels, list[Failure]]:
        pixels, done, failures = [], [], []
        for path, future in futures:
            try:
                pixels.append(future.result())
                done.append(path)
            except PictureError as error:
                failures.append(Failure(str(path), str(error)))
        return done, np.stack(pixels) if pixels else np.empty((0, 3, *record.size), np.float32), failures

    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead: deque[list[tuple[Path, Future[Pixels]]]] = deque()
        for start in range(0, len(paths), batch_size):
            ahead.append([(path, pool.submit(read, path)) for path in paths[start : start + batch_size]])
            if len(ahead) == 2:
                yield collect(ahead.popleft())
        while ahead:
            yield collect(ahead.popleft())


def _about(model: str | Path | Model) -> str:
    return model.card.variant if isinstance(model, Model) else str(model)


def _free_name(folder: Path, stem: str) -> Path:
    """folder/stem.jpg, or with the first number from 2 that no file there has."""
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f"{stem}.jpg", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.jpg", number + 1
    return path


def _table(predictions: Predictions, top: int) -> str:
    """CSV: picture, label1, score1, ..., error; one row a picture, the broken ones last."""
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    columns = [f"{name}{rank}" for rank in range(1, top + 1) for name in ("label", "score")]
    writer.writerow(["picture", *columns, "error"])
    for result in predictions.results:
        pairs = zip(result.labels, result.scores, strict=True)
        writer.writerow(
            [result.picture, *(cell for label, score in pairs for cell in (label, f"{score:.6f}")), ""]
        )
    for failure in predictions.failures:
        writer.writerow([failure.picture, *[""] * len(columns), failure.error])
    return text.getvalue()
