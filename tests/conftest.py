"""What tests share: where the real data lies, a cache of their own, fixed seeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import metamobile  # noqa: F401  # first, as a user would: this registers the networks with timm

SHARED = Path(os.environ.get("METAMOBILE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference outputs and real pictures; a test that needs it skips without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data at {SHARED} (set METAMOBILE_SHARED)")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Drawn and pulled files of the person who runs the tests stay out of them."""
    os.environ["METAMOBILE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
