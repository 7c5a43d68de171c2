"""The card: all that a weights file says about itself, as JSON in the file. Reads without torch.

Layout of .safetensors: 8 bytes with the header's length N, N bytes of JSON (a name, dtype, shape and byte
range for each tensor; free strings under `__metadata__`), then the tensors' bytes.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from dataclasses import fields as dataclass_fields
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from metamobile import __version__
from metamobile.data.preprocess import Preprocess
from metamobile.errors import nearest

KEY = "metamobile"  # of the metadata, in .safetensors and in exported files
_MOST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass
class Card:
    """What weights are, and how to use them.

    `variant` and `model_args` make the network (`create_model(variant, **model_args)`); `classes` are the
    class folders' names by index and `names` what people read (the classes, unless given); `recipe`,
    `metrics` and `versions` say where the weights come from. `category_ids` are the numbers that a detector's
    data give the classes (COCO's 1 to 90).
    """

    variant: str
    model_args: dict[str, Any]
    _: KW_ONLY
    task: str = "classify"
    classes: list[str]
    names: list[str] = field(default_factory=list)
    preprocess: Preprocess
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: str = ""
    category_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = self.names or list(self.classes)
        if len(self.names) != len(self.classes):
            raise ValueError(f"a card with {len(self.classes)} classes has {len(self.names)} names for them")

    def to_json(self) -> str:
        """Errors: ValueError for a value that JSON does not have, such as NaN."""
        values = {f.name: getattr(self, f.name) for f in dataclass_fields(self)}
        return json.dumps(values | {"preprocess": self.preprocess.to_dict()}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Errors: ValueError for text that is not a card, with the key that is missing or unknown."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the card is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"the card is {type(values).__name__} where an object is expected")
        known = [f.name for f in dataclass_fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(
                    f"the card has an unknown key {key!r}{nearest(key, known)}; "
                    "a later metamobile may have written it, and would read it"
                )
        for key in ("variant", "model_args", "classes", "preprocess"):
            if key not in values:
                raise ValueError(f"the card lacks {key!r}")
        return cls(**{**values, "preprocess": Preprocess.from_dict(values["preprocess"])})


def current_versions() -> dict[str, str]:
    """Versions that decide what a network computes, by package."""
    packages = {package: version(package) for package in ("torch", "torchvision", "timm")}
    return {"metamobile": __version__, **packages, "python": python_version()}


def read_card(path: str | Path) -> Card:
    """The card in the header of a .safetensors file; the tensors are not read.

    Errors: ValueError, one line, for a missing, truncated or foreign file.
    """
    path = Path(path)
    metadata = _read_header(path).get("__metadata__", {})
    if KEY not in metadata:
        held = f"its metadata holds {', '.join(sorted(metadata))}" if metadata else "it holds no metadata"
        raise ValueError(
            f"{path}: safetensors without a metamobile card ({held}); expected a file that `metamobile "
            "train` wrote. Other weights go into a network by hand: create_model(...).load_state_dict(...)"
        )
    try:
        return Card.from_json(metadata[KEY])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_header(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: expected a .safetensors file, which cannot run code when it is read; "
            f"its suffix is {path.suffix or 'missing'}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MOST_HEADER:
            raise ValueError(f"{path}: not a safetensors file ({size:,} bytes, header said to be {length:,})")
        text = file.read(length)
    if len(text) < length:
        raise ValueError(f"{path}: truncated within its header at {size:,} bytes; copy or download it again")
    try:
        header = json.loads(text)
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path}: not a safetensors file (its header is not JSON)") from error
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not a safetensors file (its header lists no tensors)") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise ValueError(
            f"{path}: {what}: {size:,} bytes where its header says {expected:,}; copy or download it again"
        )
    return header
