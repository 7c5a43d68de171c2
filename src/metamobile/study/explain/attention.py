"""The attention of the true windows: how a query weighs the positions of its own window, where they lie.

Nothing of the model is written again here. Its own layer runs once more on its own input, but with values
that tell tokens apart: token t of a window gets a one in channel t of every head, so that what comes out at
the query's position are its weights, head by head. Which positions a window's tokens have is told by the
positions themselves, sent through `to_windows`.

Shapes: N heads, T tokens in a window, G windows, r c rows and columns of the map, R K of the padded one,
h w of the network's input.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from metamobile.models.operators import WindowAttention, to_windows
from metamobile.study.explain.frame import Floats, cells
from metamobile.study.explain.layers import find_layer, find_stage, find_stages, fits, watch
from metamobile.study.explain.subject import Subject


@dataclass(eq=False)
class AttentionMap:
    """One layer's attention for one query, in one cut ("strided" or "contiguous").

    `weights` (r, c) lie at the map's positions, `pixels` (h, w) is the same with each weight spread evenly
    over the pixels of the input that its position stands for. `padded` is the share of attention that goes
    to tokens of no pixel: `pixels` and it sum to one. `query` is (row, column); `window` (height, width) in
    positions; `head` the one shown, None for the mean of all. `covers` are the rows of the map that stand for
    each row of pixels (h,), and the columns (w,).
    """

    layer: str
    cut: str
    window: tuple[int, int]
    query: tuple[int, int]
    weights: Floats
    pixels: NDArray[np.float64]
    padded: float
    head: int | None
    covers: tuple[NDArray[np.int64], NDArray[np.int64]]


def token_weights(
    attention: WindowAttention, x: Tensor, query: tuple[int, int], cut: str
) -> tuple[Tensor, Tensor]:
    """(1, C, r, c), the layer's input -> weights (N, T) of a query, and the positions (T,) of these tokens
    in the padded map, row by row."""
    window = attention.window_shape(x.shape[2], x.shape[3])
    tall, wide = attention.padded_shape(x.shape[2], x.shape[3])
    positions = torch.arange(tall * wide, dtype=torch.float64).view(1, 1, tall, wide)
    windows = to_windows(positions, window, cut, 1)[:, 0, :, 0].long()  # (G, T)
    tokens = windows.shape[1]
    token = torch.empty(tall * wide, dtype=torch.long)
    token[windows] = torch.arange(tokens).expand_as(windows)
    values = F.one_hot(token, tokens).T.reshape(1, tokens, tall, wide).repeat(1, attention.num_heads, 1, 1)
    one = copy.copy(attention)  # the same weights; only the cut is chosen
    one.partition = cut
    with torch.no_grad():
        out = one(x, lambda _: values.to(x))  # (1, N*T, r, c)
    row, column = query
    weights = out[0, :, row, column].view(attention.num_heads, tokens)
    mine = windows[(windows == row * wide + column).any(1)][0]
    return weights.double().cpu(), mine


def place_attention(
    attention: WindowAttention,
    x: Tensor,
    query: tuple[int, int],
    cut: str,
    *,
    padded: tuple[int, int],
    shape: tuple[int, int],
    head: int | None = None,
    layer: str = "",
) -> AttentionMap:
    """The attention of one query (row, column) of the layer's input (1, C, r, c). `padded` is the size that
    the map covers, `shape` that of the picture in it. Errors: ValueError for a head that is not there."""
    if head is not None and not 0 <= head < attention.num_heads:
        raise ValueError(f"head {head}: {layer or 'the layer'} has heads 0 to {attention.num_heads - 1}")
    weights, mine = token_weights(attention, x, query, cut)
    chosen = weights.mean(0) if head is None else weights[head]
    rows, columns = x.shape[2], x.shape[3]
    tall, wide = attention.padded_shape(rows, columns)
    whole = torch.zeros(tall * wide, dtype=torch.float64)
    whole[mine] = chosen
    real = whole.view(tall, wide)[:rows, :columns].numpy().copy()
    whole.view(tall, wide)[:rows, :columns] = 0  # what is left are tokens that padding made
    down, across = cells(padded[0], rows)[: shape[0]], cells(padded[1], columns)[: shape[1]]
    covered = np.bincount(down, minlength=rows)[:, None] * np.bincount(across, minlength=columns)[None]
    spread = np.where(covered > 0, real / np.maximum(covered, 1), 0.0)
    pixels = spread[np.ix_(down, across)]
    return AttentionMap(
        layer,
        cut,
        attention.window_shape(rows, columns),
        query,
        real.astype(np.float32),
        pixels,
        float(whole.sum()) + float(real[covered == 0].sum()),
        head,
        (down, across),
    )


def attention_layers(subject: Subject, name: str = "") -> dict[str, WindowAttention]:
    """Layers of window attention by name, inside the module `name`. Those that attend to a reduced map, as
    PVT's do, are another function and are left out."""
    root = find_layer(subject, name) if name else subject.network
    return {
        f"{name}.{inner}" if name and inner else name or inner: module
        for inner, module in root.named_modules()
        if isinstance(module, WindowAttention) and type(module).forward is WindowAttention.forward
    }


def choose_stage(
    subject: Subject, inputs: dict[str, Tensor], stage: int | None, layer: str | None
) -> list[str]:
    """Names of the attention layers to look at: in the layer's or the stage's module; else in the last stage
    that has several windows, or in the last with attention at all."""
    if layer is not None and attention_layers(subject, layer):
        return list(attention_layers(subject, layer))
    stages = find_stages(subject)
    if not stages:
        return list(inputs)
    if layer is not None:
        stage = next((k for k, module in stages.items() if layer.startswith(module)), stage)
    if stage is not None:
        return list(attention_layers(subject, find_stage(subject, stage)))
    attending = [names for k in sorted(stages) if (names := list(attention_layers(subject, stages[k])))]
    several = [names for names in attending if _has_windows(subject, names[-1], inputs[names[-1]])]
    return (several or attending or [[]])[-1]


def _has_windows(subject: Subject, name: str, x: Tensor) -> bool:
    attention: Any = find_layer(subject, name)
    return attention.max_path_length(x.shape[2], x.shape[3]) != 1


def attention_maps(
    subject: Subject,
    x: Tensor,
    point: tuple[float, float],
    *,
    stage: int | None = None,
    layer: str | None = None,
    head: int | None = None,
) -> list[AttentionMap]:
    """The attention of the position under `point` (x, y), in pixels of the input (1, 3, h, w), in each layer
    that `choose_stage` names, first layer first; empty for a network or a stage without window attention.

    A layer with both cuts gives two maps, strided first. Errors: ValueError for a head that is not there.
    """
    layers = attention_layers(subject)
    inputs: dict[str, Tensor] = {}
    names: dict[nn.Module, str] = {module: name for name, module in layers.items()}

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[names[module]] = given[0].detach()

    with torch.no_grad(), watch(names, keep, before=True):
        subject.body(x)
    shape = (x.shape[-2], x.shape[-1])
    padded = subject.padded(shape)
    maps = []
    for name in choose_stage(subject, inputs, stage, layer) if inputs else ():
        sides = inputs[name].shape[2:]
        if not fits(sides[0], sides[1], padded):  # tokens in a row, a class token among them
            continue
        row, column = (
            int(cells(size, side)[int(at)])
            for size, side, at in zip(padded, sides, (point[1], point[0]), strict=True)
        )
        partition = layers[name].partition
        for cut in ("strided", "contiguous") if partition == "both" else (partition,):
            maps.append(
                place_attention(
                    layers[name],
                    inputs[name],
                    (row, column),
                    cut,
                    padded=padded,
                    shape=shape,
                    head=head,
                    layer=name,
                )
            )
    return maps
