"""A run folder, read for the report: what the metrics file, the evaluation and the recipe say."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class RunRecord:
    """What a run left behind; `epochs` in order, each once (a resumed run may have written one twice)."""

    folder: Path
    start: dict = field(default_factory=dict)
    epochs: list[dict] = field(default_factory=list)
    evaluation: dict = field(default_factory=dict)
    recipe: str = ""

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved recipe, or None."""
        return self.settings.get(section, {}).get(key)

    @property
    def task(self) -> str:
        return self.settings.get("task") or "classify"

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        return yaml.safe_load(self.recipe) or {}


def read_run(folder: str | Path) -> RunRecord:
    """Read `folder`. What a run writes late (evaluation, weights) may be missing; `metrics.jsonl` may not."""
    folder = Path(folder)
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise ValueError(
            f"{folder} is not a run folder: it holds no metrics.jsonl; "
            "expected what `metamobile train --out` wrote"
        )
    record = RunRecord(folder)
    epochs: dict[int, dict] = {}
    for line in _lines(metrics):
        kind = line.get("kind")
        if kind == "start":
            record.start = line
        elif kind == "epoch":
            epochs[line["epoch"]] = line
    record.epochs = [epochs[key] for key in sorted(epochs)]
    if (folder / "evaluation.json").is_file():
        record.evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    if (folder / "recipe.yaml").is_file():
        record.recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    return record


def _lines(path: Path) -> list[dict]:
    """The file's objects. A last line cut short by a kill is left out; any other is an error."""
    lines = path.read_text(encoding="utf-8").splitlines()
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}: line {number} is not JSON ({error.msg}); expected one object a line; "
                    "delete that line and write the report again"
                ) from error
    return objects
