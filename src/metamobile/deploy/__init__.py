"""Deployment: a network's deployed form, files for other runtimes, the gate. The package can be called:
`metamobile.deploy(network)` is `metamobile.deploy.form.deploy`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, network: Any) -> Any:
        """The deployed form of a network, or of the one in a loaded model."""
        from metamobile.deploy.form import deploy

        return deploy(getattr(network, "network", network))


sys.modules[__name__].__class__ = _Callable
