"""The optimiser, and which parameters learn at which rate and with which weight decay."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from metamobile.models.create import plain_network
from metamobile.training.recipe import Recipe

BACKBONE = "backbone."  # how the names of a detector's or a segmenter's backbone begin


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """No weight decay for vectors, biases and what the network exempts; groups of layers, and those of a head
    with a rate of its own, have its factor on the schedule's rate as "lr_scale". Parameters that do not learn
    are left out.

    Errors: ValueError for layer decay on a network that does not tell its layers, and for a head's rate where
    there is no backbone.
    """
    settings = recipe.optim
    layer_decay = settings.layer_decay if settings.layer_decay != 1 else None
    if layer_decay is not None and not hasattr(model, "group_matcher"):
        raise ValueError(
            f"recipe: optim.layer_decay is {layer_decay:g}, but {_in_words(model, recipe)} does not tell its "
            "layers (it has no group_matcher); expected null for this network"
        )
    dense = hasattr(model, "backbone")
    if settings.head_lr != 1 and not dense:
        raise ValueError(
            f"recipe: optim.head_lr is {settings.head_lr:g}, but {_in_words(model, recipe)} is a classifier, "
            "which has no backbone apart; expected 1 (optim.layer_decay slows its lower layers)"
        )
    return create_optimizer_v2(
        model,
        opt=settings.name,
        lr=recipe.lr,
        weight_decay=settings.weight_decay,
        betas=tuple(settings.betas),
        eps=settings.eps,
        layer_decay=layer_decay,
        param_group_fn=partial(_dense_groups, recipe=recipe) if dense else None,
    )


def _dense_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """A dense network's parameters: with and without weight decay, of the backbone and of the rest."""
    groups = param_groups_weight_decay(model, recipe.optim.weight_decay, no_weight_decay_list=_exempt(model))
    if recipe.optim.head_lr == 1:
        return groups
    backbone = {id(p) for name, p in model.named_parameters() if name.startswith(BACKBONE)}
    split: list[dict[str, Any]] = []
    for group in groups:
        for factor, inside in ((1.0, True), (recipe.optim.head_lr, False)):
            parameters = [p for p in group["params"] if (id(p) in backbone) == inside]
            if parameters:
                split.append({**group, "params": parameters, "lr_scale": factor})
    return split


def _exempt(model: nn.Module) -> set[str]:
    """What the backbone exempts from weight decay (position embeddings), by the names of the whole model."""
    network: Any = plain_network(model)
    if not hasattr(network, "no_weight_decay"):
        return set()
    prefix = next(name for name, module in model.named_modules() if module is network)
    return {f"{prefix}.{name}" for name in network.no_weight_decay()}


def _in_words(model: nn.Module, recipe: Recipe) -> str:
    head = getattr(model, "settings", {}).get("head")
    return f"{recipe.model.name} with the head {head}" if head else recipe.model.name
