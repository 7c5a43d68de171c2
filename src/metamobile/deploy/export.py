"""`metamobile export`: files for other runtimes, each behind the gate."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from metamobile.deploy.form import deploy
from metamobile.deploy.formats import FORMATS, PRECISIONS, Options, get_format, need_runtime, need_writer
from metamobile.deploy.gate import GateResult, compare, pick_pictures
from metamobile.deploy.runtimes import TorchRuntime
from metamobile.errors import nearest
from metamobile.files import move, remove
from metamobile.weights.card import Card
from metamobile.weights.find import SHIPPED
from metamobile.weights.network import load_network


def export(
    model: str | Path,
    to: str | Sequence[str] = ("onnx",),
    *,
    out: str | Path | None = None,
    verify: str | Path | None = None,
    precision: str | Sequence[str] = ("fp32",),
    keep: bool = False,
    size: int | Sequence[int] | None = None,
) -> list[GateResult]:
    """Write a file for each runtime in `to` and `precision` into `out` (else beside the weights); compare it
    with PyTorch.

    What is written is the network's deployed form (`metamobile.deploy`). A file that passes its gate takes
    its name; one that fails is removed, or with `keep` stays as *.unverified.* and says so in itself.
    `verify` holds the pictures (see `pick_pictures`); `size` (pixels, or height and width) overrides the
    model's own. A file takes pictures of one shape: see `of_one_shape`. Errors: ValueError for an unknown
    name, a missing package, a model that cannot be exported (Mask R-CNN), a precision that a format does not
    have, or a file that its runtime cannot open.
    """
    names = list(dict.fromkeys([to] if isinstance(to, str) else to))
    precisions = list(dict.fromkeys([precision] if isinstance(precision, str) else precision))
    for name in names:
        check_format(name, precisions)
    network, card = load_network(model)
    if not getattr(network, "exports", True):
        head = getattr(network, "head_name", card.task)
        raise ValueError(
            f"{model}: a model with the head {head} cannot be exported; `metamobile predict` runs the run "
            "folder or its .safetensors file as it is"
        )
    if size is not None:
        card = at_size(card, size)
    card = of_one_shape(card, model)
    pictures, source = pick_pictures(card, verify)
    reference = TorchRuntime(network, card)
    deployed = deploy(network)
    results = []
    for name in names:
        for each in precisions:
            if each in FORMATS[name].precisions:
                job = Job(name, Options(precision=each), _target(model, out, name, each), keep)
                results.append(_export_one(job, deployed, reference, pictures, source))
    return results


def check_format(name: str, precisions: Sequence[str]) -> None:
    """Errors: ValueError for a format or a precision that does not exist, or none of them together, and for a
    package that is missing."""
    get_format(name)
    for each in precisions:
        if each not in PRECISIONS:
            raise ValueError(
                f"precision {each!r} is unknown; expected {', '.join(PRECISIONS)}{nearest(each, PRECISIONS)}"
            )
    known = FORMATS[name].precisions
    missing = [each for each in precisions if each not in known]
    if len(missing) == len(precisions):
        raise ValueError(f"{name} has no precision {', '.join(missing)} here; expected {', '.join(known)}")
    if missing:
        logging.getLogger(__name__).warning("%s has no %s here; it is left out", name, ", ".join(missing))
    need_writer(name)
    need_runtime(name, f"the gate for {name}")


@dataclass(frozen=True)
class Job:
    """One file to be written."""

    format: str
    options: Options
    path: Path
    keep: bool


def _export_one(
    job: Job, deployed: nn.Module, reference: TorchRuntime, pictures: Sequence[Path], source: str
) -> GateResult:
    module, path = get_format(job.format), job.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        module.write(deployed, reference.card, part, job.options)
        candidate = module.open_file(part)
        result = compare(
            reference, candidate, pictures, path=path, source=source, precision=job.options.precision
        )
        if result.passed:
            move(part, path)
        else:
            remove(path)  # an earlier export is of other weights
        if not result.passed and job.keep:
            result.path = path.with_suffix(f".unverified{path.suffix}")
            module.mark(part, "; ".join(result.problems))
            move(part, result.path)
    finally:
        remove(part)
    for problem in result.problems:
        logging.getLogger(__name__).warning("%s: %s", path, problem)
    return result


def _target(model: str | Path, out: str | Path | None, name: str, precision: str) -> Path:
    """Where the file goes: run folder/model.onnx, weights.onnx beside weights.safetensors, else ./name.onnx;
    of another precision model.fp16.onnx. In `out`, a run's file is called as the run is.
    """
    suffix = ("" if precision == "fp32" else f".{precision}") + FORMATS[name].suffix
    path = Path(model)
    if str(model) in SHIPPED or not path.exists():  # a name of shipped or of timm's weights
        return Path(out or ".") / f"{model}{suffix}".replace("/", "-")
    if path.is_dir():
        return Path(out) / f"{path.resolve().name}{suffix}" if out else path / f"model{suffix}"
    return Path(out or path.parent) / f"{path.stem}{suffix}"


def at_size(card: Card, size: int | Sequence[int]) -> Card:
    """The card for another picture size; the resize before the crop grows in proportion."""
    height, width = (size, size) if isinstance(size, int) else size
    old = card.preprocess
    resize = old.resize
    if resize is not None:
        resize = round(resize * max(height, width) / max(old.size))
    return replace(card, preprocess=replace(old, size=(height, width), resize=resize))


def of_one_shape(card: Card, model: str | Path = "") -> Card:
    """The card with pictures of one shape; says so where that changes what the network sees."""
    record = card.preprocess
    if record.fit != "inside":
        return card
    height, width = record.size
    logging.getLogger(__name__).warning(
        "%s: the file resizes every picture to exactly %dx%d; the run keeps each picture's form (--size H,W "
        "sets another)",
        model,
        height,
        width,
    )
    return replace(card, preprocess=replace(record, fit="stretch"))
