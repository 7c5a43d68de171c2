"""Maximum path length by experiment: how many modules in a row connect any two positions of a map.

Shapes: B output positions at a time, C channels, H W height and width of the map, L = H*W.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def reached(stack: nn.Module, x: Tensor, outputs: Tensor) -> Tensor:
    """(B, L) bool: the input positions with which each of the B output positions changes.

    `x` (1, C, H, W) in float64, where no convolution is computed in ways that blur exact zeros. Every output
    position gets its own copy of x, so that one backward pass gives all gradients.
    """
    copies = x.detach().expand(len(outputs), -1, -1, -1).clone().requires_grad_()
    y = stack(copies).flatten(2)  # (B, C, L)
    y[torch.arange(len(outputs)), :, outputs].sum().backward()
    assert copies.grad is not None
    return copies.grad.flatten(2).abs().sum(1) > 0


def measure_path_length(make: Callable[[], nn.Module], channels: int, side: int) -> float:
    """Least number of stacked modules of `make` for which all pairs of positions are connected; inf for none.

    `make` gives a module (B, C, H, W) -> (B, C, H, W) with weights of its own; the map is side x side. A
    module that connects more each time reaches at least one position farther, so that `side` of them must do.
    """
    x = torch.randn(1, channels, side, side, dtype=torch.float64)
    positions = torch.arange(side * side)
    batch = max(1, 8192 // len(positions))  # attention over the whole map: B * L * L numbers

    def connects(count: int) -> bool:
        stack = nn.Sequential(*(make() for _ in range(count))).double().eval()
        # corners, the hardest, come first, so that a stack that is too short is found at once
        return all(bool(reached(stack, x, some).all()) for some in positions.split(batch))

    high = 1
    while not connects(high):
        if high >= side:
            return math.inf
        high = min(2 * high, side)
    low = high // 2 + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if connects(middle) else (middle + 1, high)
    return high
