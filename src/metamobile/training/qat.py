"""Training with eight bits in view: convolutions and linear layers round what they take and their weights.

The rounding is that of exported int8 files: weights to 8 bits signed, a scale for each output channel;
activations to 8 bits, a scale and a zero for each tensor, of the batch's own range. Gradients pass it as if
it were not there. Nothing is learned or kept beside the weights, so that a run goes on exactly, and its
weights are a float model's: `metamobile export --precision int8` calibrates the scales.

A scale for each output channel is the same before and after batch norm behind a convolution is folded; norms
that are folded into the layer behind them change a weight's input channels, and the rounding with them.
Source: Jacob et al., arXiv 1712.05877; PyTorch's fake quantisation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamobile.tasks import get_task
from metamobile.training.recipe import Recipe, load_recipe
from metamobile.weights.file import load_weights
from metamobile.weights.find import find_model

EPOCHS, LR_SHARE = 3, 0.05  # a few epochs from the float weights, at a small share of their peak rate


def rounded(x: Tensor) -> Tensor:
    """A tensor as 256 levels between its lowest and highest value, 0 among them, give it."""
    low, high = x.detach().aminmax()
    low, high = low.clamp(max=0).float(), high.clamp(min=0).float()
    scale = ((high - low) / 255).clamp(min=1e-8)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)


def rounded_weight(weight: Tensor) -> Tensor:
    """(O, ...) as 255 levels around 0 give it, for each of its O channels apart."""
    largest = weight.detach().flatten(1).abs().amax(1).float()
    scale = (largest / 127).clamp(min=1e-8)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -127, 127)


class RoundedConv2d(nn.Conv2d):
    """nn.Conv2d with the same tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(rounded(x), rounded_weight(self.weight), self.bias)


class RoundedLinear(nn.Linear):
    """nn.Linear with the same tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded(x), rounded_weight(self.weight), self.bias)


ROUNDED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: RoundedConv2d, nn.Linear: RoundedLinear}


def add_rounding(model: nn.Module) -> int:
    """Let the layers of `model` round, in place, in training and evaluation; answers how many do. Layers of a
    class derived from PyTorch's stay as they are."""
    layers = [module for module in model.modules() if type(module) in ROUNDED]
    for module in layers:
        module.__class__ = ROUNDED[type(module)]  # names and tensors stay, as saved weights need them
    return len(layers)


def qat_recipe(model: str) -> Recipe:
    """The recipe that `model` (a run, weights, a shipped name) was trained by, for a few epochs with
    rounding; of weights without one, that of their task. Errors: ValueError for what has no weights."""
    _, card = load_weights(find_model(model))
    recipe = Recipe.from_dict(card.recipe) if card.recipe else load_recipe(get_task(card.task).recipe)
    changes: dict[str, Any] = {
        "model.pretrained": model,
        "model.qat": True,
        "schedule.epochs": EPOCHS,
        "schedule.warmup_epochs": 0,
        "schedule.warmup_steps": None,
        "schedule.frozen_epochs": 0,
        "optim.lr": recipe.optim.lr * LR_SHARE,
        "run.eval_every": 1,
    }
    if not card.recipe:
        changes["model.name"] = card.variant
    return recipe.replace(changes)
