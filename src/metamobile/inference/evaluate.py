"""`metamobile eval`: a model's figures on a folder of pictures. Without torch for an exported file."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from metamobile.data.folder import Sample, eval_samples, open_folder
from metamobile.data.inspect import inspect_folder
from metamobile.errors import DataError
from metamobile.files import write_text
from metamobile.inference.model import Model, load
from metamobile.inference.predict import read_batches
from metamobile.tasks.classify.results import Metric
from metamobile.weights.card import Card


def evaluate(
    model: str | Path | Model,
    data: str | Path,
    *,
    json: str | Path | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    workers: int = 0,
) -> dict[str, Any]:
    """`Metric.compute()` of the model on `data`, with `model`, `data` and the number of `pictures`.

    Takes the validation split if the folder has one, and all of it if not; the folder that the model was
    trained on is split as then. Classes are matched by folder name, pictures preprocessed as the card says.
    Errors: ValueError for a class the model does not know, DataError for a picture that cannot be read.
    """
    opened = model if isinstance(model, Model) else load(model, device)
    samples, split = held_out(opened.card, data)
    metric = Metric(opened.card.names)
    done = 0
    paths = [sample.path for sample in samples]
    for read, pixels, failures in read_batches(paths, opened.card.preprocess, batch_size, workers):
        if failures:
            raise DataError(f"{failures[0]}; `metamobile check {data}` names every such file")
        metric.update(opened.runtime.run(pixels), [s.target for s in samples[done : done + len(read)]])
        done += len(read)
    name = opened.card.variant if isinstance(model, Model) else str(model)
    figures = {"model": name, "data": str(data), "split": split, "pictures": done, **metric.compute()}
    if json is not None:
        write_text(json, json_format.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    return figures


def held_out(card: Card, data: str | Path) -> tuple[list[Sample], str]:
    """The samples to measure on, and where they come from in words.

    The folder that the model was trained on is known by its name, wherever it lies now; if training split it,
    it is split the same way, so that no training picture is measured.
    """
    recipe = card.recipe.get("data", {})
    if not recipe.get("path") or Path(recipe["path"]).name != Path(data).name:
        return eval_samples(data, card.classes)
    dropped = inspect_folder(data).files_to_drop() if recipe.get("drop_bad") else ()
    folder = open_folder(data, val_fraction=recipe["val_fraction"], seed=recipe["seed"], exclude=dropped)
    if folder.classes != card.classes:
        raise DataError(
            f"{data}: its classes are no longer those of the model, which are {', '.join(card.classes)}"
        )
    return folder.val, folder.split
