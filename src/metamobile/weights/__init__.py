"""Weights: one self-describing safetensors file, official checkpoints, names of shipped and cached ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metamobile.weights.official import from_official

__all__ = ["from_official"]


def __getattr__(name: str) -> Any:
    if name == "from_official":  # imports torch, which cards and names do without
        from metamobile.weights.official import from_official

        return from_official
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
