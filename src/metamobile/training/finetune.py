"""Starting from weights at hand: what fits is loaded, what was loaded, new or left out is told, and the
classifier can learn alone at first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from metamobile.models.create import plain_network
from metamobile.models.emo import EMO, PUBLISHED_WINDOW, WindowSize, resolve_windows
from metamobile.models.operators import WindowAttention
from metamobile.training.progress import Reporter
from metamobile.weights.card import Card
from metamobile.weights.file import load_weights
from metamobile.weights.find import find_model

BACKBONES = ("backbone.network.model.", "backbone.network.")  # where a dense model has its network


def load_pretrained(model: nn.Module, classes: Sequence[str], source: str, reporter: Reporter) -> None:
    """Load the tensors of `source` (a run, a .safetensors file, a shipped name) whose names and shapes fit.

    The classifier is taken over only where the classes are the same; else it is new, even if of equal size.
    Errors: ValueError where less than half of the network fits.
    """
    path = find_model(source)
    given, card = load_weights(path)
    given = _renamed(given, model)
    own = model.state_dict()
    classifier = classifier_prefixes(model)
    same_classes = list(classes) == card.classes
    fits = {
        name: tensor
        for name, tensor in given.items()
        if name in own
        and tensor.shape == own[name].shape
        and (same_classes or not name.startswith(classifier))
    }
    prefix = _prefix(model)
    backbone = [
        name
        for name, tensor in given.items()
        if tensor.dim() > 1 and name.startswith(prefix) and not name.startswith(classifier)
    ]
    fitting = sum(name in fits for name in backbone)
    if not backbone or 2 * fitting < len(backbone):  # some have the same shape by chance
        raise ValueError(
            f"{path}: of the {len(backbone)} kernels and matrices of its {card.variant}, {fitting} fit this "
            "network; start from weights of the same variant"
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
    network = plain_network(model)
    if isinstance(network, EMO):
        _say_windows(network, card, reporter)


def _prefix(model: nn.Module) -> str:
    """How the names of the network's tensors begin: nothing, but for a detector's or a segmenter's."""
    network = plain_network(model)
    name = next(name for name, module in model.named_modules() if module is network)
    return f"{name}." if name else ""


def _renamed(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A classifier's tensors by the names that they have in a detector or a segmenter, and the reverse, which
    leaves the head out."""
    own = _prefix(model)
    theirs = next((prefix for prefix in BACKBONES if any(name.startswith(prefix) for name in given)), "")
    if not own and theirs:
        return {name.removeprefix(theirs): given[name] for name in given if name.startswith(theirs)}
    if own and not theirs:
        return {f"{own}{name}": tensor for name, tensor in given.items()}
    return {
        name.replace(theirs, own, 1) if theirs and name.startswith(theirs) else name: tensor
        for name, tensor in given.items()
    }


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names of the classifier's tensors begin ("head.fc."); some of timm's networks have two.

    Of a detector or a segmenter, the layers whose answers are classes. Errors: ValueError for a network that
    has none.
    """
    if hasattr(model, "backbone"):
        return model.class_layers  # type: ignore[return-value]
    config: Any = model.pretrained_cfg  # timm's record of a network
    names = config["classifier"] or ()
    prefixes = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    if not any(name.startswith(prefixes) for name, _ in model.named_parameters()):
        raise ValueError(
            f"{config['architecture']}: timm's record of this network names no classifier; "
            "expected a network that classifies"
        )
    return prefixes


def learning_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names of what learns alone at first begin: the classifier's, or all but the backbone's."""
    if not hasattr(model, "backbone"):
        return classifier_prefixes(model)
    return tuple(f"{name}." for name, _ in model.named_children() if name != "backbone")


def _say_windows(model: EMO, card: Card, reporter: Reporter) -> None:
    """Weights fit whatever the windows, which have no parameters; but they were trained for theirs."""
    windows: WindowSize = card.model_args.get("window_size", PUBLISHED_WINDOW)
    theirs = _pairs(resolve_windows(windows, card.preprocess.size))
    ours = _pairs(model.window_size)
    stages = [
        index
        for index, stage in enumerate(list(model.stages)[1:])
        if any(isinstance(module, WindowAttention) for module in stage.modules())
    ]
    trained, here = ([side[index] for index in stages] for side in (theirs, ours))
    if trained != here:
        one = len(set(theirs)) == 1 and theirs[0][0] == theirs[0][1]
        keep = theirs[0][0] if one else str([list(window) for window in theirs]).replace(" ", "")
        reporter.say(
            f"windows of {_in_words(trained)} in these weights, {_in_words(here)} here: attention joins "
            f"other tokens than it learned to; --set {shlex.quote(f'model.window_size={keep}')} keeps theirs"
        )


def _pairs(windows: Sequence[Any]) -> list[tuple[int, int]]:
    return [(w, w) if isinstance(w, int) else (w[0], w[1]) for w in windows]


def _in_words(windows: Sequence[tuple[int, int]]) -> str:
    return " and ".join(dict.fromkeys(f"{height}x{width}" for height, width in windows))


def set_learning(model: nn.Module, optimizer: Any, classifier_alone: bool) -> None:
    """Let the classifier learn alone, or everything that the optimiser holds.

    What does not learn has no gradient, so no weight decay moves it either, and the statistics of its batch
    norms stay. Drop path and dropout go on. Call it after `model.train()`, which undoes the latter part.
    """
    classifier = learning_prefixes(model)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if id(parameter) in held:  # some of timm's networks have parameters that never learn
            parameter.requires_grad_(not classifier_alone or name.startswith(classifier))
    if classifier_alone:
        for name, module in model.named_modules():
            if getattr(module, "track_running_stats", False) and not f"{name}.".startswith(classifier):
                module.eval()
