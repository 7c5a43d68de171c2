"""A network as an ExecuTorch program, .pte, for XNNPACK's kernels: one picture at a time, of a fixed size.

The card is the program's method "metamobile", which takes nothing and answers the text, on a phone as well.
A batch of any size is possible, but cuts the graph into many more pieces and plans memory for the largest.
"""

from __future__ import annotations

import logging
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metamobile.deploy.formats import PLAIN, Options, need_writer
from metamobile.deploy.runtimes import THREADS, UNREADABLE, UNVERIFIED, Pixels, threads_wanted, to_arrays
from metamobile.tasks import get_files
from metamobile.weights.card import KEY, Card

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

# Operators that XNNPACK must take: the portable kernels are some forty times slower.
HEAVY = ("convolution", "linear", "addmm", "mm", "bmm", "softmax")
UNVERIFIED_FILE = f"{UNVERIFIED}.txt"  # in a zip that is appended to the program


def write(network: nn.Module, card: Card, path: str | Path, options: Options = PLAIN) -> None:
    """Write `network`, as it computes in evaluation mode, for one picture of the card's size.

    "int8" quantises as `executorch_int8` says. Warns where a heavy operator is left to the portable kernels.
    Errors: ValueError where a package of the extra `executorch` is missing, or calibration pictures are.
    """
    need_writer("executorch")
    import torch

    from metamobile.deploy.decoding import output_names

    module, _ = output_names(network.cpu().eval(), suppression=True)
    example = torch.zeros(1, 3, *card.preprocess.size)
    program = torch.export.export(module.eval(), (example,), strict=False)
    if options.precision == "int8":
        from metamobile.deploy.executorch_int8 import quantise

        program = quantise(program, card, options.calibration)
    lowered = lower(program, card)
    left = left_over(lowered)
    if left:
        told = ", ".join(f"{count} {name}" for name, count in left.items())
        logging.getLogger(__name__).warning(
            "%s: XNNPACK did not take %s; they run many times slower", path, told
        )
    Path(path).write_bytes(to_bytes(lowered))


def lower(program: ExportedProgram, card: Card) -> Any:
    """-> executorch's EdgeProgramManager, with the graph in XNNPACK's hands and the card as a method."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(
        program,
        transform_passes=[simplify],
        partitioner=[XnnpackPartitioner()],
        constant_methods={KEY: card.to_json()},
    )


def to_bytes(lowered: Any) -> bytes:
    """The file's content; constants lie at multiples of 16 bytes, as XNNPACK asks for, and not of 128."""
    from executorch.exir import ExecutorchBackendConfig

    content: bytes = lowered.to_executorch(ExecutorchBackendConfig(segment_alignment=16)).buffer
    return content


def simplify(module: torch.fx.GraphModule) -> Any:
    """A pass over the lowered graph: what XNNPACK does not know, though it only renames a shape, becomes
    nothing or a view. Else each would cut the graph in two."""
    from executorch.exir.dialects._ops import ops
    from executorch.exir.pass_base import PassResult

    aten = ops.edge.aten
    clone = ops.edge.dim_order_ops._clone_dim_order.default
    renaming = (aten.expand_copy.default, aten.as_strided_copy.default, aten.view_copy.default, clone)
    for node in list(module.graph.nodes):
        if node.target in (aten.squeeze_copy.dims, aten.squeeze_copy.dim):
            node.target, node.args = aten.view_copy.default, (node.args[0], list(_shape(node)))
        if node.target == aten.view_copy.default and node.args[0].target == aten.view_copy.default:
            node.args = (node.args[0].args[0], node.args[1])
        if node.target in renaming and _keeps(node):
            node.replace_all_uses_with(node.args[0])
        if node.target == aten.split_with_sizes_copy.default:
            _cut(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return PassResult(module, True)


def _cut(split: Any) -> None:
    """In place of a split, a slice for each part that is taken of it."""
    from executorch.exir.dialects._ops import ops

    given, sizes, *rest = split.args
    axis = rest[0] if rest else 0
    for item in list(split.users):
        start = sum(sizes[: item.args[1]])
        item.target = ops.edge.aten.slice_copy.Tensor
        item.args = (given, axis, start, start + sizes[item.args[1]])


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _keeps(node: Any) -> bool:
    """Whether what it answers is what it takes: the same shape, and the same strides but on sides of one."""
    if _shape(node) != _shape(node.args[0]):
        return False
    value, given = node.meta["val"], node.args[0].meta["val"]
    if value.dtype != given.dtype or value.dim_order() != given.dim_order():
        return False
    if "as_strided" not in str(node.target):
        return True
    strides = zip(_shape(node), node.args[2], node.args[0].meta["val"].stride(), strict=True)
    return len(node.args) < 4 and all(side == 1 or new == old for side, new, old in strides)


def left_over(lowered: Any) -> Counter[str]:
    """The heavy operators that no delegate took, and how many."""
    names = (
        str(node.target).split("aten.")[-1].split(".")[0].lstrip("_")
        for node in lowered.exported_program().graph.nodes
        if node.op == "call_function"
    )
    return Counter(name for name in names if name in HEAVY)


class ExecuTorch:
    """A .pte file in ExecuTorch's own runtime for Python, which brings torch; on the processor.
    METAMOBILE_THREADS sets the threads of all such files in this process."""

    name = "ExecuTorch"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path = Path(path)
        if device not in ("auto", "cpu"):
            raise ValueError(f"ExecuTorch cannot use device {device!r} here; it has auto, cpu")
        self.program = _open_program(self.path)  # to be kept: methods do not hold it
        if KEY not in self.program.method_names:
            raise ValueError(
                f"{self.path}: ExecuTorch without a metamobile card; expected a file that `metamobile "
                "export` wrote"
            )
        self.card = Card.from_json(self._load(KEY).execute([])[0])
        self.method = self._load("forward")
        self.shape = (3, *self.card.preprocess.size)
        reason = _read_mark(self.path)
        if reason:
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, reason)

    def _load(self, name: str) -> Any:
        try:
            return self.program.load_method(name)
        except RuntimeError as error:
            raise ValueError(
                f"{self.path}: ExecuTorch cannot load it ({str(error).splitlines()[0]})"
            ) from error

    def run(self, batch: Pixels) -> Any:
        import torch

        if batch.shape[1:] != self.shape:
            raise ValueError(f"{self.path} cannot run on {batch.shape} (its pictures are {self.shape})")
        parts = []
        for one in batch:
            try:
                found = self.method.execute([torch.from_numpy(np.ascontiguousarray(one[None]))])
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{self.path} cannot run on {batch.shape} ({reason})") from error
            parts.append(to_arrays(list(found)))
        return get_files(self.card.task).answers([np.concatenate(part) for part in zip(*parts, strict=True)])


open_file = ExecuTorch


def mark(path: str | Path, reason: str) -> None:
    """Say in a zip behind the program, which the runtime does not read, that it failed its gate."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(UNVERIFIED_FILE, reason)


def _read_mark(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        return archive.read(UNVERIFIED_FILE).decode()


def _open_program(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    _check_length(path)
    try:
        from executorch.runtime import Runtime
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs ExecuTorch: pip install "metamobile[executorch]"') from error
    _Threads.set()
    try:
        return Runtime.get().load_program(path)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: ExecuTorch cannot read it, {UNREADABLE} ({reason})") from error


class _Threads:
    """Those of the process. They can only be set before its first file: one that is loaded would wait for
    the old ones for ever."""

    fixed = False

    @classmethod
    def set(cls) -> None:
        from executorch.extension.pybindings import portable_lib

        count = portable_lib._threadpool_get_thread_count()
        wanted = threads_wanted() or count
        if wanted != count and cls.fixed:
            logging.getLogger(__name__).warning(
                "%s=%s comes too late: ExecuTorch has %d threads since its first file", THREADS, wanted, count
            )
        elif wanted != count:
            portable_lib._unsafe_reset_threadpool(wanted)
        cls.fixed = True


def _check_length(path: Path) -> None:
    """Against the program's own header: the runtime maps weights to memory unseen, and a truncated file would
    end the process at the first that is missing.

    Source: ExecuTorch's "pte file format": at 4 "ET..", at 8 "eh00", then the header's length (4 bytes), and
    the program's size, the offset and the size of the segments (8 bytes each).
    """
    with path.open("rb") as file:
        head = file.read(40)
    if len(head) < 40 or head[4:6] != b"ET":
        raise ValueError(f"{path}: not an ExecuTorch file")
    if head[8:12] != b"eh00":
        return
    length, program, offset = struct.unpack_from("<IQQ", head, 12)
    segments = struct.unpack_from("<Q", head, 32)[0] if length >= 32 else 0
    if path.stat().st_size < max(program, offset + segments):
        raise ValueError(f"{path}: truncated; expected {max(program, offset + segments)} bytes")
