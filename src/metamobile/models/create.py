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
    task: str = "classify",
    head: str | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    window_size: WindowSize | None = None,
    img_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A classifier, (B, 3, H, W) -> (B, num_classes); or by `task` a detector or a segmenter.

    "detect" has the heads ssdlite (unless given), retinanet and mask_rcnn (see `create_detector`); "segment"
    has deeplabv3, pspnet, fpn and segformer (see `create_segmenter`). `num_classes` is that of ImageNet-1K,
    COCO or ADE20K unless given: 1000, 80, 150.

    `pretrained` loads published weights that `metamobile pull` left here, by a network's name or the
    weights' own ("emov2_5m_512.in1k_kd", which brings its window); for other networks, timm's. With another
    number of classes the head is new, and that is told.

    `window_size` is EMO's (see `EMO`) and an error for other networks; `img_size` and other arguments go to
    the network. Errors: ValueError for an unknown name, with the nearest one, or an argument the network does
    not take.
    """
    if task != "classify":
        args = {"pretrained": pretrained, "num_classes": num_classes, "window_size": window_size, **kwargs}
        args |= {"img_size": img_size}
        return _dense(name, task, head, {key: value for key, value in args.items() if value is not None})
    if head is not None:
        raise ValueError(f"head {head!r}: a classifier has none to choose; give task='detect' or 'segment'")
    num_classes = 1000 if num_classes is None else num_classes
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


def _dense(name: str, task: str, head: str | None, args: dict[str, Any]) -> nn.Module:
    """A detector or a segmenter. Errors: ValueError for an unknown task."""
    from metamobile.models.detectors import create_detector  # these build their backbones by `create_model`
    from metamobile.models.segmenters import create_segmenter

    makers: dict[str, Any] = {"detect": create_detector, "segment": create_segmenter}
    if task not in makers:
        known = ["classify", *makers]
        raise ValueError(f"no task is called {task!r}; known are {', '.join(known)}{nearest(task, known)}")
    return makers[task](name, **({} if head is None else {"head": head}), **args)


def check_name(name: str) -> None:
    """Errors: ValueError for a name that no network has, with the nearest one."""
    if not timm.is_model(name):
        raise ValueError(
            f"no network is called {name!r}; known are {', '.join(VARIANTS)} and timm's names"
            + nearest(name, [*VARIANTS, *timm.list_models()])
        )


def plain_network(model: Any) -> nn.Module:
    """The network that a name means: of a detector or a segmenter, its backbone's, else the model itself."""
    if not hasattr(model, "backbone"):
        return model
    return getattr(model.backbone.network, "model", model.backbone.network)


def resolved_args(model: nn.Module) -> dict[str, Any]:
    """JSON-able arguments that, with the name, make `create_model` build the same network again."""
    network = plain_network(model)
    if network is not model:
        return {"task": model.task, **resolved_args(network), **model.settings}  # type: ignore[dict-item]
    args: dict[str, Any] = {"num_classes": getattr(model, "num_classes", None)}
    if isinstance(model, EMO):
        args["window_size"] = [list(w) if isinstance(w, tuple) else w for w in model.window_size]
    elif getattr(model, "pretrained_cfg", {}).get("fixed_input_size"):  # a plain ViT: built for one size
        args["img_size"] = list(model.patch_embed.img_size)  # type: ignore[union-attr, arg-type]
    return args
