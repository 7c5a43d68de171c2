"""`metamobile export`: files for other runtimes, each behind the gate."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn

from metamobile.data.pictures import find_pictures, read_picture
from metamobile.deploy import any_size
from metamobile.deploy.cost import Cost, data_of, measure_cost
from metamobile.deploy.form import deploy
from metamobile.deploy.formats import (
    FORMATS,
    PRECISIONS,
    Options,
    format_of,
    get_format,
    need_runtime,
    need_writer,
)
from metamobile.deploy.gate import GateResult, compare, pick_pictures, spread
from metamobile.deploy.preprocessing import Scaled, scaled_card
from metamobile.deploy.raw import reader
from metamobile.deploy.runtimes import Runtime, TorchRuntime
from metamobile.deploy.usage import NAME as USE
from metamobile.deploy.usage import write_usage
from metamobile.errors import nearest
from metamobile.files import bytes_of, expect_folder, move, remove
from metamobile.tasks import get_data
from metamobile.training.recipe import DataSettings
from metamobile.weights.card import Card
from metamobile.weights.find import SHIPPED
from metamobile.weights.network import load_network

CALIBRATION = 256  # pictures


def export(
    model: str | Path,
    to: str | Sequence[str] = ("onnx",),
    *,
    out: str | Path | None = None,
    verify: str | Path | None = None,
    precision: str | Sequence[str] = ("fp32",),
    calibrate: str | Path | None = None,
    with_preprocessing: bool = False,
    keep: bool = False,
    size: int | Sequence[int] | Literal["any"] | None = None,
    tell: Callable[[GateResult], None] | None = None,
) -> list[GateResult]:
    """Write a file for each runtime in `to` and `precision` into `out` (else beside the weights); compare it
    with PyTorch.

    What is written is the network's deployed form (`metamobile.deploy`). A file that passes its gate takes
    its name; one that fails is removed, or with `keep` stays as *.unverified.* and says so in itself.
    `verify` holds the pictures (see `pick_pictures`); `size` (pixels, or height and width) overrides the
    model's own. A file takes pictures of one shape (see `of_one_shape`), unless the size is "any": see
    `deploy.any_size`; the card is the model's then. int8 is calibrated on pictures in
    `calibrate`, else on the model's training pictures; what a precision below fp32 costs is measured on
    `verify`, else on the model's own validation pictures. `with_preprocessing` puts that into the graph, or
    in formats that cannot resize, scaling and normalisation alone: see `preprocessing.Scaled`.
    USE.md beside the files says how to load them. `tell` gets each result at once.

    Errors: ValueError for an unknown name, a missing package, a model that cannot be exported (Mask R-CNN), a
    precision that a format does not have, or a file that its runtime cannot open.
    """
    if out is not None:
        expect_folder(out)
    names = list(dict.fromkeys([to] if isinstance(to, str) else to))
    precisions = [precision] if isinstance(precision, str) else list(precision)
    for name in names:
        check_format(name, precisions)
    scaled = [name for name in names if with_preprocessing and not _resizes(name)]
    if scaled:
        logging.getLogger(__name__).warning(
            "%s: of preprocessing the file does scaling and normalisation alone; it takes pictures that are "
            "resized and cropped already, float RGB from 0 to 255",
            ", ".join(scaled),
        )
    network, card = load_network(model)
    if not getattr(network, "exports", True):
        head = getattr(network, "head_name", card.task)
        raise ValueError(
            f"{model}: a model with the head {head} cannot be exported; `metamobile predict` runs the run "
            "folder or its .safetensors file as it is"
        )
    free = size == "any"
    if isinstance(size, str):
        if not free:
            raise ValueError(f"size {size!r}: expected pixels, a pair of height and width, or 'any'")
        any_size.refuse(model, network, names, precisions, with_preprocessing)
    else:
        if size is not None:
            if min([size] if isinstance(size, int) else size) < any_size.LEAST:
                raise ValueError(f"size {size}: expected at least {any_size.LEAST} pixels a side")
            card = replace(card, preprocess=card.preprocess.at_size(size))
        card = of_one_shape(card, model)
    pictures, source = pick_pictures(card, verify)
    calibration = pick_calibration(card, calibrate) if "int8" in precisions else ()
    shop = Workshop(
        deploy(network), TorchRuntime(network, card), pictures, source, data_of(card, verify), keep
    )
    results: list[GateResult] = []
    try:
        for name in names:
            for each in sorted(set(precisions) & set(FORMATS[name].precisions), key=PRECISIONS.index):
                options = Options(each, calibration if each == "int8" else (), free, with_preprocessing)
                results.append(shop.make(name, options, _target(model, out, name, options)))
                if tell is not None:
                    tell(results[-1])
    finally:  # also of what was made before an end that was not meant
        for folder in dict.fromkeys(result.path.parent for result in results):
            describe_folder(folder)
    return results


def describe_folder(folder: Path) -> None:
    """USE.md for all exported files of a folder; none for none."""
    files = [path for path in sorted(folder.iterdir()) if is_export(path)]
    if files:
        write_usage(folder, files)
    else:
        remove(folder / USE)


def is_export(path: Path) -> bool:
    """A file or folder that `export` wrote and the gate passed."""
    return format_of(path) is not None and ".unverified" not in path.suffixes and path.name[0] != "."


def _resizes(name: str) -> bool:
    """Whether files of this format can have all preprocessing in them."""
    return "preprocessing" in FORMATS[name].can


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


@dataclass
class Workshop:
    """What all files of one export are made of and measured with; `data` have the truth for what a precision
    costs."""

    deployed: nn.Module
    reference: TorchRuntime
    pictures: Sequence[Path]
    source: str
    data: str | Path | None
    keep: bool
    figures: dict[str, Any] = field(default_factory=dict)  # of the reference, once they were asked for

    def make(self, name: str, options: Options, path: Path) -> GateResult:
        """One file: written aside, through the gate, and then in its place, or gone.

        Where the format's runtime is not for this system, what the converter received goes through the gate,
        and the file is read back.
        """
        module = get_format(name)
        runs = getattr(module, "RUNS_HERE", True)
        network, card = self._form(name, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        try:
            module.write(network, card, part, options)
            candidate = module.open_file(part) if runs else module.received(network, card)
            check = any_size.compare_sizes if options.dynamic_size else compare
            result = check(
                self.reference,
                candidate,
                self.pictures,
                path=path,
                source=self.source,
                precision=options.precision,
            )
            if not runs:
                result.executed = False
                result.problems += module.read_back(part, network, card)
            if options.precision != "fp32" and result.passed and runs:
                result.cost = self._cost(name, options, part, candidate)
            if result.passed:
                move(part, path)
            else:
                remove(path)  # an earlier export is of other weights
            if not result.passed and self.keep:
                result.path = path.with_suffix(f".unverified{path.suffix}")
                module.mark(part, "; ".join(result.problems))
                move(part, result.path)
        finally:
            remove(part)
        for problem in result.problems:
            logging.getLogger(__name__).warning("%s: %s", path, problem)
        return result

    def _form(self, name: str, options: Options) -> tuple[nn.Module, Card]:
        """What is written, and its card."""
        card = self.reference.card
        if options.preprocessing and not _resizes(name):
            return Scaled(self.deployed, card.preprocess), scaled_card(card)
        return self.deployed, card

    def _cost(self, name: str, options: Options, part: Path, candidate: Runtime) -> Cost:
        """Beside a file of the same format in fp32, made for that alone."""
        module = get_format(name)
        with TemporaryDirectory() as folder:
            plain = Path(folder) / f"fp32{part.suffix}"
            module.write(*self._form(name, options), plain, replace(options, precision="fp32"))
            read = reader(candidate)
            return measure_cost(
                self.reference,
                candidate,
                module.open_file(plain),
                (bytes_of(part), bytes_of(plain)),
                self.data,
                read(read_picture(self.pictures[0]))[None],
                self.figures,
            )


def pick_calibration(card: Card, where: str | Path | None) -> list[Path]:
    """At most `CALIBRATION` pictures, spread over those of `where`, else of what the model was trained on:
    its training split. Errors: ValueError where there are none."""
    data = where or data_of(card, None)
    if data is None:
        raise ValueError(
            "int8 needs pictures to calibrate on, and the model's own are not here; expected --calibrate "
            "FOLDER, of pictures like those it will see, best its training pictures"
        )
    if where is None:
        settings = DataSettings(**card.recipe["data"])
        paths = [sample.path for sample in get_data(card.task).open_data(settings).train]
    else:
        paths = find_pictures([where])
    return spread(paths, CALIBRATION)


def _target(model: str | Path, out: str | Path | None, name: str, options: Options) -> Path:
    """Where the file goes: run folder/model.onnx, weights.onnx beside weights.safetensors, else ./name.onnx;
    model.fp16.onnx, model.pictures.onnx, model.scaled.pte of other forms. In `out`, a run's file is called as
    the run is."""
    parts = [".pictures" if _resizes(name) else ".scaled"] if options.preprocessing else []
    parts += [f".{options.precision}"] if options.precision != "fp32" else []
    suffix = "".join(parts) + FORMATS[name].suffix
    path = Path(model)
    if str(model) in SHIPPED or not path.exists():  # a name of shipped or of timm's weights
        return Path(out or ".") / f"{model}{suffix}".replace("/", "-")
    if path.is_dir():
        return Path(out) / f"{path.resolve().name}{suffix}" if out else path / f"model{suffix}"
    return Path(out or path.parent) / f"{path.stem}{suffix}"


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
