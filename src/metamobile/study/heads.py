"""Detectors and segmenters beside the published figures, with every difference named.

A printed figure is a count that leaves out or adds some parts. They are counted too, by `Part`, so that the
printed figure can be reached from ours. It is then cut off after its last digit; FLOPs of SSDLite with EMO
are rounded.
Which parts a row needs is found by counting: the papers do not say.
Source: EMO (arXiv 2301.01146) and EMOv2 (arXiv 2412.06674) tables 8 to 11, READMEs and logs of the releases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metamobile.files import write_text
from metamobile.models.detection import Raw
from metamobile.models.detectors import create_detector
from metamobile.models.segmenters import HEADS, Segmenter, create_segmenter
from metamobile.study.complexity import complexity
from metamobile.weights.card import current_versions

aten = torch.ops.aten

TASKS = {"segment": "ADE20K, 150 classes", "detect": "COCO, 80 classes"}
WIDE = (800, 1333)  # height, width of RetinaNet's input
NOT_STATED = "the input of the printed FLOPs is not stated"
NOT_PRINTED = "no FLOPs at hand"


@dataclass(frozen=True)
class Printed:
    """Millions of parameters and billions of FLOPs, as printed; input (height, width) where it is stated."""

    head: str
    name: str
    parameters: str
    flops: str | None
    size: tuple[int, int] | None

    @property
    def task(self) -> str:
        return "segment" if self.head in HEADS else "detect"

    @property
    def window(self) -> int:
        """The side of EMO's windows; EMO-5M has larger ones in segmentation."""
        if self.name.startswith("emov2"):
            return 10
        if self.name != "emo_5m":
            return 7
        return 16 if self.task == "segment" else 10


def _printed(head: str, size: tuple[int, int] | None, *rows: tuple[str, str, str | None]) -> list[Printed]:
    return [Printed(head, name, parameters, flops, size) for name, parameters, flops in rows]


PRINTED = [
    *_printed(
        "deeplabv3",
        (512, 512),
        ("emo_1m", "5.6", "2.4"),
        ("emo_2m", "6.9", "3.5"),
        ("emo_5m", "10.3", "5.8"),
        ("emov2_1m", "5.6", "3.3"),
        ("emov2_2m", "6.6", "5.0"),
        ("emov2_5m", "9.9", "9.1"),
        ("emov2_20m", "26.0", "31.6"),
    ),
    *_printed(
        "pspnet",
        (512, 512),
        ("emo_1m", "4.3", "2.1"),
        ("emo_2m", "5.5", "3.1"),
        ("emo_5m", "8.5", "5.3"),
        ("emov2_1m", "4.2", "2.9"),
        ("emov2_2m", "5.2", "4.6"),
        ("emov2_5m", "8.1", "8.6"),
        ("emov2_20m", "23.6", "30.9"),
    ),
    *_printed(
        "fpn",
        (512, 512),
        ("emo_1m", "5.2", "22.5"),
        ("emo_2m", "6.2", "23.5"),
        ("emo_5m", "8.9", "25.8"),
        ("emov2_1m", "5.3", "23.4"),
        ("emov2_2m", "6.2", "25.1"),
        ("emov2_5m", "8.9", "29.1"),
        ("emov2_20m", "23.9", "51.5"),
    ),
    *_printed(
        "segformer",
        (512, 512),
        ("emov2_1m", "1.4", "5.0"),
        ("emov2_2m", "2.6", "10.3"),
        ("emov2_5m", "5.3", "14.4"),
        ("emov2_20m", "20.4", "36.8"),
    ),
    *_printed(
        "ssdlite",
        (320, 320),
        ("emo_1m", "2.3", "0.6"),
        ("emo_2m", "3.3", "0.9"),
        ("emo_5m", "6.0", "1.8"),
        ("emov2_1m", "2.4", "0.7"),
        ("emov2_2m", "3.3", "1.2"),
        ("emov2_5m", "6.0", "2.4"),
        ("emov2_20m", "21.2", "9.1"),
    ),
    *_printed(
        "ssdlite",
        (512, 512),
        ("emov2_1m", "2.4", "2.3"),
        ("emov2_2m", "3.3", "4.0"),
        ("emov2_5m", "6.0", "8.0"),
        ("emov2_20m", "21.2", "30.3"),
    ),
    *_printed(
        "retinanet",
        WIDE,
        ("emo_1m", "10.4", "163"),
        ("emo_2m", "11.5", "167"),
        ("emo_5m", "14.4", "178"),
    ),
    *_printed(
        "retinanet",
        None,
        ("emov2_1m", "10.5", "142"),
        ("emov2_2m", "11.5", "146"),
        ("emov2_5m", "14.4", "158"),
        ("emov2_20m", "29.8", "220"),
    ),
    *_printed(
        "mask_rcnn",
        None,
        ("emo_5m", "24.8", None),
        ("emov2_1m", "21.2", "165"),
        ("emov2_2m", "22.1", "170"),
        ("emov2_5m", "24.8", "181"),
        ("emov2_20m", "39.8", "244"),
    ),
]


@dataclass(frozen=True)
class Part:
    """What the printed figure adds to ours (positive) or leaves out (negative)."""

    name: str
    amount: int


@dataclass(frozen=True)
class HeadRow:
    """One published row. Counts are of the whole network, for one picture of `size` (height, width).

    Without a stated input nothing but parameters is counted, and `exempt` says so. `printed_parameters` are
    in millions and `printed_flops` in billions, as printed.
    """

    model: str
    head: str
    task: str
    size: tuple[int, int] | None
    window: int | None
    parameters: int
    multiply_adds: int | None
    flops: int | None
    printed_parameters: str
    printed_flops: str | None
    parameter_parts: list[Part]
    flops_parts: list[Part]
    rounded: bool
    exempt: str

    @property
    def explained(self) -> str:
        """The named parts in words; empty where the printed figures are our plain counts, cut off."""
        said = _in_words("parameters", self.parameter_parts, 1e6, "M")
        said += _in_words("FLOPs", self.flops_parts, 1e9, "G")
        if self.rounded:
            said.append("FLOPs rounded, not cut off")
        return "; ".join(said)

    @property
    def parameters_agree(self) -> bool:
        counted = self.parameters + sum(part.amount for part in self.parameter_parts)
        return as_printed(counted, self.printed_parameters, 10**6) == self.printed_parameters

    @property
    def flops_agree(self) -> bool | None:
        """None: exempt."""
        if self.flops is None or self.printed_flops is None:
            return None
        counted = self.flops + sum(part.amount for part in self.flops_parts)
        return as_printed(counted, self.printed_flops, 10**9, self.rounded) == self.printed_flops

    @property
    def agrees(self) -> bool:
        """Parameters, and FLOPs unless they are exempt."""
        return self.parameters_agree and self.flops_agree is not False


def _in_words(figure: str, parts: Sequence[Part], unit: float, letter: str) -> list[str]:
    return [
        f"{figure} {'with' if part.amount > 0 else 'without'} {part.name} "
        f"({abs(part.amount) / unit:.4f} {letter})"
        for part in parts
    ]


def as_printed(count: int, printed: str, unit: int, rounded: bool = False) -> str:
    """A count with as many decimals as a printed figure: 5_653_000, "5.6", 10**6 -> "5.6"."""
    decimals = len(printed.partition(".")[2])
    step = unit // 10**decimals
    last = (count + step // 2 if rounded else count) // step
    return f"{last / 10**decimals:.{decimals}f}"


def study_heads(out: str | Path | None = None, printed: Sequence[Printed] = tuple(PRINTED)) -> list[HeadRow]:
    """Count every published detector and segmenter, without weights. `out`: a folder for heads.json."""
    rows = [count_head(row) for row in printed]
    if out is not None:
        write_rows(Path(out) / "heads.json", rows)
    return rows


class RawOnly(nn.Module):
    """A detector up to its logits and box deltas: what follows depends on the picture."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Raw:
        return self.detector.raw(x)


def count_head(printed: Printed) -> HeadRow:
    """The row of one published network, on the device that computes shapes only."""
    model: Any
    if printed.task == "segment":
        model = create_segmenter(printed.name, printed.head, 150, window_size=printed.window)
    else:
        model = RawOnly(create_detector(printed.name, printed.head, 80, window_size=printed.window))
    model = model.eval().to("meta")
    multiply_adds = flops = None
    flops_parts: list[Part] = []
    if printed.size is not None:
        (counted,) = complexity(model, printed.size)
        multiply_adds, flops = counted.macs, counted.flops_paper
        flops_parts = find_flops_parts(printed, model, flops - multiply_adds)
    return HeadRow(
        model=printed.name,
        head=printed.head,
        task=printed.task,
        size=printed.size,
        window=printed.window if printed.size else None,
        parameters=count_parameters(model),
        multiply_adds=multiply_adds,
        flops=flops,
        printed_parameters=printed.parameters,
        printed_flops=printed.flops,
        parameter_parts=find_parameter_parts(printed, model),
        flops_parts=flops_parts,
        rounded=printed.head == "ssdlite" and not printed.name.startswith("emov2"),
        exempt="" if printed.size else NOT_STATED if printed.flops else NOT_PRINTED,
    )


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def find_parameter_parts(printed: Printed, model: nn.Module) -> list[Part]:
    """Segmenters of EMOv2: the classifier's norm is counted, which no map passes, the auxiliary head not."""
    if not isinstance(model, Segmenter) or not printed.name.startswith("emov2"):
        return []
    parts = [Part("the classifier's final norm", 2 * model.backbone.channels[-1])]
    if model.auxiliary is not None:
        parts.append(Part("the auxiliary head", -count_parameters(model.auxiliary)))
    return parts


def find_flops_parts(printed: Printed, model: nn.Module, norms: int) -> list[Part]:
    """`norms`: the cost of all norms by the papers' rule."""
    assert printed.size is not None
    version_2 = printed.name.startswith("emov2")
    if printed.task == "segment":
        if version_2:
            resized = count_operators(model, printed.size, "Segmenter.head", RESIZING)
            parts = [Part("resizing in the head", resized)] if resized else []
            if printed.head == "fpn":  # 4 an element of 128 channels at stride 4
                again = 3 * 4 * 128 * math.prod(side // 4 for side in printed.size)
                parts.append(Part("three maps resized to the size they have", again))
            return parts
        if printed.name != "emo_5m":
            return []
    elif version_2 or printed.head == "retinanet":  # RetinaNet's digits are the same with and without norms
        return []
    attention = Part(
        "attention's products", -count_operators(model, printed.size, "Global", {aten.bmm: None})
    )
    return [Part("norms", -norms), attention] if printed.head == "ssdlite" else [attention]


def _resizing(cost: int) -> Any:
    """By fvcore; twice, as the counter's unit is half a multiply-add."""
    return lambda *args, out_shape, **kwargs: 2 * cost * math.prod(out_shape)


RESIZING = {aten.upsample_bilinear2d: _resizing(4), aten.upsample_nearest2d: _resizing(1)}


def count_operators(model: nn.Module, size: tuple[int, int], module: str, costs: dict[Any, Any]) -> int:
    """Multiply-adds of some operators in one module ("Global": all); a cost of None is torch's own."""
    own = {operator: cost for operator, cost in costs.items() if cost}
    with FlopCounterMode(display=False, custom_mapping=own) as counter, torch.no_grad():
        model(torch.empty(1, 3, *size, device="meta"))
    counts = counter.get_flop_counts()[module]
    return sum(counts.get(operator, 0) for operator in costs) // 2


def write_rows(path: Path, rows: Sequence[HeadRow]) -> None:
    """JSON of all counts, with the parts and whether the printed figures are reached."""
    table = [
        asdict(row)
        | {
            "explained": row.explained,
            "parameters_agree": row.parameters_agree,
            "flops_agree": row.flops_agree,
            "agrees": row.agrees,
        }
        for row in rows
    ]
    about = {"data": TASKS, "versions": current_versions()}
    write_text(path, json.dumps(about | {"rows": table}, indent=1))
