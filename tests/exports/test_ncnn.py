"""ncnn's folders, and the suppression that follows a detector's."""

from __future__ import annotations

import pytest
from format_tests import FormatTests

pytest.importorskip("ncnn", reason='needs ncnn: pip install "metamobile[ncnn]"')


class TestNcnn(FormatTests):
    format = "ncnn"
