"""OpenVINO's folders."""

from __future__ import annotations

import pytest
from format_tests import FormatTests

pytest.importorskip("openvino", reason='needs OpenVINO: pip install "metamobile[openvino]"')


class TestOpenVino(FormatTests):
    format = "openvino"
