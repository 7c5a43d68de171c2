"""The effective receptive field: how much each pixel moves the unit in the middle of a stage's map.

The gradient of that unit, summed over its channels, with respect to the picture; its absolute value, mean of
the colour channels and the pictures. Source: Luo et al. 2016 (arXiv 1701.04128); the figures are ours.

Shapes: C channels, r c rows and columns of the map, h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metamobile.study.explain.frame import centre_of
from metamobile.study.explain.layers import find_layer, to_map, watch
from metamobile.study.explain.subject import Subject

MASS = 0.95  # of the gradient that the figures speak of


@dataclass(eq=False)
class ReceptiveField:
    """`field` (h, w) at the input's pixels. Of its mass, 95 % lie within `radius` pixels of the unit's own
    place `centre` (x, y), and the fewest pixels that hold as much are this `share` of all."""

    layer: str
    field: NDArray[np.float64]
    centre: tuple[float, float]
    radius: float
    share: float
    pictures: int


def receptive_field(subject: Subject, layer: str, pictures: Sequence[Tensor]) -> ReceptiveField | None:
    """Of pictures (1, 3, h, w); those of another size than the first are left out, as their fields do not
    lie on each other. None where the unit does not depend on the picture, as a sum over channels after a
    plain layer norm. Errors: ValueError for a layer that gives no map."""
    shape = (pictures[0].shape[-2], pictures[0].shape[-1])
    alike = [x for x in pictures if x.shape == pictures[0].shape]
    padded = subject.padded(shape)
    total = np.zeros(shape)
    rows = columns = 1
    for x in alike:
        gradient, (rows, columns) = unit_gradient(subject, layer, x, padded)
        total += gradient
    if not total.any():
        return None
    total /= len(alike)
    centre = (centre_of(columns // 2, padded[1], columns), centre_of(rows // 2, padded[0], rows))
    radius, share = field_size(total, centre)
    return ReceptiveField(layer, total, centre, radius, share, len(alike))


def unit_gradient(
    subject: Subject, layer: str, x: Tensor, padded: tuple[int, int]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """(1, 3, h, w) -> (h, w), and the map's sides."""
    body = subject.body if layer.startswith("backbone.") else subject.network
    seen: list[Any] = []
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad(), watch([find_layer(subject, layer)], lambda m, _, output: seen.append(output)):
        body(x)
        features = to_map(seen[-1], padded, subject.prefix_tokens)
        rows, columns = features.shape[2:]
        (gradient,) = torch.autograd.grad(features[0, :, rows // 2, columns // 2].sum(), x)
    return gradient[0].abs().mean(0).double().cpu().numpy(), (rows, columns)


def field_size(
    field: NDArray[np.float64], centre: tuple[float, float], mass: float = MASS
) -> tuple[float, float]:
    """The radius around `centre` (x, y) that holds the share `mass` of the field, in pixels, and the least
    share of all pixels that does. Distances are those of the pixels' middles."""
    rows, columns = np.indices(field.shape) + 0.5
    distance = np.hypot(columns - centre[0], rows - centre[1]).ravel()
    values = field.ravel()
    enough = mass * values.sum() * (1 - 1e-9)  # sums in another order differ in their last digits
    order = np.argsort(distance, kind="stable")
    radius = distance[order][np.searchsorted(values[order].cumsum(), enough).clip(max=values.size - 1)]
    count = np.searchsorted(np.sort(values)[::-1].cumsum(), enough) + 1
    return float(radius), min(int(count), values.size) / values.size
