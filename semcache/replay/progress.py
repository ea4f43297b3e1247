"""Progress, shown on stderr: a bar where that is a terminal, else a line for each thing begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from semcache.replay.settings import Progress


@contextmanager
def progress(file: TextIO, *, is_quiet: bool) -> Iterator[Progress]:
    """Give what a replay tells its progress to."""
    if is_quiet:
        yield lambda *_: None
    elif not file.isatty():
        yield _Lines(file)
    else:
        try:
            from rich.progress import Progress as Bars
        except ImportError:
            yield _Lines(file)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("to go"), TimeRemainingColumn(),
        )  # fmt: skip
        with Bars(*columns, console=Console(file=file), transient=True) as bars:
            yield _Bars(bars)


class _Lines:
    """A line whenever something else is begun."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._doing = ""

    def __call__(self, what: str, done: int, of: int) -> None:  # noqa: ARG002 - no bar
        if what != self._doing:
            self._doing = what
            print(f"{what} {of:,} ..." if of else f"{what} ...", file=self._file, flush=True)


class _Bars:
    """A bar of rich for each thing begun; one whose length is not known runs on until the next begins."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._doing = ""
        self._task: Any = None

    def __call__(self, what: str, done: int, of: int) -> None:
        if what != self._doing:
            if self._task is not None:
                self._bars.update(self._task, total=1, completed=1, visible=False)
            self._doing = what
            self._task = self._bars.add_task(what, total=of or None)
        self._bars.update(self._task, completed=done)
