"""`metamobile study reproduce`: the papers' tables, row by row, with ours beside them.

Paper's and ours never share a column: those whose name ends in "paper's" hold what is printed. Parameters and
FLOPs are counted anew each time. Accuracy is measured where the weights and the data are on disk; elsewhere
the cell says what is missing, and the command line that fills it. Our figures on other data are notes, or
tables that say so.
Source: EMO (arXiv 2301.01146) and EMOv2 (arXiv 2412.06674).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metamobile.errors import nearest
from metamobile.study.reproduce.request import DATA, Reproduced, Request
from metamobile.training.progress import Reporter

Maker = Callable[[Request], list[Reproduced]]


@dataclass(frozen=True)
class Entry:
    """One name of the list. `make` is "module:function", imported when asked for; `steps` are its counts."""

    title: str
    place: str
    make: str
    data: str | None = None
    steps: int = 0


TABLES: dict[str, Entry] = {
    "criteria": Entry("What a mobile network should be", "EMOv2 table 1", "studies:criteria", None, 1),
    "complexity": Entry("Operators: parameters, FLOPs, path", "EMOv2 table 2", "studies:complexity", None, 1),
    "transplants": Entry("iRMBs in DeiT and PVT", "EMOv2 table 3", "classify:transplants", "imagenet", 6),
    "ablations": Entry(
        "Components, depth, attention, stages, kernel, ...",
        "EMOv2 tables 5, 15, 17 a to d",
        "studies:ablations",
        "imagenet",
        10,
    ),
    "recipes": Entry(
        "Other recipes, batch sizes, stronger training",
        "EMOv2 tables 6, 17 c, 17 e",
        "classify:recipes",
        "imagenet",
        3,
    ),
    "imagenet": Entry("EMOs and their peers", "EMOv2 tables 7, 19", "classify:imagenet", "imagenet", 35),
    "coco-ssdlite": Entry("SSDLite", "EMOv2 table 8", "dense:ssdlite", "coco", 11),
    "coco-retinanet": Entry("RetinaNet", "EMOv2 table 9", "dense:retinanet", "coco", 7),
    "coco-mask-rcnn": Entry("Mask R-CNN", "EMOv2 table 10", "dense:mask_rcnn", "coco", 5),
    "ade20k-deeplabv3": Entry("DeepLabv3", "EMOv2 table 11", "dense:deeplabv3", "ade20k", 7),
    "ade20k-fpn": Entry("Semantic FPN", "EMOv2 table 11", "dense:fpn", "ade20k", 7),
    "ade20k-segformer": Entry("SegFormer", "EMOv2 table 11", "dense:segformer", "ade20k", 4),
    "ade20k-pspnet": Entry("PSPNet", "EMOv2 table 11", "dense:pspnet", "ade20k", 7),
    "speed": Entry("Pictures a second", "EMOv2 table 16", "classify:speed"),
    "diagonal": Entry("Diagonal similarity", "EMO figure 7", "studies:diagonal"),
    "grad-cam": Entry("Class activation maps", "EMOv2, a figure", "studies:grad_cam"),
}

# Of the EMOv2 paper, and not here: place, what it is, why.
LEFT_OUT = (
    ("EMOv2 tables 4, 18", "Configurations", "they are `metamobile.models.variants`, counted in imagenet"),
    ("EMOv2 table 12", "U-Net on retinas", "no network of the kind in this package"),
    ("EMOv2 table 13", "Video, Kinetics-400", "the 3-D code is not released"),
    ("EMOv2 table 14", "Diffusion, ImageNet 256", "the code is not released"),
    ("EMOv2 table A1", "Recipes compared", "its contents are not at hand"),
    ("EMO, own tables", "ImageNet, iPhone 14, ablations", "not at hand but for the rows that EMOv2 repeats"),
)


def reproduce(
    names: str | Sequence[str] | None = None,
    *,
    all: bool = False,
    data: str | Path | Mapping[str, str | Path] | None = None,
    runs: str | Path = "runs",
    html: str | Path | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> list[Reproduced]:
    """The tables of that name, or `all`; without either, the list of what there is.

    `data` are folders to measure accuracy on, by kind (imagenet, coco, ade20k); or one folder, where all
    tables asked for are of one kind. `runs` is where trained networks lie, under the names that the cells'
    commands give them. `html` is a file: one page that needs no network.

    Errors: ValueError for an unknown name or kind with the nearest one, and for a folder that is missing.
    """
    asked = [names] if isinstance(names, str) else list(names or ())
    for name in asked:
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; known are {', '.join(TABLES)}{nearest(name, TABLES)}")
    if all and asked:
        raise ValueError(f"{', '.join(asked)} and all: expected one or the other")
    chosen = list(TABLES) if all else list(dict.fromkeys(asked))
    request = Request(find_data(data, chosen), Path(runs), device=device)
    if not chosen:
        tables = contents()
    else:
        total = sum(TABLES[name].steps for name in chosen)
        with Reporter(quiet).bar(total) as bar:
            request.step = bar.step
            tables = [table for name in chosen for table in find_maker(name)(request)]
    if html is not None:
        from metamobile.study.reproduce.page import write_page

        write_page(html, tables)
    return tables


def contents() -> list[Reproduced]:
    """What there is, and what of the papers is left out."""
    rows = [
        [name, entry.title, entry.place, DATA[entry.data] if entry.data else "-"]
        for name, entry in TABLES.items()
    ]
    columns = ["name", "title", "in the paper", "data for accuracy"]
    notes = ["`metamobile study reproduce NAME` prints one, `--all` every one."]
    left = [list(row) for row in LEFT_OUT]
    return [
        Reproduced("contents", "What can be reproduced", "EMO and EMOv2", columns, rows, notes),
        Reproduced("contents", "What is left out", "EMO and EMOv2", ["in the paper", "title", "why"], left),
    ]


def find_data(data: str | Path | Mapping[str, str | Path] | None, chosen: Sequence[str]) -> dict[str, Path]:
    """Folders by kind."""
    if data is None:
        return {}
    kinds = list(dict.fromkeys(TABLES[name].data for name in chosen if TABLES[name].data))
    if isinstance(data, Mapping):
        folders = {kind: Path(folder) for kind, folder in data.items()}
    elif len(kinds) == 1:
        folders = {str(kinds[0]): Path(data)}
    elif kinds:
        raise ValueError(
            f"data {data}: these tables need several kinds; say {' or '.join(f'{k}=DIR' for k in kinds)}"
        )
    else:
        raise ValueError(
            f"data {data} has no effect: nothing is measured for {', '.join(chosen) or 'the list'}"
        )
    for kind, folder in folders.items():
        if kind not in DATA:
            raise ValueError(f"no data {kind!r}; known are {', '.join(DATA)}{nearest(kind, DATA)}")
        if kind not in kinds:
            raise ValueError(
                f"{kind}={folder} has no effect: {', '.join(chosen) or 'the list'} is not measured on it"
            )
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; expected the {DATA[kind]} data")
    return folders


def find_maker(name: str) -> Maker:
    from metamobile.study.reproduce import classify, dense, studies

    module, function = TABLES[name].make.split(":")
    if module == "dense":
        return partial(dense.dense, function)
    return getattr({"classify": classify, "studies": studies}[module], function)
