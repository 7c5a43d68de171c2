"""The command `metamobile`: a verb reads its arguments, calls the function of its name, prints the answer.

It lies outside of the package `metamobile` and imports neither torch nor rich at its top, so that `--help`
answers at once; a verb imports what it needs. Results go to stdout (tables on a terminal, tab-separated lines
in a pipe), progress and remarks to stderr.

Exit codes: 0 done; 1 done, but a picture, a file or a gate failed; 2 not done, and one line on stderr says
why (METAMOBILE_DEBUG=1 shows the traceback); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from metamobile_cli.options import complain
from metamobile_cli.study import study
from metamobile_cli.verbs import app

app.add_typer(study, name="study")


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns its exit code. What the user can mend is one line, no traceback."""
    try:
        code = app(list(arguments) or ["--help"], prog_name="metamobile", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "metamobile"
        complain(f"{error.format_message().rstrip('.')}; see `{where} --help`")
    except (ValueError, OSError) as error:
        if os.environ.get("METAMOBILE_DEBUG"):
            raise
        complain(str(error))
    return 2


def main() -> None:
    sys.exit(run(sys.argv[1:]))
