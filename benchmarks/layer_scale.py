"""What EMOv2's layer scale of 1e-6, also on blocks without a residual, does to a short training from scratch.

    python benchmarks/layer_scale.py imagenette2-160 results/layer-scale --commit HASH [--runs FOLDER]

emov2_1m on Imagenette at 128 px, five epochs, three seeds, with each start of the scale; all else is the
recipe `small-data`. A run that is finished is not trained again, one that was stopped goes on. Writes
`summary.json` (each run's epochs, and the scale where it ended) and `curves.png`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from metamobile.files import write_text
from metamobile.training.train import train
from metamobile.weights.file import load_weights

STARTS = (1e-6, 1.0)
SEEDS = (0, 1, 2)
EPOCHS = 5
SETTINGS = (
    "schedule.warmup_epochs=1",
    "ema.enabled=false",
)  # five epochs: the weights themselves are measured


def run_once(folder: Path, data: str, start: float, seed: int) -> None:
    """Train, or go on, or do nothing if the run is done."""
    if (folder / "report.html").is_file():
        return
    if (folder / "last").is_dir():
        train(resume=folder)
        return
    settings = [*SETTINGS, f"model.args.layer_scale={start}", f"run.seed={seed}"]
    train("emov2_1m", data, out=folder, epochs=EPOCHS, size=128, set=settings, workers=1, overwrite=True)


def read_run(folder: Path) -> dict:
    """Top-1 and training loss after each epoch, and the median size of the scale in blocks that keep the
    map's size and in those that halve it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = {line["epoch"]: line for line in lines if line["kind"] == "epoch"}
    state, _ = load_weights(folder / "last.safetensors")
    scales: dict[str, list[float]] = {"halving": [], "residual": []}
    for name, tensor in state.items():
        if "layer_scale" in name:
            first = name.split(".")[2] == "0"  # the first block of a stage takes the stride
            scales["halving" if first else "residual"] += tensor.abs().flatten().tolist()
    return {
        "top1": [epochs[e]["top1"] for e in sorted(epochs)],
        "train_loss": [epochs[e]["train_loss"] for e in sorted(epochs)],
        "seconds": sum(line["seconds"] for line in epochs.values()),
        "end_scale_median": {kind: statistics.median(v) for kind, v in scales.items() if v},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", required=True, help="of the code that trains")
    parser.add_argument("--runs", type=Path, default=Path("runs/layer-scale"))
    parser.add_argument("--starts", type=float, nargs="+", default=STARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--train-only", action="store_true", help="leave the summary to another call")
    given = parser.parse_args()
    folders = {
        (start, seed): given.runs / f"{start:g}-seed{seed}" for start in given.starts for seed in given.seeds
    }
    for (start, seed), folder in folders.items():
        run_once(folder, given.data, start, seed)
    if not given.train_only:
        write_results(folders, given)


def write_results(folders: dict[tuple[float, int], Path], given: argparse.Namespace) -> None:
    runs = {key: read_run(folder) for key, folder in folders.items()}
    first = json.loads(
        (next(iter(folders.values())) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]
    )
    summary: dict = {
        "what": "top-1 in %, emov2_1m on Imagenette, 128 px, five epochs, by layer scale's start",
        "command": f"python benchmarks/layer_scale.py {given.data} {given.out}",
        "commit": given.commit,
        "machine": first["machine"],
        "versions": first["versions"],
        "data": first["data"],
        "starts": {},
    }
    figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    for colour, start in zip(("tab:red", "tab:blue", "tab:green"), given.starts, strict=False):
        own = {seed: run for (s, seed), run in runs.items() if s == start}
        last = [run["top1"][-1] for run in own.values()]
        summary["starts"][f"{start:g}"] = {
            "mean": statistics.mean(last),
            "lowest": min(last),
            "highest": max(last),
            "seeds": own,
        }
        for seed, run in own.items():
            label = f"start {start:g}" if seed == given.seeds[0] else None
            axes.plot(range(1, len(run["top1"]) + 1), run["top1"], color=colour, label=label, alpha=0.8)
    axes.set(xlabel="epoch", ylabel="top-1, %", xticks=range(1, EPOCHS + 1))
    axes.legend(frameon=False, title="layer scale, three seeds each")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    given.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out / "curves.png", dpi=130)
    write_text(given.out / "summary.json", json.dumps(summary, indent=1) + "\n")
    for start, entry in summary["starts"].items():
        print(f"start {start:>6}: {entry['mean']:.2f} % ({entry['lowest']:.2f} to {entry['highest']:.2f})")


if __name__ == "__main__":
    main()
