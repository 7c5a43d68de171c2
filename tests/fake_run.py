"""A run folder as an hour of training would leave it, made in a moment, for the report's tests.

`python tests/fake_run.py OUT [CLASSES]` writes one to look at.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = [
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
]

RECIPE = """\
task: classify
model:
  name: emo_1m
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
    (folder / "recipe.yaml").write_text(RECIPE.format(data=folder / "pictures", epochs=planned or epochs))
    (folder / "last").mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in _metrics(rng, classes, epochs, accuracy))
    )
    (folder / "evaluation.json").write_text(json.dumps(_evaluation(rng, folder, names, accuracy)))
    return folder


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


if __name__ == "__main__":
    from metamobile.report import write_report

    print(write_report(make_run(Path(sys.argv[1]), classes=int(sys.argv[2]) if len(sys.argv) > 2 else 10)))
