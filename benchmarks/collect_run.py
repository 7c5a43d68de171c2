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

from metamobile.tasks import get_results
from metamobile.weights.file import load_weights, save_weights

KEPT = ("recipe.yaml", "log.txt", "metrics.jsonl", "evaluation.json")


def draw_curves(lines: list[dict], main: tuple[str, str], path: Path) -> None:
    """Loss and the main figure, (key, label), over epochs."""
    key, label = main
    epochs = [line for line in lines if line["kind"] == "epoch"]
    measured = [line for line in epochs if key in line]
    losses = [line for line in measured if "val_loss" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot([e["epoch"] for e in epochs], [e["train_loss"] for e in epochs], label="training")
    if losses:
        left.plot(
            [e["epoch"] for e in losses],
            [e["val_loss"] for e in losses],
            label="validation, averaged weights",
        )
        left.legend(frameon=False)
    left.set(xlabel="epoch", ylabel="loss")
    right.plot([e["epoch"] for e in measured], [e[key] for e in measured], marker="o", markersize=3)
    best = max(measured, key=lambda e: e[key])
    right.annotate(
        f"{best[key]:.2f} %",
        (best["epoch"], best[key]),
        (-8, -18),
        textcoords="offset points",
        ha="right",
    )
    right.set(xlabel="epoch", ylabel=f"{label}, % (averaged weights)")
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
    start = next(line for line in lines if line["kind"] == "start")
    evaluation = json.loads((given.run / "evaluation.json").read_text())
    state, card = load_weights(given.run / "model.safetensors")
    headlines = get_results(card.task).HEADLINES
    draw_curves(lines, headlines[0][:2], given.out / "curves.png")
    summary = {
        "claim": {key: evaluation[key] for key, *_ in headlines if key in evaluation}
        | {"pictures": start["data"]["val"]},
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
