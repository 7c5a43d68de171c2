"""One call of `reproduce`: what is at hand, and the words for what is missing. Imports no torch by itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamobile.weights.find import WEIGHTS, pulled_path

if TYPE_CHECKING:
    from metamobile.show import Table

DATA = {"imagenet": "IMAGENET", "coco": "COCO", "ade20k": "ADE20K"}  # kinds, and how commands call the folder
PICTURES = {
    "imagenet": 50_000,
    "coco": 5_000,
    "ade20k": 2_000,
}  # of the validation sets that papers measure on
KEYS = {"imagenet": ("top1", "top-1"), "coco": ("ap", "AP"), "ade20k": ("miou", "mIoU")}


@dataclass(frozen=True)
class Reproduced:
    """One table: columns that end in "paper's" hold the paper's figures, the others ours or words.

    `notes` are sentences under it: what cannot be met, and why.
    """

    name: str
    title: str
    place: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def table(self) -> Table:
        """As `show.print_table` takes it."""
        return f"{self.title} ({self.place})", self.columns, self.rows


@dataclass
class Request:
    """What a table may use: folders of data by kind, the folder of runs, and a call for each step done."""

    data: dict[str, Path] = field(default_factory=dict)
    runs: Path = Path("runs")
    step: Callable[[str], None] = lambda text: None
    device: str = "cpu"

    @cached_property
    def results(self) -> Path | None:
        """The folder of evidence: of the folder we are in, or of the checkout that this package lies in."""
        for root in (Path.cwd(), Path(__file__).resolve().parents[4]):
            if (root / "results").is_dir():
                return root / "results"
        return None

    def find(self, path: str) -> Path | None:
        """A file of `results`, else of `runs`; None where it is in neither."""
        roots = [self.runs] if self.results is None else [self.results, self.runs]
        return next((root / path for root in roots if (root / path).is_file()), None)

    def evidence(self, path: str) -> dict[str, Any] | None:
        """The JSON in that file, or None where there is none."""
        found = self.find(path)
        return None if found is None else json.loads(found.read_text(encoding="utf-8"))

    def called(self, path: str) -> str:
        """Where that file was found, as a note names it."""
        found = self.find(path)
        return path if found is None else "/".join(found.parts[-len(Path(path).parts) - 1 :])

    def measure(self, kind: str, model: str | Path, fetch: Sequence[str], here: bool) -> str:
        """Our figure on the paper's data; or what is missing, and the command line that fills the cell.

        `fetch` are commands that bring the weights, if they are not `here`.
        """
        if here and kind in self.data:
            return self._evaluate(kind, model)
        missing = ["weights"] * (not here) + ["data"] * (kind not in self.data)
        evaluate = shlex.join(["metamobile", "eval", str(model), "--data", self.folder(kind)])
        commands = [*([] if here else fetch), evaluate]
        return f"{' and '.join(missing)} missing: `{' && '.join(commands)}`"

    def folder(self, kind: str) -> str:
        """The data as a command names them."""
        return str(self.data.get(kind, DATA[kind]))

    def _evaluate(self, kind: str, model: str | Path) -> str:
        from metamobile.inference.evaluate import evaluate

        figures = evaluate(model, self.data[kind], device=self.device)
        key, _ = KEYS[kind]
        if figures[key] is None:
            return "not measurable on these pictures"
        text = f"{figures[key]:.1f}"
        if kind == "coco" and figures.get("mask_ap") is not None:
            text += f" (masks {figures['mask_ap']:.1f})"
        if figures["pictures"] != PICTURES[kind]:
            text += f" of {figures['pictures']:,} pictures: not the paper's {PICTURES[kind]:,}"
        return text

    def classifier(self, weights: str) -> str:
        """Top-1 of published weights by their full name, such as "emo_5m.in1k"."""
        return self.measure(
            "imagenet", weights, [f"metamobile pull {weights}"], pulled_path(weights).is_file()
        )

    def has_run(self, run: str) -> bool:
        """Whether a run folder below `runs` has weights."""
        return (self.runs / run / WEIGHTS).is_file()

    def train(self, name: str, recipe: str, kind: str, run: str, settings: Mapping[str, Any] = {}) -> str:
        """The command line that makes a run folder below `runs`; it pins settings on the recipe."""
        pairs = ",".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in settings.items()
        )
        words = ["metamobile", "train", name, "--recipe", recipe, *(["--set", pairs] if pairs else [])]
        words += ["--data", self.folder(kind), "--out", str(self.runs / run)]
        return shlex.join(words)

    def trained(self, kind: str, run: str, train: Sequence[str]) -> str:
        """Our figure of a run folder below `runs`, which `train` makes."""
        return self.measure(kind, self.runs / run, train, self.has_run(run))


def other_data(request: Request, path: str, about: str) -> list[str]:
    """Our figures on other data, as a note; none without the file."""
    summary = request.evidence(path)
    if summary is None:
        return []
    claim = {key: value for key, value in summary["claim"].items() if key != "pictures"}
    figures = ", ".join(f"{key} {value:.1f}" for key, value in claim.items())
    count = f"{summary['claim']['pictures']:,} pictures"
    where = request.called(path)
    return [f"Ours on other data, not the paper's task: {about}: {figures} on {count} ({where})."]
