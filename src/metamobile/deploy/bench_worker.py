"""One model in a process of its own: the worker of `metamobile.bench`.

Orders come as lines of JSON on stdin, and each is answered by a line of JSON where stdout was; what libraries
print goes to stderr. Orders: "open" a model, "run" it some times, "end". An answer with "error" is for the
user; any other failure ends the process with its traceback. Imports no torch, unless it is what runs.

B batch, H W height and width.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from metamobile.deploy.runtimes import Runtime
    from metamobile.weights.card import Card

Clock = Callable[[], float]
# Windows counts the processor time of a process in steps of 16 ms
CPU_CLOCK: Clock | None = None if sys.platform == "win32" else time.process_time
PICTURE = 320  # side in pixels of the drawn picture, before preprocessing
WARM_UP, WARM_UP_SECONDS = 12, 4.0  # untimed runs after opening, fewer where they take long
AGAIN = 2  # untimed runs before each turn, as another model ran meanwhile


def main() -> None:
    """Answer orders until "end" or the end of stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except (ValueError, OSError) as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """A runtime, its input (B, 3, H, W), and the orders that it takes."""

    runtime: Runtime
    pixels: NDArray[Any]

    def open(
        self,
        model: str,
        size: list[int] | None,
        batch_size: int,
        threads: int,
        device: str,
        processors: list[int],
    ) -> dict[str, Any]:
        """Open the model and let it answer; tells what it is and how long that took."""
        if processors:
            os.sched_setaffinity(0, processors)  # type: ignore[attr-defined, unused-ignore]
        notes = _Notes()
        logging.getLogger("metamobile").addHandler(notes)
        start = time.perf_counter()
        self.runtime, weights = open_model(model, size, device)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(threads)
        opened = time.perf_counter() - start
        self.pixels = make_input(self.runtime.card, size, batch_size)
        start = time.perf_counter()
        self.runtime.run(self.pixels)
        first = time.perf_counter() - start
        end = start + WARM_UP_SECONDS
        for _ in range(WARM_UP):
            if time.perf_counter() < end:
                self.runtime.run(self.pixels)
        path, versions = file_of(model) if weights == "file" else None, runtime_versions(model)
        return {
            "runtime": self.runtime.name,
            "versions": versions,
            "precision": precision_of(model),
            "weights": weights,
            "size": list(self.pixels.shape[2:]),
            "open_seconds": opened,
            "first_seconds": first,
            "file_bytes": None if path is None else bytes_of(path),
            "notes": notes.lines,
        }

    def run(self, runs: int | None, seconds: float, most: float) -> dict[str, Any]:
        """Seconds by the wall's clock and by the processor's, of each of `runs` runs; see `enough`."""
        run, pixels, wall, cpu = self.runtime.run, self.pixels, time.perf_counter, CPU_CLOCK
        for _ in range(AGAIN):
            run(pixels)
        walls: list[float] = []
        cpus: list[float] = []
        gc.collect()
        gc.disable()  # as timeit does: a collection within a run would be no part of it
        begin = wall()
        while not enough(len(walls), wall() - begin, runs, seconds, most):
            cpu_start = cpu() if cpu else 0.0
            wall_start = wall()
            run(pixels)
            walls.append(wall() - wall_start)
            if cpu:
                cpus.append(cpu() - cpu_start)
        gc.enable()
        return {"wall": walls, "cpu": cpus}

    def end(self) -> dict[str, Any]:
        return {"memory": peak_memory()}


RUNS, FEWEST = 40, 5  # of a turn, where the user does not say how many


def enough(done: int, passed: float, runs: int | None, seconds: float, most: float) -> bool:
    """Whether a turn is over: after `runs`; else after both `RUNS` and `seconds`, and after `most` seconds if
    at least `FEWEST` are done."""
    if runs is not None:
        return done >= runs
    return (done >= RUNS and passed >= seconds) or (done >= FEWEST and passed >= most)


class _Notes(logging.Handler):
    """Warnings of the package, which belong to the model: that it failed its gate."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def open_model(model: str, size: list[int] | None, device: str) -> tuple[Runtime, str]:
    """The model, and "file" or "random": where its weights come from.

    A network in PyTorch is timed in its deployed form. A bare name of a network has random weights, unless
    published ones were pulled: a network's speed does not depend on them, and nothing is fetched.
    """
    from metamobile.deploy.formats import format_of
    from metamobile.deploy.runtimes import TorchRuntime, open_runtime

    if format_of(model) is not None:
        return open_runtime(model, device), "file"
    from metamobile.deploy.form import deploy
    from metamobile.weights.network import load_network

    random = _is_bare_name(model)
    network, card = random_network(model, size) if random else load_network(model)
    return TorchRuntime(deploy(network), card, device), "random" if random else "file"


def _is_bare_name(model: str) -> bool:
    import timm

    import metamobile.models.create  # noqa: F401  # registers our networks
    from metamobile.weights.find import SHIPPED, pulled_path
    from metamobile.weights.published import published_name

    if model in SHIPPED or Path(model).exists() or not timm.is_model(model):
        return False
    published = published_name(model)
    return published is None or not pulled_path(published).is_file()


def random_network(name: str, size: list[int] | None) -> tuple[nn.Module, Card]:
    """A network of that name with random weights, and a card for its pictures.

    One that is built for a single size is built for `size`. Errors: ValueError where it cannot be.
    """
    from timm import get_pretrained_cfg, is_model_pretrained

    from metamobile.models.create import create_model, resolved_args
    from metamobile.weights.card import Card
    from metamobile.weights.network import timm_preprocess

    config = get_pretrained_cfg(name) if is_model_pretrained(name) else None
    classes = (config.num_classes if config else 0) or 1000
    fixed = config is not None and config.fixed_input_size
    extra: dict[str, Any] = {"img_size": (size[0], size[1])} if size and fixed else {}
    network = create_model(name, num_classes=classes, **extra).eval()
    names = [str(index) for index in range(classes)]
    return network, Card(name, resolved_args(network), classes=names, preprocess=timm_preprocess(network))


def make_input(card: Card, size: list[int] | None, batch_size: int) -> NDArray[Any]:
    """One drawn picture, preprocessed as the card says for `size`, else its own, `batch_size` times over."""
    from dataclasses import replace

    import numpy as np

    from metamobile.data.preprocess import preprocess
    from metamobile.data.shapes import draw_scene

    height, width = size or card.preprocess.size
    record = replace(card.preprocess, size=(height, width), resize=None, fit="crop")
    picture = draw_scene(np.random.default_rng(0), PICTURE, objects=5).image
    return np.repeat(preprocess(picture, record)[None], batch_size, axis=0)


def precision_of(model: str) -> str:
    """As `metamobile export` names its files; networks in PyTorch are of single precision."""
    from metamobile.deploy.formats import PRECISIONS, format_of

    marks = Path(model).name.split(".")[1:-1] if format_of(model) else []
    return next((mark for mark in marks if mark in PRECISIONS), "fp32")


def runtime_versions(model: str) -> dict[str, str]:
    """Of the packages that run the model; "-" is not known."""
    from metamobile.deploy.formats import FORMATS, format_of

    name = format_of(model)
    packages = ("torch", "timm") if name is None else FORMATS[name].runs or ("torch",)
    return {
        package: getattr(sys.modules.get(package), "__version__", None) or _installed(package)
        for package in packages
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # of another name than its module
        return "-"


def file_of(model: str) -> Path:
    from metamobile.weights.find import find_model

    return find_model(model)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not tell.

    On Linux not from getrusage, which tells the parent's peak where that is larger.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import psutil

    return getattr(psutil.Process().memory_info(), "peak_wset", None)
