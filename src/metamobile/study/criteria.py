"""The EMOv2 paper's table of what a mobile network should be, with every mark derived from counts.

The rules (`RULES`) are the same for all networks and are not fitted to the paper's marks: the two stand side
by side, and where they differ, that is a finding. Networks are counted as deployed: branches that timm can
merge are merged. Latency, and how accurate a network is on other tasks, are not counted.
Source: EMOv2 (arXiv 2412.06674) table 1; the paper gives marks, and no rule for them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import timm
from timm.utils.model import reparameterize_model
from torch import nn

from metamobile.files import write_text
from metamobile.models.create import create_model
from metamobile.models.variants import VARIANTS
from metamobile.study.peers import CRITERIA, MARKS, PEERS, PREFIXES, TASKS, Peer, find_peer, find_series
from metamobile.study.trace import Traced, find_blocks, trace
from metamobile.weights.card import current_versions

DEFAULT_MODELS = (
    "mobilenetv1_100",
    "mobilenetv2_140",
    "mobilenetv3_large_075",
    "mobilenetv4_conv_small",
    "mobilevit_s",
    "mobilevitv2_100",
    "edgenext_small",
    "repvit_m1_0",
    "efficientformerv2_s0",
    "emo_1m",
    "emo_2m",
    "emo_5m",
    "emov2_1m",
    "emov2_2m",
    "emov2_5m",
)

# Operators outside the stated set for which ONNX has one node; a runtime may then have a kernel.
SINGLE_IN_ONNX = {
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "linalg_vector_norm",
    "cumsum",
    "topk",
    "flip",
    "gather",
    "index_select",
    "col2im",
    "grid_sampler_2d",
}
SMALLEST_SHARE = 0.01  # of all parameters, for a kind of block to count
FEATURE_STRIDES = (4, 8, 16, 32)  # what a feature pyramid takes
OTHER_SIZE = (320, 256)  # height, width: a size that no network here is built for

RULES = {
    "usability": (
        "Operators on what depends on the picture, in one forward pass. The stated set: convolutions, matrix "
        "products, norms, elementwise functions, pooling (mean, sum, maximum), softmax. Reshapes are free; "
        "copies (transposed, joined, padded maps) are counted but not marked. Outside are other arithmetic "
        "and movement to or from computed positions. yes: nothing outside; partly: each kind outside is one "
        "ONNX operator; no: one of them is not."
    ),
    "uniformity": (
        "Kinds of blocks, told apart by what is in them: 1x1 convolution or linear layer, depthwise "
        "convolution, other convolution, attention (softmax, or a product of two maps), pooling, arithmetic "
        "outside the set; not by widths, kernels, norms or activations. A kind counts with at least "
        f"{SMALLEST_SHARE:.0%} of all parameters. yes: one kind; partly: two; no: more. The number of block "
        "classes is shown but not marked, as one class can hold many switches."
    ),
    "efficiency and effectiveness": (
        "ImageNet-1K top-1 as published, to one decimal, against all networks of the paper's tables 7 and 19 "
        "that are at least as accurate. Parameters and multiply-adds are counted, or are the printed ones "
        "(FLOPs) where the network is not at hand. A figure with a teacher is compared only with a network "
        "that has no other. yes: no such network has as few parameters, and none as few multiply-adds; "
        "no: one network has both; partly: otherwise."
    ),
    "generalisation": (
        f"Feature maps of strides {', '.join(map(str, FEATURE_STRIDES))}, for detection and segmentation "
        f"(timm's features_only), and a forward pass at {OTHER_SIZE[0]}x{OTHER_SIZE[1]} px of the network as "
        "it is built by default. yes: both; partly: one; no: none. The families of tasks with a figure in "
        "the paper are shown but not marked, as other papers report more."
    ),
}


@dataclass(frozen=True)
class Usability:
    """Calls of each operator: in the stated set, of other arithmetic, of indexed movement, of copies."""

    inside: dict[str, int]
    other: dict[str, int]
    indexed: dict[str, int]
    copies: dict[str, int]
    mark: str


@dataclass(frozen=True)
class BlockKind:
    """What blocks of one kind contain, how many there are, and their share of all parameters."""

    contents: tuple[str, ...]
    blocks: int
    share: float


@dataclass(frozen=True)
class Uniformity:
    """Blocks by class and by kind, the largest first. Without any found, the mark is None."""

    classes: dict[str, int]
    kinds: list[BlockKind]
    mark: str | None

    @property
    def counted(self) -> int:
        """Kinds that are large enough to count."""
        return sum(kind.share >= SMALLEST_SHARE for kind in self.kinds)


@dataclass(frozen=True)
class Efficiency:
    """Counts at `size` pixels, and the networks at least as accurate that have no more of one or both.

    `top1` is the published one; None, as the mark, where the paper has none.
    """

    size: tuple[int, int]
    parameters: int
    multiply_adds: int
    top1: float | None
    distilled: bool
    no_more_parameters: list[str]
    no_more_multiply_adds: list[str]
    no_more_of_both: list[str]
    mark: str | None


@dataclass(frozen=True)
class Generalisation:
    """Strides of the feature maps, whether `OTHER_SIZE` runs, and families of tasks in the paper."""

    strides: list[int]
    other_size: bool
    tasks: dict[str, str] | None
    mark: str


@dataclass(frozen=True)
class CriteriaRow:
    """One network. A series that timm does not have is a row with the paper's marks and nothing counted."""

    model: str
    series: str | None
    usability: Usability | None = None
    uniformity: Uniformity | None = None
    efficiency: Efficiency | None = None
    generalisation: Generalisation | None = None

    def ours(self) -> dict[str, str | None]:
        """Our mark for each criterion; None: not counted."""
        parts = (self.usability, self.uniformity, self.efficiency, self.generalisation)
        return {name: part.mark if part else None for name, part in zip(CRITERIA, parts, strict=True)}

    def paper(self) -> dict[str, str | None]:
        """The paper's mark of the network's series; None: the series is not in its table."""
        marks = MARKS[self.series] if self.series else (None,) * len(CRITERIA)
        return dict(zip(CRITERIA, marks, strict=True))

    def differences(self) -> list[str]:
        """Criteria with two marks that are not the same."""
        ours, paper = self.ours(), self.paper()
        return [
            name for name in CRITERIA if None not in (ours[name], paper[name]) and ours[name] != paper[name]
        ]


def mark_usability(outside: Collection[str]) -> str:
    if not outside:
        return "yes"
    return "partly" if SINGLE_IN_ONNX.issuperset(outside) else "no"


def mark_uniformity(shares: Sequence[float]) -> str | None:
    """From the share of all parameters of each kind of block."""
    kinds = sum(share >= SMALLEST_SHARE for share in shares)
    return {0: None, 1: "yes", 2: "partly"}.get(kinds, "no")


def mark_efficiency(parameters: Sequence[str], multiply_adds: Sequence[str], both: Sequence[str]) -> str:
    """From the networks at least as accurate with no more of the one, of the other, of both."""
    if both:
        return "no"
    return "partly" if parameters or multiply_adds else "yes"


def mark_generalisation(strides: Collection[int], other_size: bool) -> str:
    return ("no", "partly", "yes")[set(FEATURE_STRIDES).issubset(strides) + other_size]


def study_criteria(models: Sequence[str] | None = None, out: str | Path | None = None) -> list[CriteriaRow]:
    """Count each network by the four criteria; no weights are fetched.

    `models` are names of this package or of timm; left out, they are representatives of the paper's series,
    and a row for each series that timm does not have. `out` is a folder for criteria.json. Errors:
    ValueError for an unknown name, an empty list, or a network that cannot run without data.
    """
    if models is not None and not models:
        raise ValueError("no network given; expected names such as emo_1m, or none at all for the paper's")
    rows = [count_criteria(name) for name in models or DEFAULT_MODELS]
    if models is None:
        at_hand = set(PREFIXES.values())
        rows += [CriteriaRow(series, series) for series in MARKS if series not in at_hand]
    if out is not None:
        write_rows(Path(out) / "criteria.json", rows)
    return rows


def count_criteria(name: str) -> CriteriaRow:
    """The row of one network. Errors: ValueError, as `study_criteria`."""
    model = build(name)
    architecture = timm.models.get_arch_name(name)
    peer, series = find_peer(architecture), find_series(architecture)
    _, height, width = model.pretrained_cfg["input_size"]  # type: ignore[index]
    size = (peer.size, peer.size) if peer else (height, width)
    blocks = find_blocks(model)
    try:
        traced = trace(model, size, blocks)
    except RuntimeError as error:  # an operator without a rule for shapes, or a branch on data
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} cannot be counted without data, leave it out: {reason}") from error
    return CriteriaRow(
        model=name,
        series=series,
        usability=study_usability(traced),
        uniformity=study_uniformity(model, blocks, traced),
        efficiency=study_efficiency(peer, size, count_parameters(model), traced.macs),
        generalisation=study_generalisation(name, model, TASKS.get(series) if series else None),
    )


def build(name: str) -> nn.Module:
    """As deployed, on the meta device: shapes without numbers."""
    return reparameterize_model(create_model(name).eval(), inplace=True).to("meta")


def study_usability(traced: Traced) -> Usability:
    mark = mark_usability({*traced.other, *traced.indexed})
    return Usability(traced.inside, traced.other, traced.indexed, traced.copies, mark)


def study_uniformity(model: nn.Module, blocks: dict[str, nn.Module], traced: Traced) -> Uniformity:
    total = count_parameters(model)
    parameters: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for name, contents in traced.contents.items():  # blocks that ran
        parameters[contents].append(count_parameters(blocks[name]))
    kinds = [BlockKind(kind, len(each), sum(each) / total) for kind, each in parameters.items()]
    kinds.sort(key=lambda kind: (-kind.share, kind.contents))
    classes = Counter(type(blocks[name]).__name__ for name in traced.contents)
    return Uniformity(dict(classes.most_common()), kinds, mark_uniformity([kind.share for kind in kinds]))


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def study_efficiency(
    peer: Peer | None,
    size: tuple[int, int],
    parameters: int,
    multiply_adds: int,
    peers: Sequence[Peer] = PEERS,
) -> Efficiency:
    """`peer`: the network's own row, which no row of `peers` with the same name is compared with."""
    top1 = None if peer is None else peer.distilled if peer.top1 is None else peer.top1
    distilled = peer is not None and peer.top1 is None
    if peer is None or top1 is None:
        return Efficiency(size, parameters, multiply_adds, None, False, [], [], [], None)
    rivals = []
    for other in peers:
        figures = (other.top1, other.distilled if distilled else None)
        best = max(figure or 0 for figure in figures)
        if other.name != peer.name and best >= top1:
            rivals.append((-best, other.name, *peer_costs(other)))
    rivals.sort()  # the most accurate first
    smaller = [name for _, name, theirs, _ in rivals if theirs <= parameters]
    lighter = [name for _, name, _, theirs in rivals if theirs <= multiply_adds]
    both = [name for name in smaller if name in lighter]
    mark = mark_efficiency(smaller, lighter, both)
    return Efficiency(size, parameters, multiply_adds, top1, distilled, smaller, lighter, both, mark)


@cache
def peer_costs(peer: Peer) -> tuple[float, float]:
    """Parameters and multiply-adds of a network of the tables: counted where it is at hand, else printed."""
    if peer.model in VARIANTS:  # counted when the table was made
        return VARIANTS[peer.model].parameters, VARIANTS[peer.model].macs * 1e6
    if peer.model is None:
        return peer.parameters * 1e6, peer.flops * 1e6
    model = build(peer.model)
    return count_parameters(model), trace(model, (peer.size, peer.size)).macs


def study_generalisation(name: str, model: nn.Module, tasks: dict[str, str] | None) -> Generalisation:
    strides = feature_strides(name)
    other_size = runs_at(model, OTHER_SIZE)
    return Generalisation(strides, other_size, tasks, mark_generalisation(strides, other_size))


def feature_strides(name: str) -> list[int]:
    """What `features_only` tells of each map, increasing; empty where timm cannot give features."""
    try:
        features = create_model(name, features_only=True)
    except (AssertionError, AttributeError, RuntimeError):  # timm's ways to say so
        return []
    return sorted(features.feature_info.reduction())  # type: ignore[union-attr, operator]


def runs_at(model: nn.Module, size: tuple[int, int]) -> bool:
    """Whether a network on the meta device takes pictures (height, width)."""
    try:
        trace(model, size)
    except (AssertionError, RuntimeError):  # how networks built for one size refuse another
        return False
    return True


def write_rows(path: Path, rows: Sequence[CriteriaRow]) -> None:
    """JSON of the rules and all counts, with both marks of each criterion."""
    table = [
        asdict(row) | {"ours": row.ours(), "paper": row.paper(), "differences": row.differences()}
        for row in rows
    ]
    about = {
        "rules": RULES,
        "smallest_share": SMALLEST_SHARE,
        "feature_strides": FEATURE_STRIDES,
        "other_size": OTHER_SIZE,
        "single_in_onnx": sorted(SINGLE_IN_ONNX),
        "peers": [asdict(peer) for peer in PEERS],
        "versions": current_versions(),
    }
    write_text(path, json.dumps(about | {"rows": table}, indent=1))
