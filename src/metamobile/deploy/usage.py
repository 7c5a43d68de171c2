"""USE.md, beside exported files: for each the code that loads it and answers for a picture, in its runtime's
own languages. The texts are in `use/`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from metamobile.deploy.formats import FORMATS, PRECISIONS, format_of
from metamobile.deploy.preprocessing import is_scaled
from metamobile.deploy.runtimes import INPUT, open_runtime
from metamobile.files import write_text
from metamobile.tasks import get_files
from metamobile.weights.card import Card, read_card

NAME = "USE.md"
TEMPLATES = Path(__file__).parent / "use"
MANY = 20  # names of classes, from which they stand at the section's end and not in its code
ONE_BY_ONE = ("executorch", "litert", "coreml", "ncnn")  # take one picture at a time
FLAT = ("onnx", "openvino")  # a detector's boxes of all pictures are in one list
PRECISION_NAMES = {
    "fp32": "single (fp32)",
    "fp16": "half (fp16)",
    "int8": "eight bits (int8)",
}


def write_usage(folder: str | Path, files: Sequence[str | Path]) -> Path:
    """Write USE.md into `folder` for `files` that are in it: exported ones, and weights (.safetensors).

    Others are left out. A file that cannot be opened here, as its runtime is missing, keeps the section that
    USE.md has of it; without one, its section says what is missing. Sections of files that are gone go.
    """
    folder = Path(folder)
    page = folder / NAME
    before = _sections(page.read_text("utf-8")) if page.is_file() else {}
    sections = []
    for path in sorted({folder / Path(file).name for file in files}):
        if not path.exists() or (format_of(path) is None and path.suffix != ".safetensors"):
            continue
        try:
            runtime = None if path.suffix == ".safetensors" else open_runtime(path)
            card = read_card(path) if runtime is None else runtime.card
        except ValueError as error:
            old = before.get(path.name, f"## {path.name}\n\nNot described here: {error}.")
            sections.append(_marked(path.name, old))
            continue
        free = getattr(runtime, "any_size", False)
        sections.append(_marked(path.name, describe(path, card, any_size=free)))
    text = _templates().get_template("page.md").render(sections=sections)
    write_text(page, text.rstrip() + "\n")
    return page


def describe(path: str | Path, card: Card, *, any_size: bool = False) -> str:
    """The section of one file; with `any_size` its height and width are free."""
    path = Path(path)
    kind = format_of(path)
    templates = _templates()
    values = _values(path, kind, card) | {"any_size": any_size}
    code = templates.get_template("pictures.md" if values["pictures"] else f"{kind or 'safetensors'}.md")
    return templates.get_template("section.md").render(values | {"code": code.render(values).strip()}).strip()


def _values(path: Path, kind: str | None, card: Card) -> dict[str, Any]:
    """What the templates fill in. Lists are written as JSON, which Python and JavaScript share."""
    record = card.preprocess
    height, width = record.size
    marks = path.name.split(".")[1:-1]
    many = len(card.names) > MANY
    names = ", ".join(_quoted(name) for name in card.names)
    in_code = "/* the names below */" if many else names
    files = get_files(card.task)
    runtime = f"for {FORMATS[kind].runtime}" if kind else "the weights, for metamobile itself"
    return {
        "path": path,
        "file": _quoted(path.name),
        "xml": _quoted(f"{path.name}/model.xml"),
        "format": kind,
        "about": f"{card.variant}, which {files.PURPOSE}, {len(card.names)} classes: {runtime}.",
        "precision": PRECISION_NAMES[next((mark for mark in marks if mark in PRECISIONS), "fp32")],
        "unverified": "unverified" in marks,
        "pictures": kind in FLAT and "pictures" in marks,  # preprocessing is in the file
        "scaled": is_scaled(card),  # all of it but resizing and cropping
        "task": card.task,
        "flat": kind in FLAT,
        "H": height,
        "W": width,
        "K": len(card.names),
        "batch": "1" if kind in ONE_BY_ONE else "batch",
        "crop": record.fit == "crop",
        "side": record.shorter_side,
        "filter": record.interpolation,
        "mean": list(record.mean),
        "std": list(record.std),
        "mean_c": ", ".join(map(str, record.mean)),
        "std_c": ", ".join(map(str, record.std)),
        "mean_255": ", ".join(f"{255 * value:.7g}f" for value in record.mean),
        "scale_255": ", ".join(f"{1 / (255 * value):.7g}f" for value in record.std),
        "input": "in0" if kind == "ncnn" else INPUT,
        "card_json": _quoted(f"{path.name}/card.json"),
        "ncnn_param": _quoted(f"{path.name}/model.ncnn.param"),
        "ncnn_bin": _quoted(f"{path.name}/model.ncnn.bin"),
        "mean_f": ", ".join(f"{value}f" for value in record.mean),
        "std_f": ", ".join(f"{value}f" for value in record.std),
        "many": many,
        "names": json.dumps(card.names, ensure_ascii=False, indent=1),
        "code_names": in_code,
        "kotlin_names": in_code.replace("$", r"\$"),
        "kotlin_file": _quoted(path.name).replace("$", r"\$"),
        "outputs": json.dumps(files.NAMED),
    }


def _quoted(text: str) -> str:
    """As a literal that Python, JavaScript, Swift, C++ and, but for "$", Kotlin read alike."""
    return json.dumps(text, ensure_ascii=False)


def _marked(name: str, section: str) -> str:
    return f"<!-- {name} -->\n\n{section.strip()}\n\n<!-- end of {name} -->"


def _sections(text: str) -> dict[str, str]:
    """Of a USE.md, the section of each file."""
    found = re.findall(r"<!-- (\S.*?) -->\n\n(.*?)\n\n<!-- end of \1 -->", text, re.DOTALL)
    return dict(found)


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
