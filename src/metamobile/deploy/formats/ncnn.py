"""A network for ncnn: a folder with model.ncnn.param, model.ncnn.bin and card.json; one picture at a time, of
a fixed size.

pnnx writes it. ncnn has no suppression: a detector's file answers the boxes and scores of all anchors, and
detections.json says what `metamobile.deploy.suppression` does with them. A segmenter's answers logits alone.

H W height and width, A anchors, K classes.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamobile.deploy.formats import PLAIN, Options, need_writer
from metamobile.deploy.runtimes import UNREADABLE, Pixels, threads_wanted
from metamobile.deploy.suppression import Suppression
from metamobile.tasks import get_files
from metamobile.weights.card import Card

if TYPE_CHECKING:
    import ncnn
    from torch import nn

    from metamobile.models.detection import OneStage

PARAM, BIN, CARD, DETECTIONS = "model.ncnn.param", "model.ncnn.bin", "card.json", "detections.json"
UNVERIFIED = "unverified.txt"
WAITING = "OMP_WAIT_POLICY"
INPUT, OUTPUTS = "in0", ("out0", "out1")  # pnnx's names


def write(network: nn.Module, card: Card, path: str | Path, options: Options = PLAIN) -> None:
    """Write `network`, as it computes in evaluation mode, for one picture of the card's size.

    Errors: ValueError where a package of the extra `ncnn` is missing, and for a graph that pnnx cannot
    translate.
    """
    need_writer("ncnn")
    from metamobile.deploy.preprocessing import Scaled
    from metamobile.models.detection import OneStage

    network = network.cpu().eval()
    scaled = network if isinstance(network, Scaled) else None
    network = scaled.module if scaled else network
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    half = options.precision == "fp16"
    if isinstance(network, OneStage):
        network, suppression = _dense(network, card.preprocess.size)
        (folder / DETECTIONS).write_text(suppression.to_json(), encoding="utf-8")
    network = scaled.around(network) if scaled else network
    _convert(network, card.preprocess.size, folder, half)
    (folder / CARD).write_text(card.to_json(), encoding="utf-8")


def _dense(detector: OneStage, size: tuple[int, int]) -> tuple[nn.Module, Suppression]:
    """(1, 3, H, W) -> boxes (1, A, 4), scores (1, A, K), as `OneStage.dense`, and what follows them.

    The same decoding in ncnn's layers, of which none takes every second column: anchors are constants, and
    both corners are computed as pairs.
    """
    import torch
    from torch import Tensor, nn

    height, width = size
    with torch.no_grad():
        raw = detector.raw(torch.zeros(1, 3, height, width))
    first, last = raw.anchors[None].chunk(2, 2)  # (1, A, 2) each: (x1, y1), (x2, y2)
    coder = detector.box_coder

    class Dense(nn.Module):
        centre: Tensor
        side: Tensor
        weights: Tensor
        edge: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.detector = detector
            self.register_buffer("centre", (first + last) / 2)
            self.register_buffer("side", last - first)
            self.register_buffer("weights", torch.tensor(coder.weights).reshape(1, 1, 4))
            self.register_buffer("edge", torch.tensor([[[width, height]]], dtype=torch.float32))

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            raw = self.detector.raw(images)
            move, grow = (raw.deltas / self.weights).chunk(2, 2)
            centre = self.centre + move * self.side
            half = grow.clamp(max=coder.bbox_xform_clip).exp() * self.side * 0.5
            corners = [
                torch.minimum(corner.clamp(min=0), self.edge) for corner in (centre - half, centre + half)
            ]
            return torch.cat(corners, 2), self.detector.scores(raw.logits)

    return Dense().eval(), Suppression.of(detector, raw.levels)


def _convert(network: nn.Module, size: tuple[int, int], folder: Path, half: bool) -> None:
    import pnnx
    import torch

    example = torch.zeros(1, 3, *size)
    # torch.export first: in its program sizes are numbers. pnnx computes traced ones as C does, where the
    # remainder of a negative number is negative, and so cuts where padding is meant.
    program = torch.export.export(network, (example,), strict=False).module(check_guards=False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)  # pnnx reads nothing newer
        warnings.filterwarnings("ignore", "`torch.jit.save", FutureWarning)
        traced = torch.jit.trace(program, (example,), check_trace=False)
        with tempfile.TemporaryDirectory() as work:
            traced.save(f"{work}/model.pt")
            # Not pnnx.export: it prints much, and imports the code that it writes.
            done = subprocess.run(
                [pnnx.EXEC_PATH, "model.pt", f"inputshape=[1,3,{size[0]},{size[1]}]", f"fp16={int(half)}"],
                cwd=work,
                capture_output=True,
                text=True,
                errors="replace",
            )
            lost = [line for line in done.stderr.splitlines() if line.startswith("ignore ")]
            if done.returncode or lost or not (Path(work) / PARAM).is_file():
                reason = lost[0] if lost else f"pnnx ended with {done.returncode}"
                raise ValueError(f"{folder}: ncnn has no layer for a part of this network ({reason})")
            for name in (PARAM, BIN):
                (folder / name).write_bytes((Path(work) / name).read_bytes())


class Ncnn:
    """An exported folder in ncnn, on the processor: on one thread, or as many as METAMOBILE_THREADS says."""

    name = "ncnn"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path = Path(path)
        if device not in ("auto", "cpu"):
            raise ValueError(f"ncnn cannot use device {device!r} here; it has auto, cpu")
        texts = {
            name: (self.path / name).read_text(encoding="utf-8")
            for name in (CARD, DETECTIONS, UNVERIFIED)
            if (self.path / name).is_file()
        }
        if CARD not in texts:
            raise ValueError(
                f"{self.path}: ncnn without a metamobile card; expected a folder that `metamobile export` "
                f"wrote, with {CARD} in it"
            )
        self.card = Card.from_json(texts[CARD])
        detects = "boxes" in get_files(self.card.task).OUTPUTS
        if detects and DETECTIONS not in texts:
            raise ValueError(f"{self.path}: a detector without its {DETECTIONS}; export it anew")
        self.suppression = Suppression.from_json(texts[DETECTIONS]) if detects else None
        self.net = _open_net(self.path)
        if UNVERIFIED in texts:
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, texts[UNVERIFIED])

    def run(self, batch: Pixels) -> Any:
        shape = (3, *self.card.preprocess.size)
        if batch.shape[1:] != shape:
            raise ValueError(
                f"{self.path} cannot run on {batch.shape}; expected (batch, {shape[0]}, "
                f"{shape[1]}, {shape[2]})"
            )
        found = [self._run_one(one) for one in batch]
        if self.suppression is None:
            return np.stack([one[0] for one in found])
        return [self.suppression.select(boxes, scores) for boxes, scores in found]

    def _run_one(self, picture: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """(3, H, W) -> logits, or boxes (A, 4) and scores (A, K)."""
        import ncnn

        extractor = self.net.create_extractor()
        extractor.input(INPUT, ncnn.Mat(np.ascontiguousarray(picture, np.float32)))
        found = []
        for name in OUTPUTS if self.suppression else OUTPUTS[:1]:
            failed, answer = extractor.extract(name)
            if failed:
                raise ValueError(f"{self.path} cannot run on {picture.shape} (ncnn's error {failed})")
            found.append(np.array(answer))  # a copy: the extractor owns it
        return found


open_file = Ncnn


def mark(path: str | Path, reason: str) -> None:
    """Say in the folder that it failed its gate."""
    (Path(path) / UNVERIFIED).write_text(reason, encoding="utf-8")


def _open_net(path: Path) -> ncnn.Net:
    try:
        ncnn = _import_ncnn()
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs ncnn: pip install "metamobile[ncnn]"') from error
    net = ncnn.Net()
    # Half precision only where the file has it: ncnn would compute every file in it.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
    net.opt.num_threads = threads_wanted() or 1
    if net.load_param(str(path / PARAM)) or net.load_model(str(path / BIN)):
        raise ValueError(f"{path}: ncnn cannot read it, {UNREADABLE}")
    return net


def _import_ncnn() -> Any:
    """Its OpenMP reads its settings as it is loaded. Threads that turn in circles while they wait, its way,
    take 9 s a picture instead of 15 ms where another program has their processor."""
    before = os.environ.get(WAITING)
    os.environ[WAITING] = before or "passive"
    try:
        import ncnn
    finally:
        if before is None:
            del os.environ[WAITING]
    return ncnn
