"""Starting from weights at hand: what fits is loaded, and what was loaded, new or left out is told."""

from __future__ import annotations

from torch import nn

from metamobile.training.progress import Reporter
from metamobile.weights.file import load_weights
from metamobile.weights.find import find_model


def load_pretrained(model: nn.Module, source: str, reporter: Reporter) -> None:
    """Load the tensors of `source` (a run, a .safetensors file, a shipped name) whose names and shapes fit.

    Errors: ValueError when nothing fits.
    """
    path = find_model(source)
    given, card = load_weights(path)
    own = model.state_dict()
    fits = {name: t for name, t in given.items() if name in own and t.shape == own[name].shape}
    if not fits:
        raise ValueError(f"{path}: no tensor of {card.variant} fits this network; start from the same variant")
    new = [name for name in own if name not in fits]
    left = [name for name in given if name not in fits]
    model.load_state_dict(own | fits)
    reporter.say(f"weights of {path}: {len(fits)} tensors loaded, {len(new)} new, {len(left)} left out")
    for title, names in (("new", new), ("left out", left)):
        if names:
            reporter.say(f"  {title}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
