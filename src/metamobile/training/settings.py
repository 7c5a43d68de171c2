"""Typed settings from YAML: dataclasses filled from mappings, each key and value checked. Without torch."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from typing import Any

import yaml

from metamobile.errors import nearest


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2; the library's own rules read it as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """Errors: yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def setting_names(values: dict[str, Any], prefix: str = "") -> list[str]:
    """All settings as "section.key"."""
    keys = []
    for name, value in values.items():
        keys += (
            setting_names(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]
        )
    return keys


def build(cls: type, values: Any, where: str = "") -> Any:
    """The dataclass `cls` from a mapping. Errors: ValueError that names the key, with the nearest."""
    if not isinstance(values, dict):
        raise ValueError(
            f"recipe: {where or 'the file'} is {values!r}; expected settings, one 'key: value' a line"
        )
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    built = {}
    for key, value in values.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ValueError(
                f"recipe: no setting {place!r}; known are {', '.join(known)}{nearest(str(key), known)}"
            )
        hint = hints[key]
        read = build if dataclasses.is_dataclass(hint) else check_type
        built[key] = read(hint, value, place)
    return cls(**built)


def check_type(hint: Any, value: Any, place: str) -> Any:
    """`value`, or the number it stands for, if it is of the type `hint`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        try:
            return _convert(option, value, place)
        except TypeError:
            continue
    raise ValueError(f"recipe: {place} is {value!r}; expected {' or '.join(_words(o) for o in options)}")


def _convert(option: Any, value: Any, place: str) -> Any:
    """Errors: TypeError for a value of another type."""
    if option in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError
        if option is int and value != int(value):
            raise TypeError
        return option(value)
    kind = typing.get_origin(option) or option
    if kind is list and isinstance(value, str) and "," in value:  # --set data.mean=0.5,0.5,0.5
        value = read_yaml(f"[{value}]")
    if not isinstance(value, kind):
        raise TypeError
    if kind is list and typing.get_args(option):
        return [check_type(typing.get_args(option)[0], item, f"{place}[{i}]") for i, item in enumerate(value)]
    return value


def _words(option: Any) -> str:
    """A type as people call it."""
    if typing.get_args(option):
        return f"a list of {_words(typing.get_args(option)[0])}s"
    words = {type(None): "null", int: "whole number", float: "number", str: "text", bool: "true or false"}
    return words.get(option) or {list: "a list", dict: "settings"}.get(option, str(option))
