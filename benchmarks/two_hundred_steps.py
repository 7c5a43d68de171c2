"""RetinaNet and Mask R-CNN learn: their losses fall and their average precision rises over 200 steps.

    python benchmarks/two_hundred_steps.py coco128 results/two-hundred-steps --commit HASH

COCO128 is a folder in COCO's layout. Of its first pictures a set of its own is made, on which each
detector is trained and measured: it shows that targets, losses, decoding and measure fit together. COCO128
has boxes and no masks, so the box itself stands as each object's mask. Writes `summary.json` (losses and
figures) and `curves.png`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from metamobile.data.boxes import open_boxes
from metamobile.files import write_text
from metamobile.training.train import train

HEADS = ("retinanet", "mask_rcnn")
PICTURES, BATCH, EPOCHS = 16, 2, 25  # 200 steps
SETTINGS = [
    "model.pretrained=emo_1m.imagenette",
    "model.norm_eval=true",
    "data.val_fraction=0",
    *("augment.expand=0", "augment.iou_crop=false", "augment.photometric=false"),
    *("optim.lr=2e-4", "optim.clip_norm=1.0", "schedule.warmup_steps=20", "ema.enabled=false"),
    *("run.log_every=1", "run.eval_every=5", "run.channels_last=true"),
]


def subset(source: Path, out: Path) -> Path:
    """The first pictures in COCO's layout, with their boxes as masks."""
    data = open_boxes(source, val_fraction=0)
    samples = [sample for sample in data.train if len(sample.boxes)][:PICTURES]
    used = sorted({int(label) for sample in samples for label in sample.labels})
    annotations = []
    (out / "train").mkdir(parents=True)
    (out / "annotations").mkdir()
    for sample in samples:
        shutil.copyfile(sample.path, out / "train" / sample.path.name)
        for box, label, crowd in zip(
            sample.boxes.tolist(), sample.labels.tolist(), sample.crowd, strict=True
        ):
            x, y, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, right - x, bottom - y],
                    "area": (right - x) * (bottom - y),
                    "iscrowd": int(crowd),
                    "segmentation": [[x, y, right, y, right, bottom, x, bottom]],
                }
            )
    images = [
        {"id": s.image_id, "file_name": s.path.name, "width": s.size[0], "height": s.size[1]} for s in samples
    ]
    categories = [{"id": label + 1, "name": data.classes[label]} for label in used]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return out


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["kind"] == kind]


def learn(pictures: Path, head: str, folder: Path, size: int) -> dict[str, Any]:
    """Train one detector; its losses, step by step, and its figures over the epochs."""
    own = ["model.args.rois=128"] if head == "mask_rcnn" else []  # a quarter of the published number
    run = train(
        "emo_1m",
        pictures,
        head=head,
        out=folder,
        size=size,
        batch_size=BATCH,
        epochs=EPOCHS,
        workers=0,
        set=[*SETTINGS, *own],
        overwrite=True,
    )
    losses = [line["loss"] for line in lines(run.folder, "step")]
    measured = [line for line in lines(run.folder, "epoch") if "ap" in line]
    keys = ["epoch", *(key for key in ("ap", "ap50", "mask_ap", "mask_ap50") if key in run.metrics)]
    return {
        "steps": len(losses),
        "loss_first_20": sum(losses[:20]) / 20,
        "loss_last_20": sum(losses[-20:]) / 20,
        "losses": losses,
        "by_epoch": [{key: line[key] for key in keys} for line in measured],
        "start": lines(run.folder, "start")[0],
    }


def draw(found: dict[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for head, entry in found.items():
        left.plot(range(1, entry["steps"] + 1), entry["losses"], label=head, linewidth=0.9)
        epochs = entry["by_epoch"]
        right.plot(
            [e["epoch"] for e in epochs], [e["ap50"] for e in epochs], marker="o", label=f"{head}, AP50"
        )
    left.set(xlabel="step", ylabel="loss, sum of its parts", yscale="log")
    right.set(xlabel="epoch of 8 steps", ylabel="%, on the training pictures", ylim=(0, 100))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", required=True, help="of the code that trained")
    parser.add_argument("--runs", type=Path, default=Path("runs/two-hundred-steps"))
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    shutil.rmtree(given.runs / "pictures", ignore_errors=True)
    pictures = subset(given.data, given.runs / "pictures")
    found = {head: learn(pictures, head, given.runs / head, given.size) for head in HEADS}
    given.out.mkdir(parents=True, exist_ok=True)
    draw(found, given.out / "curves.png")
    start = found[HEADS[0]]["start"]
    summary = {
        "pictures": PICTURES,
        "batch": BATCH,
        "size": given.size,
        "commit": given.commit,
        **{key: start[key] for key in ("machine", "device", "data", "versions")},
        "heads": {head: {k: v for k, v in entry.items() if k != "start"} for head, entry in found.items()},
    }
    write_text(given.out / "summary.json", json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
