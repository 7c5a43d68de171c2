"""Class activation maps by the package grad-cam, at the resolution of the layer; and their check.

Grad-CAM weighs the maps of a layer by the mean gradient of the number asked about and sums them, negative
sums cut to 0; grad-cam brings the lowest to 0 and the highest to 1, so that maps show where, not how much.
Source: Grad-CAM (arXiv 1610.02391), Grad-CAM++ (1710.11063), Score-CAM (1910.01279), Eigen-CAM (2008.00299).

Shapes: B batch, C channels, r c rows and columns of the layer's map, h w of the network's input.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metamobile.study.explain.frame import Floats
from metamobile.study.explain.layers import find_layer, find_stage, find_stages, last_map, to_map, watch
from metamobile.study.explain.methods import METHODS
from metamobile.study.explain.subject import Subject
from metamobile.tasks.asked import NothingFound, Question

SEEDS = 3  # shuffled networks that a map is compared with


def load_method(method: str) -> Any:
    """grad-cam's class, made to keep the layer's resolution. Errors: ValueError where grad-cam is missing."""
    try:
        import pytorch_grad_cam
        import pytorch_grad_cam.score_cam
        from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction
    except ModuleNotFoundError as error:
        raise ValueError(f'explain needs grad-cam ({error}): pip install "metamobile[explain]"') from error
    pytorch_grad_cam.score_cam.tqdm = SimpleNamespace(tqdm=iter)  # else a bar for every map; the verb has one
    kind = getattr(pytorch_grad_cam, METHODS[method][0])

    class AtItsResolution(kind):  # type: ignore[misc, valid-type]
        def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, int]:
            rows, columns = self.activations_and_grads.activations[0].shape[-2:]
            return columns, rows

    class WithASign(AtItsResolution):
        """A principal component has no sign of its own; grad-cam's rule makes its larger side positive."""

        def get_cam_image(self, *given: Any) -> Any:
            return get_2d_projection_with_sign_correction(given[3])

    return WithASign if method == "eigencam" else AtItsResolution


def activation_map(subject: Subject, question: Question, layer: nn.Module, x: Tensor, method: str) -> Floats:
    """(1, 3, h, w) -> (r, c) from 0 to 1; all 0 where nothing in the layer speaks for what is asked.

    Errors: ValueError for a layer without a map, or one that the number asked about does not depend on.
    """
    shape = subject.padded((x.shape[-2], x.shape[-1]))
    kind = load_method(method)
    cam = kind(
        question.answer,
        [layer],
        reshape_transform=lambda output: to_map(output, shape, subject.prefix_tokens),
    )
    try:
        # gradients to the picture, as a frozen network would have none at all
        values = cam(x.detach().clone().requires_grad_(), [question.value])[0]
    finally:
        cam.activations_and_grads.release()
        question.answer.zero_grad(set_to_none=True)
    return np.asarray(values, np.float32)


def gradient_at(subject: Subject, question: Question, layer: nn.Module, x: Tensor) -> Tensor | None:
    """(B, C, r, c): how the number asked about changes with the layer's map; None where it does not.

    Errors: ValueError for a layer that gives no map.
    """
    shape = subject.padded((x.shape[-2], x.shape[-1]))
    seen: list[Any] = []
    with torch.enable_grad(), watch([layer], lambda module, _, output: seen.append(output)):
        value = question.value(question.answer(x.detach().clone().requires_grad_())[0])
        if not seen:
            return None
        to_map(seen[-1], shape, subject.prefix_tokens)  # says what is wrong with another layer
        (gradient,) = torch.autograd.grad(value, seen[-1], allow_unused=True)
    return None if gradient is None else to_map(gradient, shape, subject.prefix_tokens)


def choose_layer(
    subject: Subject, question: Question, x: Tensor, stage: int | None = None, layer: str | None = None
) -> str:
    """The layer by name; else the one that ends the stage; else the last one that can tell places apart.

    The last map of a network may not do. An object that a detector found on a finer map does not depend on
    it, so that the stage before is taken. Where a class token alone is classified, the patches behind the
    last attention do not matter, so that the last norm before it is taken.
    Errors: ValueError for an unknown layer or stage; NothingFound where what is asked does not depend on it.
    """
    name = (
        layer if layer is not None else last_map(subject, x) if stage is None else find_stage(subject, stage)
    )
    try:
        gradient = gradient_at(subject, question, find_layer(subject, name), x)
    except ValueError as error:
        raise ValueError(f"{subject.name}: layer {name}: {error}") from error
    if gradient is not None and gradient.any():
        return name
    if stage is None and layer is None:
        for other in _before(subject, name):
            try:
                gradient = gradient_at(subject, question, find_layer(subject, other), x)
            except ValueError:  # no map
                continue
            if gradient is not None and gradient.any():
                return other
    raise NothingFound(
        f"{question.target.label} does not depend on the map of {name}; choose a layer or stage before it"
    )


def _before(subject: Subject, name: str) -> list[str]:
    """Where else to look, the last first: the stages before, or the norms of the last one's blocks."""
    earlier = [module for _, module in sorted(find_stages(subject).items(), reverse=True) if module != name]
    inside = [
        f"{name}.{inner}"
        for inner, _ in find_layer(subject, name).named_modules()
        if inner.rpartition(".")[2].startswith("norm")
    ]
    return inside[::-1] + earlier if subject.body is subject.network else earlier


def shuffle_weights(network: nn.Module, seed: int) -> None:
    """Put the numbers of each parameter, and of each norm's statistics, in another order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        statistics = [
            b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))
        ]
        for learned in (*network.parameters(), *statistics):
            order = torch.randperm(learned.numel(), generator=generator).to(learned.device)
            learned.copy_(learned.flatten()[order].view_as(learned))


def correlation_with_shuffled(
    subject: Subject, question: Question, layer: nn.Module, x: Tensor, method: str, values: Floats
) -> float | None:
    """Rank correlation of a map with those of the network after its weights were shuffled: the mean of
    `SEEDS`. Near 1, the map would show the picture and the architecture, and nothing that was learned. None
    where no comparison is possible, as a map is the same everywhere.

    Source: Sanity Checks for Saliency Maps (arXiv 1810.03292).
    """
    found = []
    for seed in range(SEEDS):
        answer = copy.deepcopy(question.answer)
        other = dict(zip(question.answer.modules(), answer.modules(), strict=True))[layer]
        shuffle_weights(answer, seed)
        changed = activation_map(subject, replace(question, answer=answer), other, x, method)
        one = rank_correlation(values, changed)
        found += [] if one is None else [one]
    return sum(found) / len(found) if found else None


def rank_correlation(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Spearman's, of two maps; None where one is the same everywhere."""
    from scipy.stats import spearmanr  # comes with grad-cam

    if not np.isfinite(other).all() or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one.ravel(), other.ravel()).statistic)
