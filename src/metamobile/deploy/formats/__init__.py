"""The file formats a model is exported to. One module each writes it, runs it, and marks a file that failed.

A module has
    write(network, card, path, options)   a file or folder at `path`; imports torch and the exporter inside
    open_file(path, device)               -> a Runtime; imports nothing but the runtime's own package
    mark(path, reason)                    says in the file that it failed its gate

Their input is "pixels", float32 (batch, 3, H, W), preprocessed as the card says; the card is in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from metamobile.errors import nearest

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Options:
    """How a file is written. `calibration` are pictures for int8; `dynamic_size` leaves height and width
    free; `preprocessing` puts it into the graph."""

    precision: str = "fp32"
    calibration: Sequence[Path] = ()
    dynamic_size: bool = False
    preprocessing: bool = False


PLAIN = Options()


@dataclass(frozen=True)
class Format:
    """One format: `writes` and `runs` are the packages that writing and running import, which the extra
    `metamobile[extra]` brings; `can` are the options it has."""

    suffix: str
    runtime: str
    extra: str = ""
    writes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    can: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(
        ".onnx",
        "ONNX Runtime",
        "onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        ("onnxruntime",),
        PRECISIONS,
        ("preprocessing", "any size"),
    ),
    "openvino": Format(
        ".openvino",
        "OpenVINO",
        "openvino",
        ("onnx", "onnxscript", "onnxruntime", "openvino"),
        ("openvino",),
        PRECISIONS,
        ("preprocessing", "any size"),
    ),
    "executorch": Format(
        ".pte", "ExecuTorch", "executorch", ("executorch",), ("executorch",), ("fp32", "int8")
    ),
    "litert": Format(
        ".tflite",
        "LiteRT",
        "litert",
        ("litert_torch", "ai_edge_quantizer"),
        ("ai_edge_litert",),
        ("fp32", "fp16", "int8"),
    ),
    "coreml": Format(".mlpackage", "Core ML", "coreml", ("coremltools",), ("coremltools",), ("fp32", "fp16")),
    "ncnn": Format(".ncnn", "ncnn", "ncnn", ("pnnx", "ncnn"), ("ncnn",), ("fp32", "fp16")),
    "torch-export": Format(".pt2", "torch.export"),
}
MODULES = {"torch-export": "torch_export"}  # where a module's name is not the format's


def get_format(name: str) -> ModuleType:
    """The module of a format. Errors: ValueError for an unknown name, with the nearest one."""
    if name not in FORMATS:
        raise ValueError(
            f"no exporter is called {name!r}; there are {', '.join(FORMATS)}{nearest(name, FORMATS)}"
        )
    return import_module(f"{__name__}.{MODULES.get(name, name)}")


def format_of(path: str | Path) -> str | None:
    """The format of a file or folder, by its suffix alone."""
    suffix = Path(path).suffix
    return next((name for name, one in FORMATS.items() if one.suffix == suffix), None)


def need_writer(name: str) -> None:
    """Errors: ValueError where a package that writes this format is missing."""
    for package in FORMATS[name].writes:
        _need(package, name, f"export to {name}")


def need_runtime(name: str, path: str | Path) -> None:
    """Errors: ValueError where a package that runs this format is missing."""
    for package in FORMATS[name].runs:
        _need(package, name, str(path))


def _need(package: str, name: str, what: str) -> None:
    """Looks, and imports nothing."""
    if sys.modules.get(package, package) is None or find_spec(package) is None:
        extra = FORMATS[name].extra
        raise ValueError(f'{what} needs {package}: pip install "metamobile[{extra}]"')
