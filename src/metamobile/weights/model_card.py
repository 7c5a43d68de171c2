"""The Hub's model card, README.md: written from what a weights file says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from metamobile.weights.card import Card

HERE = "path/to/this/folder"  # where a card is not of a repository
MOST_NAMES = 30  # of classes; config.json has all

# Sources: the proceedings' page of ICCV 2023, and arXiv.
CITATIONS = {
    "arXiv:2301.01146": """@inproceedings{zhang2023emo,
  title = {Rethinking Mobile Block for Efficient Attention-based Models},
  author = {Zhang, Jiangning and Li, Xiangtai and Li, Jian and Liu, Liang and Xue, Zhucun and
            Zhang, Boshen and Jiang, Zhengkai and Huang, Tianxin and Wang, Yabiao and Wang, Chengjie},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages = {1389--1400},
  year = {2023}
}""",
    "arXiv:2412.06674": """@article{zhang2024emov2,
  title = {EMOv2: Pushing 5M Vision Model Frontier},
  author = {Zhang, Jiangning and Hu, Teng and He, Haoyang and Xue, Zhucun and Wang, Yabiao and
            Wang, Chengjie and Liu, Yong and Li, Xiangtai and Tao, Dacheng},
  journal = {arXiv preprint arXiv:2412.06674},
  year = {2024}
}""",
}


def model_card(
    network: nn.Module,
    card: Card,
    repo_id: str | None = None,
    license: str | None = None,
    datasets: str | Sequence[str] | None = None,
) -> str:
    """README.md: front matter for the Hub, then what the network is, its figures, how to use and cite it.

    Nothing tells a licence, and only the user knows the Hub's names of the data: both are given or left out.
    """
    title = repo_id.split("/")[-1] if repo_id else f"{card.variant}, {len(card.classes)} classes"
    parts = [
        f"---\n{_front_matter(card, title, license, datasets).to_yaml()}\n---\n",
        f"# {title}\n",
        f"An image classifier: {card.notes}.\n" if card.notes else "An image classifier.\n",
        _about(network, card),
        f"## Accuracy\n\n{_accuracy(card)}\n",
        _usage(network, card, repo_id),
        _citation(network),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(
    card: Card, title: str, license: str | None, datasets: str | Sequence[str] | None
) -> ModelCardData:
    results = None
    if "top1" in card.metrics:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="imagefolder",
                dataset_name=_data_name(card) or "validation pictures",
                dataset_split="validation",
                metric_type="accuracy",
                metric_name="top-1",
                metric_value=round(card.metrics["top1"] / 100, 4),
            )
        ]
    elif "published_top1" in card.metrics:
        datasets = datasets or "imagenet-1k"
    return ModelCardData(
        model_name=title if results else None,
        license=license,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "metamobile", card.variant.split(".")[0]],
        datasets=[datasets] if isinstance(datasets, str) else list(datasets or []) or None,
        metrics=["accuracy"] if results else None,
        eval_results=results,
    )


def _data_name(card: Card) -> str:
    """Name of the data folder; where it lay concerns nobody else."""
    return PurePath(card.recipe.get("data", {}).get("path", "")).name


def _about(network: nn.Module, card: Card) -> str:
    record = card.preprocess
    height, width = record.size
    args = ", ".join(f"{key}={value}" for key, value in card.model_args.items() if key != "num_classes")
    parameters = sum(p.numel() for p in network.parameters())
    names = ", ".join(card.names[:MOST_NAMES])
    more = len(card.names) - MOST_NAMES
    made = ", ".join(f"{package} {number}" for package, number in card.versions.items())
    rows = [
        ("Network", f"`{card.variant}`" + (f", {args}" if args else "")),
        ("Parameters", f"{parameters:,}"),
        ("Input", f"RGB, {width} x {height} pixels (width x height)"),
        (
            "Preprocessing",
            f"shorter side to {record.shorter_side} pixels ({record.interpolation}), centre crop, "
            f"values from 0 to 1, mean {_plain(record.mean)}, std {_plain(record.std)}",
        ),
        ("Made with", made or "not told"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"| | |\n|---|---|\n{table}\n\n"
        f"{len(card.classes)} classes, in the order of the outputs: {names}"
        + (f" and {more:,} more (`label_names` in `config.json`)" if more > 0 else "")
        + ".\n"
    )


def _plain(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _accuracy(card: Card) -> str:
    """The figures of the file, and where they come from."""
    metrics = card.metrics
    if "published_top1" in metrics:
        other = f" or {metrics['published_top1_or']:g} %" if "published_top1_or" in metrics else ""
        return (
            f"Published top-1 on ImageNet-1K: {metrics['published_top1']:g} %{other} "
            f"({metrics['published_source']}). It was not measured here."
        )
    if "top1" not in metrics:
        return "The file states none."
    units = {"top1": ("top-1", " %", 2), "top5": ("top-5", " %", 2), "loss": ("cross-entropy", "", 4)}
    rows = [
        f"| {name} | {metrics[key]:.{digits}f}{unit} |"
        for key, (name, unit, digits) in units.items()
        if key in metrics
    ]
    data = f" of `{_data_name(card)}`" if _data_name(card) else ""
    chosen = f" These weights: {metrics['chosen']}." if "chosen" in metrics else ""
    return "\n".join(
        ["| metric | value |", "|---|---|", *rows, "", f"Measured on the validation pictures{data}.{chosen}"]
    )


def _usage(network: nn.Module, card: Card, repo_id: str | None) -> str:
    where = repo_id or HERE
    source = f"hf-hub:{repo_id}" if repo_id else f"local-dir:{HERE}"
    ours = type(network).__module__.startswith("metamobile.")
    registers = "import metamobile  # registers the network with timm\n" if ours else ""
    alone = (
        f" timm alone does not know `{card.variant}`, and without `import metamobile` it stops with "
        f'"Unknown model".'
        if ours
        else ""
    )
    square = (
        ""
        if len(set(card.preprocess.size)) == 1
        else " timm's transform resizes pictures a little differently where the input is not square."
    )
    return f"""## Use

`model.safetensors` holds all that metamobile needs: network, classes and preprocessing.

```python
import metamobile

model = metamobile.from_pretrained("{where}")
model.predict("photo.jpg")[0].labels
```

With timm, which reads `config.json`.{alone}{square}

```python
{registers}import timm

network = timm.create_model("{source}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
```

With `torch.hub`, from a copy of metamobile's repository that need not be installed:

```python
import torch

network = torch.hub.load("path/to/metamobile", "load", "{where}", source="local")
```
"""


def _citation(network: nn.Module) -> str:
    config: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    papers = config.get("paper_ids") or ()
    known = [CITATIONS[paper] for paper in ([papers] if isinstance(papers, str) else papers)
             if paper in CITATIONS]  # fmt: skip
    return (
        "## Citation\n\n" + "\n\n".join(f"```bibtex\n{text}\n```" for text in known) + "\n" if known else ""
    )
