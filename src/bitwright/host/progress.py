"""Progress on the error stream, with time left, for every stage that can take longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitwright.errors import printable

T = TypeVar("T")


class Reporter:
    """Draws one bar per stage; silent when ``quiet``."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.quiet = quiet

    def track(self, items: Iterable[T], stage: str, total: int) -> Iterator[T]:
        """Yield ``items`` while a bar shows how many of ``total`` are done and how long the rest will take."""
        if self.quiet:
            yield from items
            return
        columns = (
            TextColumn("{task.description:28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(escape(stage), total=total)
            for item in items:
                yield item
                progress.advance(task)

    def say(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False)
