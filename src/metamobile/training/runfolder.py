"""The run folder: all that a run writes, and where."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from metamobile.files import write_text
from metamobile.training.recipe import Recipe


class RunFolder:
    """Paths and small writes of one run.

    recipe.yaml (resolved), model.safetensors (best averaged weights), last.safetensors, last/ (exact state to
    go on from), metrics.jsonl, log.txt, tensorboard/, evaluation.json, report.html.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.model = self.path / "model.safetensors"
        self.last_model = self.path / "last.safetensors"
        self.state = self.path / "last"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = self.path / "evaluation.json"

    def check_free(self, overwrite: bool) -> None:
        """Errors: ValueError if something is there that is no run, or that `overwrite` does not give up."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not overwrite:
            raise ValueError(
                f"{self.path}: is there already; give another --out, --overwrite to replace it, "
                f"or --resume {self.path} to go on"
            )
        if not self.recipe.is_file():
            raise ValueError(f"{self.path}: not a run folder (no recipe.yaml), so it is not replaced")

    def create(self, recipe: Recipe) -> None:
        """An empty folder with the recipe; what `check_free` allowed to replace is deleted."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        self.write_recipe(recipe)

    def go_on(self, recipe: Recipe) -> None:
        """The recipe as it is now; a last line of metrics.jsonl that a kill cut short is dropped."""
        self.write_recipe(recipe)
        if self.metrics.is_file():
            with self.metrics.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.recipe, recipe.to_yaml())

    def record(self, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl, and the numbers of a step or an epoch to TensorBoard's events."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")
        if kind in ("step", "epoch"):
            for name, value in values.items():
                if name not in ("step", "epoch"):
                    self._events.add_scalar(f"{kind}/{name}", value, values[kind])
        if kind == "epoch":
            self._events.flush()

    @functools.cached_property
    def _events(self) -> SummaryWriter:
        return SummaryWriter(str(self.tensorboard))

    def write_evaluation(self, figures: dict[str, Any]) -> None:
        write_text(self.evaluation, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
