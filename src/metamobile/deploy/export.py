"""`metamobile export`: files for other runtimes, each behind the gate."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from metamobile.deploy.gate import GateResult, compare, pick_pictures
from metamobile.deploy.onnx import export_onnx, mark_unverified
from metamobile.deploy.runtimes import OnnxRuntime, Runtime, TorchRuntime
from metamobile.errors import nearest
from metamobile.weights.card import Card
from metamobile.weights.find import SHIPPED
from metamobile.weights.network import load_network


@dataclass(frozen=True)
class Exporter:
    """One way out: the file's suffix, what writes it, what runs it, what marks it as not verified."""

    suffix: str
    write: Callable[[nn.Module, Card, Path], None]
    open: Callable[[Path], Runtime]
    mark: Callable[[Path, str], None]


EXPORTERS = {"onnx": Exporter(".onnx", export_onnx, OnnxRuntime, mark_unverified)}


def export(
    model: str | Path,
    to: str | Sequence[str] = ("onnx",),
    *,
    out: str | Path | None = None,
    verify: str | Path | None = None,
    keep: bool = False,
    size: int | Sequence[int] | None = None,
) -> list[GateResult]:
    """Write a file for each runtime in `to` into `out` (else beside the weights); compare it with PyTorch.

    A file that passes its gate takes its name; one that fails is removed, or with `keep` stays as
    *.unverified.* and says so in its metadata. `verify` holds the pictures (see `pick_pictures`); `size`
    (pixels, or height and width) overrides the model's own. A file takes pictures of one shape: see
    `of_one_shape`. Errors: ValueError for an unknown name, a missing package, a model that cannot be exported
    (Mask R-CNN), or a file that its runtime cannot open.
    """
    names = [to] if isinstance(to, str) else list(to)
    for name in names:
        if name not in EXPORTERS:
            raise ValueError(
                f"no exporter is called {name!r}; there are {', '.join(EXPORTERS)}{nearest(name, EXPORTERS)}"
            )
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
    return [
        _export_one(
            EXPORTERS[name], reference, _target(model, out, EXPORTERS[name].suffix), keep, pictures, source
        )
        for name in dict.fromkeys(names)
    ]


def _export_one(
    exporter: Exporter, reference: TorchRuntime, path: Path, keep: bool, pictures: Sequence[Path], source: str
) -> GateResult:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        exporter.write(reference.network, reference.card, aside)
        result = compare(reference, exporter.open(aside), pictures, path=path, source=source)
        if result.passed:
            os.replace(aside, path)
        else:
            path.unlink(missing_ok=True)  # an earlier export is of other weights
        if not result.passed and keep:
            result.path = path.with_suffix(f".unverified{path.suffix}")
            exporter.mark(aside, "; ".join(result.problems))
            os.replace(aside, result.path)
    finally:
        aside.unlink(missing_ok=True)
    for problem in result.problems:
        logging.getLogger(__name__).warning("%s: %s", path, problem)
    return result


def _target(model: str | Path, out: str | Path | None, suffix: str) -> Path:
    """Where the file goes: run folder/model.onnx, weights.onnx beside weights.safetensors, else ./name.onnx.

    In `out`, a run's file is called as the run is.
    """
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
