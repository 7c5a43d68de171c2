"""A run folder as an hour of training would leave it, made in a moment, for the report's tests.

`python tests/fake_run.py OUT [CLASSES] [TASK]` writes one to look at.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = [
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
]

RECIPE = """\
task: {task}
model:
  name: emo_1m
  head: {head}
  pretrained: null
  window_size: auto
  drop_path_rate: null
data:
  path: {data}
  size: 128
  val_fraction: 0.2
  seed: 0
augment:
  scale: [0.35, 1.0]
  auto_augment: rand-m9-mstd0.5-inc1
optim:
  name: adamw
  lr: 0.002
  weight_decay: 0.05
schedule:
  epochs: {epochs}
  warmup_epochs: 3
ema:
  decay: 0.9998
  enabled: true
run:
  batch_size: 64
  precision: bf16
  device: auto
"""


def make_run(
    folder: Path, classes: int = 10, epochs: int = 40, planned: int | None = None, accuracy: float = 0.9
) -> Path:
    """Write metrics.jsonl, evaluation.json, recipe.yaml and a few pictures under `folder`; returns it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = NAMES[:classes] if classes <= len(NAMES) else [f"class number {i}" for i in range(classes)]
    _write_recipe(folder, "classify", planned or epochs)
    (folder / "last").mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in _metrics(rng, classes, epochs, accuracy))
    )
    (folder / "evaluation.json").write_text(json.dumps(_evaluation(rng, folder, names, accuracy)))
    return folder


def make_dense_run(
    folder: Path, task: str, classes: int = 80, epochs: int = 24, names: Sequence[str] = (), side: int = 48
) -> Path:
    """The same of a run of "detect" or "segment", with drawings of the worst pictures, `side` pixels each.

    Every eighth class is one of which there is nothing: its shares are None.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(names) or [f"class number {i}" for i in range(classes)]
    _write_recipe(folder, task, epochs, head="ssdlite" if task == "detect" else "deeplabv3")
    (folder / "last").mkdir(exist_ok=True)
    evaluation = (_detection if task == "detect" else _segmentation)(rng, names)
    main = "ap" if task == "detect" else "miou"
    lines = _metrics(rng, len(names), epochs, 0.5)
    for line in lines:
        if line["kind"] == "epoch":
            figure = evaluation[main] * (1 - math.exp(-line["epoch"] / 6))
            for key in ("val_loss", "top1", "top5", "raw_top1"):
                del line[key]
            line[main] = figure
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation["wrong"] = _drawings(rng, folder, names, side)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def _write_recipe(folder: Path, task: str, epochs: int, head: str = "null") -> None:
    values = {"task": task, "data": folder / "pictures", "epochs": epochs, "head": head}
    (folder / "recipe.yaml").write_text(RECIPE.format(**values))


def _metrics(rng: np.random.Generator, classes: int, epochs: int, accuracy: float) -> list[dict]:
    versions = {
        "metamobile": "0.1.0",
        "torch": "2.14.1",
        "torchvision": "0.29.1",
        "timm": "1.0.31",
        "python": "3.11.2",
    }
    lines: list[dict] = [
        {
            "kind": "start",
            "command": "metamobile train emo_1m --data pictures --out runs/pictures",
            "machine": "Intel(R) Xeon(R) 2.60GHz, 2 cores, Linux 6.1",
            "device": "cpu",
            "parameters": 1_233_858,
            "data": {
                "classes": classes,
                "train": 9469,
                "val": 3925,
                "split": "the folder's own train/ and val/",
            },
            "versions": versions,
        }
    ]
    for epoch in range(1, epochs + 1):
        lr = 2e-3 * (
            epoch / 3 if epoch <= 3 else 0.5 * (1 + math.cos(math.pi * (epoch - 3) / max(epochs - 3, 1)))
        )
        rise = 1 - math.exp(-epoch / (epochs / 4.5))
        loss = math.log(classes) * (1 - 0.78 * rise) + rng.normal(0, 0.02)
        for step in range(50, 148, 50):
            lines.append(
                {
                    "kind": "step",
                    "step": (epoch - 1) * 147 + step,
                    "epoch": epoch,
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": 1.7,
                }
            )
        top1 = 100 * (accuracy + 0.002) * rise * (0.93 if epoch < 3 else 1) + rng.normal(0, 0.15)
        lines.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "train_loss": loss,
                "val_loss": math.log(classes) * (1 - 0.82 * rise),
                "top1": min(top1, 100.0),
                "top5": 99.2,
                "raw_top1": max(
                    0.0,
                    min(
                        top1 - 4 * (1 - epoch / epochs) + rng.normal(0, 1.6 * (1 - epoch / epochs) + 0.1),
                        100.0,
                    ),
                ),
                "lr": lr,
                "seconds": 96.4,
                "images_per_second": 104.2,
            }
        )
    return lines


def _evaluation(rng: np.random.Generator, folder: Path, names: list[str], accuracy: float) -> dict:
    classes = len(names)
    confusion = np.zeros((classes, classes), dtype=int)
    habit = rng.dirichlet(
        np.full(classes, 0.25), size=classes
    )  # each class has favourites that it is taken for
    for i in range(classes):
        total = int(rng.integers(330, 420)) if classes <= 20 else 50
        right = min(total, rng.binomial(total, min(0.99, max(0.3, accuracy + rng.normal(0, 0.05)))))
        habit[i, i] = 0
        confusion[i] = rng.multinomial(total - right, habit[i] / habit[i].sum())
        confusion[i, i] = right
    precision = np.diag(confusion) / np.maximum(confusion.sum(0), 1)
    recall = np.diag(confusion) / confusion.sum(1)
    per_class = {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(2 * precision[i] * recall[i] / max(precision[i] + recall[i], 1e-9)),
            "support": int(confusion[i].sum()),
        }
        for i, name in enumerate(names)
    }
    return {
        "top1": 100 * float(np.trace(confusion) / confusion.sum()),
        "top5": 99.24,
        "loss": 0.412,
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "wrong": _wrong(rng, folder / "pictures", names),
    }


def _wrong(rng: np.random.Generator, pictures: Path, names: list[str], count: int = 12) -> list[dict]:
    wrong = []
    for i in range(count):
        truth, predicted = rng.choice(len(names), size=2, replace=False)
        path = pictures / "val" / f"{truth:03}" / f"picture_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (int(side) for side in rng.integers(60, 240, size=2))
        ramp = np.linspace(0, 255, width)[None, :, None] * rng.uniform(0.2, 1.0, size=(height, 1, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(path)
        score = float(rng.uniform(0.55, 0.999))
        wrong.append(
            {"path": str(path), "truth": names[truth], "predicted": names[predicted], "score": score}
        )
    return sorted(wrong, key=lambda entry: -entry["score"])


def _detection(rng: np.random.Generator, names: Sequence[str]) -> dict:
    """As detect's metric gives it: K + 1 rows, the last of boxes where nothing is, and curves."""
    classes = len(names)
    support = (40 + 8000 * rng.random(classes) ** 4).astype(int)
    support[7::8] = 0
    found = rng.uniform(0.2, 0.8, classes)
    confusion = np.zeros((classes + 1, classes + 1), dtype=int)
    for i in range(classes):
        confusion[i, i] = int(found[i] * support[i])
        missed = int(0.8 * (support[i] - confusion[i, i]))
        confusion[i, -1] = missed
        rest = int(support[i]) - confusion[i, i] - missed
        confusion[i, :-1] += rng.multinomial(rest, rng.dirichlet(np.full(classes, 0.1)))
        confusion[-1, i] = int(rng.uniform(0.1, 0.5) * support[i])
    recall = np.linspace(0, 1, 101)
    there = np.flatnonzero(support)
    curves = {
        i: np.clip(1 - (recall / found[i]) ** rng.uniform(1, 6), 0, 1) * rng.uniform(0.7, 1) for i in there
    }
    mean = np.mean(list(curves.values()), axis=0)
    most = there[np.argsort(-support[there], kind="stable")][:20]
    ap50 = {i: float(curve.mean()) for i, curve in curves.items()}
    per_class = {
        name: {
            "ap": 0.6 * ap50[i] if support[i] else None,
            "ap50": ap50[i] if support[i] else None,
            "recall": confusion[i, i] / int(support[i]) if support[i] else None,
            "precision": confusion[i, i] / int(confusion[:, i].sum()) if confusion[:, i].sum() else None,
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    }
    return {
        "ap": 60 * float(mean.mean()),
        "ap50": 100 * float(mean.mean()),
        "ap75": None,
        "pictures": 5000,
        "per_class": per_class,
        "curves": {
            "recall": recall.round(2).tolist(),
            "iou50": mean.round(4).tolist(),
            "iou75": (mean * (1 - 0.6 * recall)).round(4).tolist(),
            "per_class": {names[i]: curves[i].round(4).tolist() for i in most},
        },
        "confusion": confusion.tolist(),
        "confusion_names": [*names, "background"],
    }


def _segmentation(rng: np.random.Generator, names: Sequence[str]) -> dict:
    """As segment's metric gives it: millions of pixels, a few in nearly every cell."""
    classes = len(names)
    support = (2e7 * rng.random(classes) ** 5 + 20_000).astype(np.int64)
    support[7::8] = 0
    confusion = np.zeros((classes, classes), dtype=np.int64)
    for i in range(classes):
        right = int(rng.uniform(0.3, 0.9) * support[i])
        confusion[i] = rng.multinomial(support[i] - right, rng.dirichlet(np.full(classes, 0.15)))
        confusion[i, i] += right
    hits, named = np.diag(confusion), confusion.sum(axis=0)

    def share(part: np.int64, whole: np.int64) -> float | None:
        return float(part / whole) if whole else None

    per_class = {
        name: {
            "iou": share(hits[i], support[i] + named[i] - hits[i]),
            "accuracy": share(hits[i], support[i]),
            "precision": share(hits[i], named[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    }
    accuracies = [entry["accuracy"] for entry in per_class.values() if entry["accuracy"] is not None]
    return {
        "miou": 100 * float(np.mean([entry["iou"] or 0.0 for entry in per_class.values()])),
        "macc": 100 * float(np.mean(accuracies)),
        "aacc": 100 * float(hits.sum() / support.sum()),
        "pictures": 2000,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def _drawings(rng: np.random.Generator, folder: Path, names: Sequence[str], side: int) -> list[dict]:
    """Two pictures beside each other a drawing, of various shapes."""
    wrong = []
    (folder / "worst").mkdir(exist_ok=True)
    for rank in range(12):
        height = int(rng.uniform(0.4, 1.2) * side)
        sheet = np.full((height, 2 * side + 8, 3), 255, np.uint8)
        for left in (0, side + 8):
            ramp = np.linspace(0, 255, side)[None, :, None] * rng.uniform(0.2, 1.0, size=(height, 1, 3))
            sheet[:, left : left + side] = ramp
        drawing = f"worst/{rank:02}.jpg"
        Image.fromarray(sheet).save(folder / drawing)
        truth, predicted = (
            ", ".join(f"{k + 1} {names[k]}" for k in rng.integers(0, len(names), 3)) for _ in range(2)
        )
        entry = {"path": f"pictures/val/{rank}.jpg", "drawing": drawing, "truth": truth}
        wrong.append({**entry, "predicted": predicted, "score": rank / 20, "note": ""})
    return wrong


if __name__ == "__main__":
    from metamobile.report import write_report

    folder, number = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10
    task = sys.argv[3] if len(sys.argv) > 3 else "classify"
    print(
        write_report(
            make_run(folder, number) if task == "classify" else make_dense_run(folder, task, number, side=480)
        )
    )
