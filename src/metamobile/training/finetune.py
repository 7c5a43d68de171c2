"""Starting from weights at hand: what fits is loaded, and what was loaded, new or left out is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from metamobile.training.progress import Reporter
from metamobile.weights.file import load_weights
from metamobile.weights.find import find_model


def load_pretrained(model: nn.Module, classes: Sequence[str], source: str, reporter: Reporter) -> None:
    """Load the tensors of `source` (a run, a .safetensors file, a shipped name) whose names and shapes fit.

    The classifier is taken over only where the classes are the same; else it is new, even if of equal size.
    Errors: ValueError when nothing fits.
    """
    path = find_model(source)
    given, card = load_weights(path)
    own = model.state_dict()
    config: Any = model.pretrained_cfg  # timm's record of a network
    classifier = f"{config['classifier']}."
    same_classes = list(classes) == card.classes
    fits = {
        name: tensor
        for name, tensor in given.items()
        if name in own
        and tensor.shape == own[name].shape
        and (same_classes or not name.startswith(classifier))
    }
    if not any(tensor.dim() > 1 for tensor in fits.values()):  # vectors of some width fit by chance
        raise ValueError(
            f"{path}: no kernel or matrix of its {card.variant} fits this network; "
            "start from weights of the same variant"
        )
    model.load_state_dict(own | fits)
    new = [name for name in own if name not in fits]
    left = [name for name in given if name not in fits]
    reporter.say(
        f"starting from {path} ({card.variant}): {len(fits)} tensors loaded, "
        f"{len(new)} new, {len(left)} left out"
    )
    for title, names in (("new", new), ("left out", left)):
        if names:
            reporter.say(f"  {title}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
