"""What a run says: a bar with time left on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def rough_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class Reporter:
    """Lines to standard error and to the run's log file; a progress bar where a person looks."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.interactive = sys.stderr.isatty() and not quiet
        self._log: Path | None = None
        self._early: list[str] = []  # said before there was a log file

    def start_log(self, path: Path) -> None:
        self._log = path
        for line in self._early:
            self.note(line)
        self._early = []

    def say(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, markup=False)
        self.note(line)

    def note(self, line: str) -> None:
        """To the log file alone."""
        if self._log is None:
            self._early.append(line)
            return
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def bar(self, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar over `total` steps, the first `done` of which are behind us; silent in a log."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        with Progress(*columns, *times, console=self.console, disable=not self.interactive) as progress:
            yield Bar(progress, progress.add_task("", total=total, completed=done))


class Bar:
    """One line of a progress display."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def step(self, text: str) -> None:
        """One more done, described by `text`."""
        self._progress.update(self._task, advance=1, description=text)

    def move(self, text: str, done: int, total: int | None) -> None:
        """`done` of `total` (None: nobody knows), described by `text`."""
        self._progress.update(self._task, completed=done, total=total, description=text)
