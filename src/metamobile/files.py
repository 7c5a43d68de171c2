"""Files that are whole or not there: written aside in the same folder, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends and vanishes when it raises.

    The folder is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def free_name(path: Path) -> Path:
    """The path, or name-2, name-3 and so on, with the first number that no file has.

    Its folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 2
    while free.exists():
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free


def cache_folder() -> Path:
    """Where what can be fetched or made again is kept: $METAMOBILE_CACHE, else ~/.cache/metamobile."""
    return Path(os.environ.get("METAMOBILE_CACHE") or Path.home() / ".cache" / "metamobile")
