"""torch.export's own files."""

from __future__ import annotations

from format_tests import FormatTests


class TestTorchExport(FormatTests):
    format = "torch-export"
    without_torch = False
