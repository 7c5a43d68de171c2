"""Published weights for timm's way of loading them: the file, and what its card says as timm's record."""

from __future__ import annotations

import logging
import math
from typing import Any

from metamobile.errors import nearest
from metamobile.weights.card import Card, read_card
from metamobile.weights.find import find_pulled
from metamobile.weights.published import PUBLISHED, published_name


def pretrained_overlay(name: str, num_classes: int | None = None) -> dict[str, Any]:
    """timm's `pretrained_cfg_overlay` for pulled weights; a head that `num_classes` leaves out is told.

    Errors: ValueError for a network without published weights, and for weights that are not here, with the
    command that fetches them.
    """
    full = published_name(name)
    if full is None:
        raise ValueError(
            f"{name} has no published weights; there are {', '.join(PUBLISHED)}{nearest(name, PUBLISHED)}"
        )
    path = find_pulled(full)
    card = read_card(path)
    if num_classes not in (None, 0, len(card.classes)):
        logging.getLogger(__name__).warning(
            "%s: its head for %d classes is left out, and the new one for %d is untrained",
            full, len(card.classes), num_classes,
        )  # fmt: skip
    return {"file": str(path), "tag": full.split(".")[1], **timm_record(card)}


def timm_record(card: Card) -> dict[str, Any]:
    """The part of timm's `pretrained_cfg` that a card tells."""
    record = card.preprocess
    return {
        "num_classes": len(card.classes),
        "input_size": (3, *record.size),
        "crop_pct": _crop_pct(max(record.size), record.shorter_side),
        "interpolation": record.interpolation,
        "mean": record.mean,
        "std": record.std,
    }


def _crop_pct(size: int, side: int) -> float:
    """The share that timm turns into `side` again: it rounds size / share down, which may lose a pixel."""
    share = size / side
    return share if math.floor(size / share) == side else math.nextafter(share, 0)
