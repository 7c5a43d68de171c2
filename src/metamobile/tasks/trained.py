"""The data that a model was trained on, split as then, so that no training picture is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metamobile.errors import DataError
from metamobile.weights.card import Card


def split_of_training(
    data: str | Path, card: Card, inspect: Callable[..., Any], open_data: Callable[..., Any]
) -> Any:
    """What `open_data` gives for `data` under the card's recipe; None where the model was trained elsewhere.

    A folder is known by its name, wherever it lies now, and a file, such as data.yaml, by its folder's name
    too. Errors: DataError if its classes are others now.
    """
    from metamobile.training.recipe import Recipe

    if not card.recipe.get("data", {}).get("path"):
        return None
    settings = Recipe.from_dict(card.recipe).data
    if _known_by(Path(settings.path)) != _known_by(Path(data)):
        return None
    settings = replace(settings, path=str(data))
    dropped = inspect(settings).files_to_drop() if settings.drop_bad else ()
    opened = open_data(settings, dropped)
    if opened.classes != card.classes:
        raise DataError(
            f"{data}: its classes are no longer those of the model, which are {', '.join(card.classes)}"
        )
    return opened


def _known_by(path: Path) -> tuple[str, ...]:
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        return (path.name,)
    home = path.absolute().parent
    return (home.parent.name if home.name == "annotations" else home.name, path.name)
