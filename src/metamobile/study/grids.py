"""The papers' ablations as small grids: what each cell sets, and the papers' own figures for it. No torch.

Sources: EMOv2 (arXiv 2412.06674) tables 5, 15, 17 and one without a number; its rows of EMO are EMO's (arXiv
2301.01146). "Recount" marks parameters and FLOPs that no table prints: the official code, counted. Figures
are kept as printed: "5.1M" is truncated in one row and rounded in another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from metamobile.models.variants import Variant

EMO_5M, EMOV2_5M = "emo_5m", "emov2_5m"
NONE = [False] * 4
Settings = dict[str, Any]  # of the recipe: {"model.args.partition": "strided"}


@dataclass(frozen=True)
class Published:
    """One row of a paper at 224 px: millions of parameters and of FLOPs as printed, ImageNet-1K top-1 in %.

    None is not printed (or was not to be read). `recount`: see above. `remark` is what else the row says,
    `unmet` why a count of ours differs from it.
    """

    network: str
    parameters: str | None = None
    flops: str | None = None
    top1: float | None = None
    recount: bool = False
    remark: str = ""
    unmet: str = ""


@dataclass(frozen=True)
class Cell:
    """One network of a grid; `settings` turn a variant into it. Without them it is a row of the paper's that
    cannot be built here, and its rows' `unmet` say why."""

    name: str
    settings: Callable[[Variant], Settings] | None
    published: Sequence[Published] = ()


@dataclass(frozen=True)
class Grid:
    """`claim` orders cells by the paper's accuracy, the worst first; `note` is what a reader must know."""

    title: str
    varies: str
    cells: Sequence[Cell]
    source: str = ""
    note: str = ""
    claim: Sequence[str] = ()
    names: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", [cell.name for cell in self.cells if cell.settings])


def _fixed(**args: Any) -> Callable[[Variant], Settings]:
    """The same constructor arguments whatever the variant."""
    return lambda variant: {f"model.args.{name}": value for name, value in args.items()}


def _recipe(key: str, value: Any) -> Callable[[Variant], Settings]:
    return lambda variant: {key: value}


def _v1(parameters: str | None, flops: str | None, top1: float | None = None, **rest: Any) -> Published:
    return Published(EMO_5M, parameters, flops, top1, **rest)


def _v2(parameters: str | None, flops: str | None, top1: float | None = None, **rest: Any) -> Published:
    return Published(EMOV2_5M, parameters, flops, top1, **rest)


def _dense(box_map: float, mean_iou: float) -> str:
    return f"RetinaNet {box_map} mAP, DeepLabv3 {mean_iou} mIoU"


COMPONENTS = Grid(
    "Components of the block",
    "attention and the depthwise convolution, each there or not",
    [
        Cell(
            "none",
            _fixed(attention=NONE, conv=False),
            [_v1("4.16", "743", 73.5, recount=True), _v2(None, None, 73.5)],
        ),
        Cell(
            "attention",
            _fixed(conv=False),
            [_v1("4.91", "867", 76.6, recount=True), _v2(None, None, 77.7)],
        ),
        Cell(
            "dw-conv",
            _fixed(attention=NONE),
            [_v1("4.36", "779", 77.6, recount=True), _v2(None, None, 78.1)],
        ),
        Cell("both", _fixed(), [_v1("5.11", "903", 78.4, recount=True), _v2(None, None, 79.4)]),
    ],
    source="EMOv2, table 5",
    note=(
        "Without DW-Conv the blocks that take a stride keep a 5x5 depthwise convolution, as the official "
        "code has it; all others, the stem's too, have none."
    ),
    claim=("none", "attention", "dw-conv", "both"),
)

STAGES = Grid(
    "Stages with attention",
    "the stages that have attention, 4 to 1",
    [
        Cell(
            name,
            _fixed(attention=[stage >= first for stage in range(1, 5)]),
            [_v1(parameters, flops, recount=True), _v2(*printed)],
        )
        for name, first, parameters, flops, printed in (
            ("stage-4", 4, "4.70", "797.7", ("4.7", "832", 78.5)),
            ("stages-34", 3, "5.11", "902.6", ("5.1", "1035", 79.4)),
            ("stages-234", 2, "5.13", "929.9", ("5.1", "1096", 79.3)),
            ("stages-1234", 1, "5.14", "988.3", ("5.2", "1213", 79.1)),
        )
    ],
    source="EMOv2, table 17 b",
)

KERNEL = Grid(
    "Kernel of the depthwise convolutions",
    "the kernel's side in stages 1 to 4, and its dilation",
    [
        *(
            Cell(
                f"{side}x{side}",
                _fixed(kernels=[side] * 4),
                [_v2(*printed, unmet=unmet)],
            )
            for side, printed, unmet in (
                (1, ("4.8", "969", 78.6), ""),
                (3, ("4.9", "991", 79.0), ""),
                (5, ("5.1", "1035", 79.4), ""),
                (7, ("5.3", "1102", 79.2), ""),
                (9, ("5.5", "1184", 79.3), "the official code has 5.70 M and 1190 M, too"),
            )
        ),
        *(
            Cell(
                f"5x5-dilation-{dilation}",
                _fixed(kernels=[5] * 4, dilation=dilation),
                [_v2("5.1", "1035", top1)],
            )
            for dilation, top1 in ((2, 79.3), (3, 79.1))
        ),
        Cell(
            "5x5-dcnv2",
            None,
            [_v2("6.7", "1625", 78.5, unmet="where the deformable convolutions stand is not known")],
        ),
    ],
    source="EMOv2, table 17 d",
    note=(
        "All depthwise convolutions of stages 1 to 4 have the kernel; whether the paper's dilation is in "
        "those with a stride, too, is not known."
    ),
)

WINDOW = Grid(
    "Window of the attention",
    "the window's side in all stages with attention",
    [
        *(Cell(f"{side}x{side}", _recipe("model.window_size", side)) for side in (2, 4, 7)),
        Cell("whole-map", _recipe("model.window_size", 0)),
    ],
    note=(
        "The papers' figures for windows could not be read. A window larger than the map, or that does not "
        "divide it, pads."
    ),
)

ATTENTION = Grid(
    "How windows are cut",
    "windows that span the map, tiles, or both at once",
    [
        Cell("none", _fixed(attention=NONE), [_v2("4.3", "802", 77.9, remark=_dense(39.3, 37.2))]),
        Cell(
            "none-scaled",
            None,
            [
                _v2(
                    "5.1",
                    "991",
                    78.4,
                    remark=_dense(39.6, 37.7),
                    unmet="how the network without attention was made larger is not known",
                )
            ],
        ),
        Cell(
            "contiguous",
            _fixed(partition="contiguous"),
            [_v2("5.1", "967", 78.8, remark=f"the paper's neighbourhood; {_dense(40.4, 39.0)}")],
        ),
        Cell(
            "strided",
            _fixed(partition="strided"),
            [_v2("5.1", "967", 79.0, remark=f"the paper's remote; {_dense(39.9, 38.6)}")],
        ),
        Cell(
            "both",
            _fixed(partition="both"),
            [_v2("5.1", "1035", 79.4, remark=f"the paper's spanning; {_dense(41.5, 39.8)}")],
        ),
    ],
    source="EMOv2, table 17 a",
    note="Where the window is as large as the map, strided and contiguous are the same network.",
    claim=("none", "contiguous", "strided", "both"),
)


def _order(order: str) -> Callable[[Variant], Settings]:
    """After the expansion the heads share the expanded width, so their number must divide it. Where it does
    not (EMO-1M: 588 channels, 8 heads), both orders take the nearest width of a head that does."""

    def settings(variant: Variant) -> Settings:
        heads = []
        for dim, ratio, head in zip(variant.dims, variant.expand_ratios, variant.head_dims, strict=True):
            fits = [d for d in range(1, dim + 1) if dim % d == 0 and int(dim * ratio) % (dim // d) == 0]
            heads.append(min(fits, key=lambda d: abs(d - head)))
        changed = {} if tuple(heads) == variant.head_dims else {"model.args.head_dims": heads}
        return {"model.args.order": order, **changed}

    return settings


ORDER = Grid(
    "Attention before or after the expansion",
    "the width of attention's values: the block's, or the expanded one",
    [
        Cell(
            "before",
            _order("before"),
            [_v1("5.11", "902.6", recount=True, remark="the published weights of EMO")],
        ),
        Cell(
            "after",
            _order("after"),
            [_v1("5.11", "943.6", recount=True), _v2("5.1", "1035", 79.4)],
        ),
    ],
    source="official code",
    note=(
        "No table compares the two; the authors write that attention before it has no obvious payoff. Where "
        "the heads do not divide the expanded width, both cells have other heads than the network (EMO-1M: 7 "
        "for 8 in stage 4), which changes neither parameters nor FLOPs."
    ),
)

NORM_ACT = Grid(
    "Norm and activation",
    "the norm at the start of each block and the activation after its expansion",
    [
        Cell("bn-silu-then-ln-gelu", _fixed()),
        Cell("bn-silu", _fixed(norms=["batch"] * 4, acts=["silu"] * 4)),
        Cell("bn-gelu", _fixed(norms=["batch"] * 4, acts=["gelu"] * 4)),
        Cell("ln-silu", _fixed(norms=["layer"] * 4, acts=["silu"] * 4)),
        Cell("ln-gelu", _fixed(norms=["layer"] * 4, acts=["gelu"] * 4)),
    ],
    note=(
        "The papers' figures could not be read. Depthwise convolutions keep batch norm and SiLU, the end its "
        "layer norm. The first cell is the published choice: stages 1 and 2, then 3 and 4."
    ),
)

DROP_PATH = Grid(
    "Drop path",
    "the rate of the last block; it grows linearly from 0",
    [
        Cell(name, _recipe("model.drop_path_rate", float(name)), [_v2(None, None, top1)])
        for name, top1 in (("0.00", 79.1), ("0.03", 79.2), ("0.05", 79.4), ("0.10", 79.3), ("0.20", 79.1))
    ],
    source="EMOv2, table 17 c",
    note="The rate changes neither parameters nor FLOPs.",
)


def _deep(depths: list[int], *widths: float) -> Callable[[Variant], Settings]:
    """`depths` as they are; `widths` multiply the stages' numbers of heads, if given."""

    def settings(variant: Variant) -> Settings:
        given: Settings = {"model.args.depths": depths}
        if widths:
            stages = zip(variant.dims, variant.head_dims, widths, strict=True)
            given["model.args.dims"] = [round(dim / head * width) * head for dim, head, width in stages]
        return given

    return settings


_AS_READ = "the table, as it could be read, has channels {}; the printed figures are those of {}"

DEPTH = Grid(
    "Depth",
    "blocks of stages 1 to 4, and widths of some stages to keep the size",
    [
        Cell("2-2-10-3", _deep([2, 2, 10, 3]), [_v2("5.3", "1038", 79.1)]),
        Cell("2-2-12-2", _deep([2, 2, 12, 2]), [_v2("5.0", "1127", 78.9)]),
        Cell(
            "4-4-8-3",
            _deep([4, 4, 8, 3], 1, 4 / 3, 1, 1),
            [_v2("5.1", "1132", 79.4, remark=_AS_READ.format("48, 72, 160, 288", "48, 96, 160, 288"))],
        ),
        Cell("3-3-9-3", _deep([3, 3, 9, 3]), [_v2("5.1", "1035", 79.4)]),
        Cell(
            "2-2-12-3",
            _deep([2, 2, 12, 3], 1, 1, 1, 7 / 9),
            [_v2("5.1", "1136", 79.1, remark=_AS_READ.format("48, 72, 160, 288", "48, 72, 160, 224"))],
        ),
        Cell(
            "2-2-8-2",
            _deep([2, 2, 8, 2], 1, 4 / 3, 6 / 5, 1),
            [_v2("5.1", "1117", 79.0, remark=_AS_READ.format("48, 72, 224, 288", "48, 96, 192, 288"))],
        ),
    ],
    source="EMOv2, table 15",
    note="The depths are those of the 5M networks, whatever the network; widths change by whole heads.",
)

CASCADE = Grid(
    "Attention and convolution one after the other, or side by side",
    "the cascade, or the sum of the two branches",
    [
        Cell("cascade", _fixed(), [_v1("5.1", "903", 78.3, remark="1731.7 pictures a second")]),
        Cell(
            "parallel",
            _fixed(parallel=True),
            [
                _v1(
                    "5.1",
                    "964",
                    78.1,
                    remark="1618.4 pictures a second",
                    unmet="how the branches share the expansion is not known; here each has it for itself",
                )
            ],
        ),
    ],
    source="EMOv2, table without a number",
)

GRIDS: dict[str, Grid] = {
    "components": COMPONENTS,
    "stages": STAGES,
    "kernel": KERNEL,
    "window": WINDOW,
    "attention": ATTENTION,
    "order": ORDER,
    "norm-act": NORM_ACT,
    "drop-path": DROP_PATH,
    "depth": DEPTH,
    "cascade": CASCADE,
}
