"""Keep a run as evidence: its recipe, log, figures and curves, without any picture of its data.

    python benchmarks/collect_run.py runs/imagenette-emo_1m results/imagenette-emo_1m --commit HASH
        [--ship src/metamobile/weights/shipped/NAME.safetensors --notes "where the pictures come from"]

`--ship` also writes the run's weights in half precision, card and notes inside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from metamobile.weights.file import load_weights, save_weights

KEPT = ("recipe.yaml", "log.txt", "metrics.jsonl", "evaluation.json")


def draw_curves(lines: list[dict], path: Path) -> None:
    """Loss and top-1 over epochs."""
    epochs = [line for line in lines if line["kind"] == "epoch"]
    measured = [line for line in epochs if "top1" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(
        [e["epoch"] for e in epochs], [e["train_loss"] for e in epochs], label="training (smoothed labels)"
    )
    left.plot(
        [e["epoch"] for e in measured],
        [e["val_loss"] for e in measured],
        label="validation, averaged weights",
    )
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend(frameon=False)
    right.plot([e["epoch"] for e in measured], [e["top1"] for e in measured], marker="o", markersize=3)
    best = max(measured, key=lambda e: e["top1"])
    right.annotate(
        f"{best['top1']:.2f} %",
        (best["epoch"], best["top1"]),
        (-8, -18),
        textcoords="offset points",
        ha="right",
    )
    right.set(xlabel="epoch", ylabel="top-1, % (averaged weights)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", required=True, help="of the code that trained")
    parser.add_argument("--ship", type=Path)
    parser.add_argument("--notes", default="")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(given.run / name, given.out / name)
    lines = [json.loads(line) for line in (given.run / "metrics.jsonl").read_text().splitlines()]
    # a run that was stopped and gone on with may repeat an epoch: the last time counts
    lines = list({(line["kind"], line.get("step"), line.get("epoch")): line for line in lines}.values())
    draw_curves(lines, given.out / "curves.png")
    start = next(line for line in lines if line["kind"] == "start")
    evaluation = json.loads((given.run / "evaluation.json").read_text())
    state, card = load_weights(given.run / "model.safetensors")
    summary = {
        "claim": {"top1": evaluation["top1"], "top5": evaluation["top5"], "pictures": start["data"]["val"]},
        "chosen": card.metrics["chosen"],
        "minutes": sum(line["seconds"] for line in lines if line["kind"] == "epoch") / 60,
        "commit": given.commit,
        **{key: start[key] for key in ("command", "machine", "device", "parameters", "data", "versions")},
    }
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if given.ship:
        given.ship.parent.mkdir(parents=True, exist_ok=True)
        save_weights(given.ship, state, dataclasses.replace(card, notes=given.notes), half=True)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
