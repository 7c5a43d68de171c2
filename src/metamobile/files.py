"""Files that are whole or not there: written aside in the same folder, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A path to write a file or a folder to, of the same suffix, which becomes `path` when the block ends and
    vanishes when it raises.

    The folder it is in is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        move(temporary, path)
    finally:
        remove(temporary)


def move(path: Path, to: Path) -> None:
    """Rename, in place of what is there; of folders, the old one goes first.

    Errors: ValueError for a file in place of a folder, which would take all that is in it.
    """
    if to.is_dir():
        if not path.is_dir():
            expect_file(to)
        shutil.rmtree(to)
    os.replace(path, to)


def expect_file(path: str | Path) -> None:
    """Errors: ValueError for a folder where a file is to be written."""
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder; expected the name of a file to write")


def expect_folder(path: str | Path) -> None:
    """Errors: ValueError for a file where a folder is to be written."""
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"{path}: a file; expected the name of a folder to write into")


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size


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
