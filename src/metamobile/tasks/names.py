"""Readable names of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with the index behind each that several classes have: "crane (134)" is a bird in ImageNet,
    "crane (517)" a machine."""
    counts = Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
