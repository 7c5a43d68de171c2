"""ONNX files; more of them in tests/test_export.py."""

from __future__ import annotations

from format_tests import FormatTests


class TestOnnx(FormatTests):
    format = "onnx"
