"""LiteRT files."""

from __future__ import annotations

import pytest

pytest.importorskip("litert_torch")

from format_tests import FormatTests


class TestLiteRT(FormatTests):
    format = "litert"
