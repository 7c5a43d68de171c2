"""Code taken out of a USE.md, and run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def code(page: str, language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return block


def run_python(block: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_on(block: str, pictures: Sequence[Path], folder: Path, then: str = "") -> list[str]:
    """What the code prints for each picture; `then` is run behind it. One process, which imports the runtime
    once, takes them all."""
    block = block.replace('"picture.jpg"', "picture_path")
    script = f"""
import contextlib, io, json
printed = []
for number, picture_path in enumerate({[str(picture.resolve()) for picture in pictures]}):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec({block!r})
    printed.append(out.getvalue().strip())
    {then}
print(json.dumps(printed))
"""
    printed: list[str] = json.loads(run_python(script, folder).splitlines()[-1])
    return printed
