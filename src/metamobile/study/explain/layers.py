"""A network's stages and layers, and the maps that they give.

Shapes: B batch, C channels, T tokens, r c rows and columns of a map, h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from metamobile.errors import nearest
from metamobile.study.explain.frame import stride_of
from metamobile.study.explain.subject import Subject

STAGES = {2 ** (stage + 1): stage for stage in range(5)}  # by stride


def find_stages(subject: Subject) -> dict[int, str]:
    """The module that ends each stage, by number: stage k has stride 2 ** (k + 1), as EMO's 0 to 4.

    Empty for a network whose maps have one stride, such as a ViT.
    """
    body = subject.body
    root = "" if body is subject.network else "backbone."
    if getattr(body, "pyramid", None) is not None:
        return {STAGES[s]: f"{root}pyramid.levels.{i}" for i, s in enumerate(body.pyramid.strides)}
    described = feature_info(subject)
    strides = [stride for stride, _ in described]
    if len(set(strides)) < 2:
        return {}
    return {STAGES[stride]: module for stride, module in described if stride in STAGES}


def feature_info(subject: Subject) -> list[tuple[int, str]]:
    """(stride, module) as timm's list tells them, with the modules' names in the network that is at hand."""
    body = subject.body
    holder, root = body, ""
    if body is not subject.network:
        holder, root = body.network, "backbone.network."
        root += "model." if hasattr(holder, "model") else ""
    info: Any = getattr(holder, "feature_info", None) or []
    rows = info if isinstance(info, list) else info.get_dicts()
    known = {name for name, _ in subject.network.named_modules()}
    found = []
    for row in rows:
        # where timm takes a network apart, it writes stages.3 as stages_3
        names = [root + row["module"], root + row["module"].replace(".", "_")]
        found += [(int(row["reduction"]), name) for name in names[:2] if name in known][:1]
    return found


def last_map(subject: Subject, x: Tensor) -> str:
    """The module with the last map of the network: its last stage, else the last map with several positions.

    Errors: ValueError where there is none.
    """
    stages, described = find_stages(subject), feature_info(subject)
    if stages:
        return stages[max(stages)]
    if described:
        return described[-1][1]
    order: list[str] = []
    names = {module: name for name, module in subject.network.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if names[module] and is_map(output, x, subject.prefix_tokens):
            order.append(names[module])

    with torch.no_grad(), watch(names, note):
        subject.network(x)
    if not order:
        raise ValueError(f"{subject.name}: no layer gives a map of the picture; it cannot be explained")
    return order[-1]


def find_layer(subject: Subject, name: str) -> nn.Module:
    """A module by name. Errors: ValueError with the nearest name."""
    modules = dict(subject.network.named_modules())
    if name not in modules or not name:
        raise ValueError(
            f"{subject.name} has no layer {name!r}; expected a module's name such as "
            f"{last_name(subject)}{nearest(name, modules)}"
        )
    return modules[name]


def last_name(subject: Subject) -> str:
    described = feature_info(subject)
    return described[-1][1] if described else [name for name, _ in subject.network.named_modules()][-1]


def find_stage(subject: Subject, stage: int) -> str:
    """The module that ends the stage. Errors: ValueError that says which stages there are."""
    stages = find_stages(subject)
    if not stages:
        raise ValueError(
            f"{subject.name}: stage {stage} cannot be chosen, as its maps have one stride; expected a layer, "
            f"such as {last_name(subject)}"
        )
    if stage not in stages:
        there = ", ".join(map(str, stages))
        raise ValueError(
            f"{subject.name} has no stage {stage}; expected one of {there} (stage k has stride 2^(k+1))"
        )
    return stages[stage]


@contextmanager
def watch(modules: Any, hook: Any, before: bool = False) -> Iterator[None]:
    """A forward hook on these modules while the block runs; `before`, on their inputs."""
    handles = [
        module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_map(output: Any, x: Tensor, prefix: int) -> bool:
    try:
        found = to_map(output, (x.shape[-2], x.shape[-1]), prefix)
    except ValueError:
        return False
    return found.shape[-1] * found.shape[-2] > 1


def to_map(output: Any, shape: tuple[int, int], prefix: int = 0) -> Tensor:
    """A layer's output -> (B, C, r, c). Known are (B, C, r, c), (B, r, c, C), and tokens (B, T, C), row by
    row after `prefix` others; and EMO's transplants' (B, C, 1, T).

    Errors: ValueError for what is no map of a picture of `shape`.
    """
    if not isinstance(output, Tensor):
        raise ValueError(f"it gives {type(output).__name__}, and not a map; choose another layer")
    if output.ndim == 4:
        if fits(output.shape[2], output.shape[3], shape):
            return output
        if fits(output.shape[1], output.shape[2], shape):
            return output.permute(0, 3, 1, 2)
        if output.shape[2] == 1:
            output = output[:, :, 0].transpose(1, 2)
    if output.ndim == 3:
        tokens = output.shape[1]
        for extra in dict.fromkeys((prefix, 0, 1)):
            for rows in range(1, tokens - extra + 1):
                columns, rest = divmod(tokens - extra, rows)
                if not rest and fits(rows, columns, shape):
                    return output[:, extra:].transpose(1, 2).unflatten(2, (rows, columns))
    raise ValueError(
        f"it gives {tuple(output.shape)}, which is no map of a picture of {shape[0]}x{shape[1]}; choose "
        "another layer"
    )


def fits(rows: int, columns: int, shape: tuple[int, int]) -> bool:
    """Whether positions of such a map are about as far apart in height as in width, and not too few."""
    down, across = stride_of(shape[0], rows), stride_of(shape[1], columns)
    return down >= 1 and across >= 1 and max(down, across) <= 1.2 * min(down, across)
