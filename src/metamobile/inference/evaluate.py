"""`metamobile eval`: a model's figures on a data set. Without torch for an exported file."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from metamobile.deploy.raw import reader
from metamobile.errors import DataError
from metamobile.files import expect_file, write_text
from metamobile.inference.model import Model, check_options, load, model_name
from metamobile.inference.predict import read_batches
from metamobile.tasks import get_data, get_results, get_targets, make_metric


def evaluate(
    model: str | Path | Model,
    data: str | Path,
    *,
    json: str | Path | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    workers: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """The figures of the task's metric on `data`, with `model`, `data` and the number of `pictures`.

    Takes the validation split if the data have one, and all of them if not; the data that the model was
    trained on are split as then. Classes are matched by name, pictures preprocessed as the card says.
    `options` are those of `metamobile.predict` that change what is measured: iou, slide; `batch_size` is the
    task's own unless given. Errors: ValueError for a class the model does not know and for a folder as
    `json`, DataError for a picture that cannot be read.
    """
    if json is not None:
        expect_file(json)
    opened = model if isinstance(model, Model) else load(model, device)
    card, module = opened.card, get_results(opened.card.task)
    check_options(options, module.MEASURED, card.task)
    runtime = module.configure(opened.runtime, **options)
    samples, split = get_data(card.task).eval_samples(data, card)
    targets = get_targets(samples)
    metric = make_metric(card.task, card.names, samples)
    paths = [sample.path for sample in samples]
    batch_size = module.BATCH_SIZE if batch_size is None else batch_size
    done = 0
    for batch in read_batches(paths, reader(runtime), batch_size, workers):
        if batch.failures:
            raise DataError(f"{batch.failures[0]}; `metamobile check {data}` names every such file")
        pictures = [str(path) for path in batch.paths]
        outputs = runtime.run(batch.pixels)
        answers = module.answers(outputs, card.names, pictures, batch.sizes, batch.shapes)
        metric.update(answers, targets[done : done + len(pictures)])
        done += len(pictures)
    figures = {
        "task": card.task,
        "model": model_name(model),
        "data": str(data),
        "split": split,
        "pictures": done,
    }
    figures |= metric.compute()
    if json is not None:
        write_text(json, json_format.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    return figures
