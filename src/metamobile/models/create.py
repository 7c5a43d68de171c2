"""One call for every network: ours by name, and any of timm's."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

import metamobile.models.transplants  # noqa: F401  (registers its networks with timm)
from metamobile.errors import nearest
from metamobile.models.emo import EMO, WindowSize
from metamobile.models.pretrained import pretrained_overlay
from metamobile.models.variants import VARIANTS
from metamobile.weights.published import PUBLISHED, published_name


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    window_size: WindowSize | None = None,
    img_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A classifier, (B, 3, H, W) -> (B, num_classes).

    `pretrained` loads published weights that `metamobile pull` left here, by a network's name or the
    weights' own ("emov2_5m_512.in1k_kd", which brings its window); for other networks, timm's. With another
    number of classes the head is new, and that is told.

    `window_size` is EMO's (see `EMO`) and an error for other networks; `img_size` and other arguments go to
    the network. Errors: ValueError for an unknown name, with the nearest one, or an argument the network does
    not take.
    """
    published = published_name(name)
    if published is not None and not timm.is_model(name):  # weights for other settings than the network's own
        row = PUBLISHED[published]
        if pretrained:
            kwargs["pretrained_cfg_overlay"] = pretrained_overlay(published, num_classes)
        name = row.variant
        window_size = row.window_size if window_size is None and img_size is None else window_size
    check_name(name)
    if timm.models.get_arch_name(name) in VARIANTS:
        kwargs |= {"window_size": window_size if window_size is not None else 7, "img_size": img_size}
    elif window_size is not None:
        raise ValueError(f"window_size is EMO's; {name!r} does not take it")
    elif img_size is not None:
        kwargs["img_size"] = img_size
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except TypeError as error:  # an argument that this network's constructor does not have
        raise ValueError(f"{name}: {error}") from error


def check_name(name: str) -> None:
    """Errors: ValueError for a name that no network has, with the nearest one."""
    if not timm.is_model(name):
        raise ValueError(
            f"no network is called {name!r}; known are {', '.join(VARIANTS)} and timm's names"
            + nearest(name, [*VARIANTS, *timm.list_models()])
        )


def resolved_args(model: nn.Module) -> dict[str, Any]:
    """JSON-able arguments that, with the name, make `create_model` build the same network again."""
    args: dict[str, Any] = {"num_classes": getattr(model, "num_classes", None)}
    if isinstance(model, EMO):
        args["window_size"] = [list(w) if isinstance(w, tuple) else w for w in model.window_size]
    elif getattr(model, "pretrained_cfg", {}).get("fixed_input_size"):  # a plain ViT: built for one size
        args["img_size"] = list(model.patch_embed.img_size)  # type: ignore[union-attr, arg-type]
    return args
