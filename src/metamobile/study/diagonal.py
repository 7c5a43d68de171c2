"""Diagonal similarity: how far a network's stage-3 features resemble each other, and the claim about it.

Of the stage's map, the features at the positions (i, i) are taken, their raw dot products, and these are
brought to 0..1 by the picture's own smallest and largest: `diagonal_similarity`. The mean over the pictures
is drawn, and told by figures of its mean over each distance |i - j| (`diagonal_claim.Reach`).

The claim: attention adds long range, the convolution short range, both together the most. It is put as
comparisons between networks with convolution alone, attention alone, and both (`COMPARISONS`); each is
decided by a bootstrap over the pictures, and over the runs of a role where there are several.

What the figures cannot tell: the dot products are not normalised, so positions with large features stand out
as rows and columns, and a picture's smallest value is 0 by definition.

Shapes: B batch, C channels, H side of the stage's square map, N pictures, D distances 0 to H - 1.
Source: EMO (arXiv 2301.01146) figure 7 and its author's code for it; the figures and the verdict are ours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metamobile.data.pictures import find_pictures
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.deploy.runtimes import pick_device
from metamobile.errors import NotFinite, nearest
from metamobile.files import aside, expect_folder, write_text
from metamobile.inference.predict import read_batches
from metamobile.models.create import plain_network
from metamobile.models.operators import DepthwiseConv, WindowAttention
from metamobile.study.diagonal_claim import (
    CLAIM,
    ROLES,
    Comparison,
    Floats,
    Reach,
    compare,
    distance_curve,
    find_reach,
    spread_in_words,
)
from metamobile.study.opened import AnyModel, open_model
from metamobile.weights.card import current_versions

WINDOWS = ("scaled", "kept")


@dataclass(frozen=True)
class DiagonalRow:
    """One network over all pictures: `similarity` (H, H) and `curve` (D,) are means.

    `size` is the pictures' side in pixels, `windows` the distinct (h, w) that attention then had in the
    network, `pictures_curves` (N, D) the curves of the single pictures, which the JSON leaves out.
    """

    name: str
    role: str | None
    size: int
    side: int
    channels: int
    windows: list[list[int]]
    pictures: int
    similarity: list[list[float]]
    curve: list[float]
    reach: Reach
    pictures_curves: Floats


@dataclass(frozen=True)
class Diagonal:
    """All networks; the comparisons, if each role has a network; pictures that could not be read."""

    stage: int
    rows: list[DiagonalRow]
    comparisons: list[Comparison]
    spread: str
    failures: list[str]

    def verdict(self, part: str | None = None) -> str | None:
        """Of one part of the claim, or of all: refuted if a comparison is, confirmed if all are."""
        marks = [row.verdict for row in self.comparisons if part in (None, row.part)]
        if not marks:
            return None
        return "refuted" if "refuted" in marks else "undecided" if "undecided" in marks else "confirmed"


def study_diagonal(
    models: Sequence[AnyModel],
    pictures: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    roles: Sequence[str] | None = None,
    stage: int = 3,
    size: int | None = None,
    windows: str = "scaled",
    most: int | None = 256,
    batch_size: int = 32,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Diagonal:
    """Measure the diagonal similarity of each model on the same pictures, and judge the claim.

    `models` are what `metamobile.load` takes, or PyTorch modules with timm's `feature_info`. `roles` names
    each one's role (conv, attention, both; - for none); left out, it is told from what the stage is built of.
    `pictures` are files, folders or globs, of which `most` evenly spread ones are taken (None: all). `out` is
    a folder for diagonal.json and diagonal.png.

    `size` is the pictures' side; left out, it is each model's own, at which nothing is changed: the faithful
    measurement (a PyTorch module counts as made for `size`). Another size changes what attention does, in one
    of two ways, by `windows`. "scaled": the windows grow with the map, so that a strided one still holds
    every n-th row, as in training, but more of them. "kept": the windows hold as many tokens as in training,
    of rows that lie further apart.

    Errors: ValueError for a model without a square map of that stage, or two with different ones where the
    claim is judged, for roles that do not fit, and for windows that cannot be scaled.
    """
    check_options(models, roles, windows, most)
    if out is not None:
        expect_folder(out)
    paths = take_spread(find_pictures([pictures] if isinstance(pictures, str | Path) else pictures), most)
    chosen = pick_device(device)
    rows: list[DiagonalRow] = []
    failures: list[str] = []
    for index, model in enumerate(models):
        name, network, record, own = open_square(model, index, size)
        role = roles[index] if roles else find_role(network, stage)

        def tell(done: int, before: int = index * len(paths)) -> None:
            if progress is not None:
                progress(before + done, len(models) * len(paths))

        with resized_windows(network, record.size[0], own.size[0], windows, name) as sides:
            maps, channels, failures = measure(
                network.to(chosen), record, paths, stage, name, batch_size, chosen, tell
            )
        curves = np.stack([distance_curve(one) for one in maps])
        rows.append(
            DiagonalRow(
                name=name,
                role=role if role in ROLES else None,
                size=record.size[0],
                side=maps.shape[1],
                channels=channels,
                windows=sides,
                pictures=len(maps),
                similarity=maps.mean(0).tolist(),
                curve=curves.mean(0).tolist(),
                reach=find_reach(curves.mean(0)),
                pictures_curves=curves,
            )
        )
    by_role = curves_by_role(rows)
    result = Diagonal(stage, rows, compare(by_role), spread_in_words(by_role), failures)
    if out is not None:
        from metamobile.study.diagonal_figure import draw

        write_rows(Path(out) / "diagonal.json", result)
        with aside(Path(out) / "diagonal.png") as path:
            draw(result).savefig(path, format="png", dpi=150)
    return result


def check_options(models: Sequence[Any], roles: Sequence[str] | None, windows: str, most: int | None) -> None:
    if isinstance(models, str | Path) or not models:
        raise ValueError(f"models {models!r}: expected a list of run folders, weights or networks")
    if windows not in WINDOWS:
        raise ValueError(
            f"windows {windows!r} is unknown; known are {' and '.join(WINDOWS)}{nearest(windows, WINDOWS)}"
        )
    if most is not None and most < 1:
        raise ValueError(f"most {most}: expected at least 1 picture")
    if roles is not None and len(roles) != len(models):
        raise ValueError(
            f"{len(roles)} roles for {len(models)} models; give one for each, or - where it has none"
        )
    for role in roles or ():
        if role != "-" and role not in ROLES:
            raise ValueError(f"no role {role!r}; known are {', '.join(ROLES)} and -{nearest(role, ROLES)}")


def take_spread(paths: Sequence[Path], most: int | None) -> list[Path]:
    """At most so many, evenly spread over the list, so that each folder has its share."""
    if most is None or len(paths) <= most:
        return list(paths)
    return [paths[i * len(paths) // most] for i in range(most)]


def open_square(
    model: AnyModel, index: int, size: int | None
) -> tuple[str, nn.Module, Preprocess, Preprocess]:
    """Name, network, and how pictures are made ready: at `size`, and as the model's own."""
    one = open_model(model, index)
    name, network, own = one.name, plain_network(one.network), one.record
    if isinstance(model, nn.Module) and size is not None:  # nothing else tells what it was made for
        own = replace(own, size=(size, size), resize=None)
    if size is None and (own.size[0] != own.size[1] or own.fit == "inside"):
        raise ValueError(
            f"{name}: its pictures are {own.size[0]}x{own.size[1]} px (fit {own.fit}), and a diagonal needs "
            "a square; give size, the side of the centre that is cut out"
        )
    if size is None or (size, size) == own.size:
        return name, network, own, own
    return name, network, replace(own.at_size(size), fit="crop"), own


def feature_index(network: nn.Module, stage: int, name: str) -> tuple[int, str]:
    """Place in `feature_info` and module of the stage's map: the last one of stride 2 ** (stage + 1)."""
    info: Any = getattr(network, "feature_info", None)
    if info is None:
        raise ValueError(f"{name}: no feature_info; expected a network with timm's list of its stages")
    described = [dict(each) for each in (info if isinstance(info, list) else info.get_dicts())]
    stride = 2 ** (stage + 1)
    found = [i for i, each in enumerate(described) if each["reduction"] == stride]
    if not found:
        strides = ", ".join(str(each["reduction"]) for each in described)
        raise ValueError(f"{name}: no map of stage {stage}, stride {stride}; it has strides {strides}")
    return found[-1], str(described[found[-1]].get("module", ""))


def stage_map(network: Any, x: Tensor, stage: int, name: str) -> Tensor:
    """(B, 3, H0, W0) -> (B, C, H, H), the map after the stage. Errors: ValueError if there is no square."""
    index, module = feature_index(network, stage, name)
    if hasattr(network, "forward_intermediates"):
        (features,) = network.forward_intermediates(x, [index], stop_early=True, intermediates_only=True)
    else:
        seen: list[Tensor] = []
        hook = network.get_submodule(module).register_forward_hook(lambda *given: seen.append(given[2]))
        try:
            network(x)
        finally:
            hook.remove()
        features = seen[-1]
    if features.ndim != 4 or features.shape[2] != features.shape[3]:
        raise ValueError(
            f"{name}: its map of stage {stage} is {tuple(features.shape[1:])}; expected (C, H, H), with a "
            "diagonal: give a square size"
        )
    return features


def diagonal_similarity(features: Tensor) -> Floats:
    """(B, C, H, H) -> (B, H, H): dot products of the features at (i, i), min-max for each picture.

    All 1 where they are all the same. Errors: NotFinite.
    """
    x = features.detach().double().diagonal(dim1=2, dim2=3)  # (B, C, H)
    products = (x.transpose(1, 2) @ x).cpu().numpy()  # (B, H, H)
    if not np.isfinite(products).all():
        raise NotFinite("the stage's features are infinite or not a number; look at the training's loss")
    low, high = products.min((1, 2), keepdims=True), products.max((1, 2), keepdims=True)
    same = high - low <= 1e-9 * np.abs(high)
    return np.where(same, 1.0, (products - low) / np.where(same, 1.0, high - low))


def measure(
    network: nn.Module,
    record: Preprocess,
    paths: Sequence[Path],
    stage: int,
    name: str,
    batch_size: int,
    device: torch.device,
    tell: Callable[[int], None],
) -> tuple[Floats, int, list[str]]:
    """Similarities (N, H, H) of all pictures that can be read, the map's channels, and what failed."""
    maps: list[Floats] = []
    failures: list[str] = []
    channels = done = 0
    for batch in read_batches(paths, partial(preprocess, record=record), batch_size):
        failures += [str(failure) for failure in batch.failures]
        if batch.paths:
            with torch.inference_mode():
                features = stage_map(network, torch.from_numpy(batch.pixels).to(device), stage, name)
            channels = features.shape[1]
            maps.append(diagonal_similarity(features))
        done += len(batch.paths) + len(batch.failures)
        tell(done)
    if not maps:
        raise ValueError(f"none of {len(paths)} pictures can be read; the first: {failures[0]}")
    return np.concatenate(maps), channels, failures


def curves_by_role(rows: Sequence[DiagonalRow]) -> dict[str, list[Floats]]:
    """Errors: ValueError for maps that differ, where each role has a network."""
    chosen = [row for row in rows if row.role]
    if {row.role for row in chosen} == set(ROLES) and len({row.side for row in chosen}) > 1:
        told = ", ".join(f"{row.name} {row.side}x{row.side}" for row in chosen)
        raise ValueError(f"maps that differ cannot be compared: {told}; give one size for all")
    return {role: [row.pictures_curves for row in chosen if row.role == role] for role in ROLES}


def find_role(network: nn.Module, stage: int) -> str | None:
    """What the stage's blocks are built of, "conv", "attention" or "both"; None for other networks.

    Convolutions of stride 2 do not count: every network has them.
    """
    stages: Any = getattr(network, "stages", None)
    if stages is None or len(stages) <= stage:
        return None
    modules = list(stages[stage].modules())
    attention = any(isinstance(module, WindowAttention) for module in modules)
    conv = any(
        isinstance(module, DepthwiseConv)
        and module.conv.stride == (1, 1)
        and module.conv.kernel_size > (1, 1)
        for module in modules
    )
    return {(True, True): "both", (True, False): "attention", (False, True): "conv"}.get((attention, conv))


@contextmanager
def resized_windows(
    network: nn.Module, size: int, trained: int, windows: str, name: str
) -> Iterator[list[list[int]]]:
    """Sets attention's windows for pictures of another size, and back; gives the distinct (h, w)."""
    layers = [module for module in network.modules() if isinstance(module, WindowAttention)]
    before = [layer.window for layer in layers]
    if windows != "scaled" and (not layers or size == trained):
        why = f"it is measured at its own {size} px" if layers else "it has no windows"
        logging.getLogger(__name__).warning("%s: windows=%r has no effect, as %s", name, windows, why)
    pairs = {w if isinstance(w, tuple) else (w, w) for w in before}
    if windows == "scaled":
        unlike = [pair for pair in pairs if any(side * size % trained for side in pair)]
        if unlike:
            raise ValueError(
                f"{name}: windows of {unlike[0][0]}x{unlike[0][1]}, for {trained} px, do not scale to {size} "
                f"px in whole numbers; give a size such as {2 * trained}, or windows='kept'"
            )
        pairs = {(h * size // trained, w * size // trained) for h, w in pairs}
    try:
        for layer, window in zip(layers, before, strict=True):
            if windows == "scaled":
                h, w = window if isinstance(window, tuple) else (window, window)
                layer.window = (h * size // trained, w * size // trained)
        yield [list(pair) for pair in sorted(pairs)]
    finally:
        for layer, window in zip(layers, before, strict=True):
            layer.window = window


def write_rows(path: Path, result: Diagonal) -> None:
    """JSON of all networks, the comparisons with their verdicts, and the claim's."""
    rows = [{k: v for k, v in asdict(row).items() if k != "pictures_curves"} for row in result.rows]
    about = {
        "claim": CLAIM,
        "verdict": result.verdict(),
        "parts": {part: result.verdict(part) for part in CLAIM},
        "comparisons": [asdict(row) | {"verdict": row.verdict} for row in result.comparisons],
        "spread": result.spread,
        "stage": result.stage,
        "failures": result.failures,
        "versions": current_versions(),
    }
    write_text(path, json.dumps(about | {"rows": rows}, indent=1) + "\n")
