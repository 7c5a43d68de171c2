"""Errors for users: one line that says what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """A data set cannot be used as it is; the message names each file."""


class PictureError(ValueError):
    """One picture cannot be read; the message names it and the reason."""


class NotFinite(ValueError):
    """A network's output is infinite or not a number."""


def nearest(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `given`, or an empty string."""
    found = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
