"""The deployed form of a network."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def deploy(network: Network) -> Network:
    return copy.deepcopy(network).eval()
