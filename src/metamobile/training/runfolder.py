"""The run folder: all that a run writes, and where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from metamobile.files import write_text
from metamobile.training.recipe import Recipe


class RunFolder:
    """Paths and small writes of one run.

    recipe.yaml (resolved), model.safetensors (best averaged weights), last.safetensors, last/ (exact state for
    resuming), metrics.jsonl, log.txt, tensorboard/, evaluation.json, report.html.
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

    def create(self, recipe: Recipe, *, overwrite: bool = False) -> None:
        """Errors: ValueError if something is there, and `overwrite` does not allow to replace it or it is no run."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not overwrite:
                raise ValueError(
                    f"{self.path}: is there already; give another --out, --overwrite to replace it, "
                    f"or --resume {self.path} to go on"
                )
            if not self.recipe.is_file():
                raise ValueError(f"{self.path}: not a run folder (no recipe.yaml), so it is not replaced")
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, recipe.to_yaml())

    def record(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def write_evaluation(self, figures: dict[str, Any]) -> None:
        write_text(self.evaluation, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
