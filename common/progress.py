"""Tells a person at a terminal, on stderr, what is going on and how long it took; stays out of the way of pipes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from common.clock import SECOND, stopwatch

T = TypeVar("T")


class Progress:
    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)  # a line stays one, in a log as well

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One piece of work: a spinner while it lasts, then its name and seconds."""
        start = stopwatch()
        with self._console.status(name):
            yield
        self._done(name, start)

    def over(self, work: Sequence[T], name: str) -> Iterator[T]:
        """Many equal pieces of work: a bar while they last, then the name and seconds."""
        start = stopwatch()
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            yield from bar.track(work, description=name)
        self._done(name, start)

    def _done(self, name: str, start: int) -> None:
        self.say(f"  {name:<40} {(stopwatch() - start) / SECOND:6.1f} s")
