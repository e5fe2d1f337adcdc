"""Progress on the error stream: one line with the stage, how far it is, and the time left of the whole run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bitwright.errors import printable
from bitwright.host.schedule import Schedule, in_words

T = TypeVar("T")
Advance = Callable[[float, int], None]  # how much is done, of how much
LINE_SECONDS = 30.0  # between two lines where there is no terminal
RELAYED = "\x1ebitwright-progress "  # begins a worker's line about its progress


class Reporter:
    """Tells a person how far a run is: a bar on a terminal, a line now and then elsewhere, nothing when ``quiet``.

    ``verbose``: what worker processes write is shown too.
    """

    current: Reporter | None = None  # the one that is telling, for the words after Ctrl-C

    def __init__(self, quiet: bool = False, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.quiet, self.verbose = quiet, verbose
        self.schedule = Schedule()
        self.said: set[str] = set()
        self.kept: Path | None = None  # where finished pieces stay when the run is stopped
        self.stopped_at = 0.0  # how much of the last stage was done when it ended
        self._clock, self._active, self._last = clock, False, float("-inf")
        if not quiet:
            Reporter.current = self

    def plan(self, costs: Mapping[str, float], seconds: bool = False, within: float = math.inf) -> None:
        """The stages to come, with what each costs: in seconds, or relative to each other; the seconds that all may take."""
        self.schedule = Schedule(costs, seconds, within)

    def track(self, items: Iterable[T], stage: str, total: int, done: int = 0) -> Iterator[T]:
        """Yield ``items``, those that are left of ``total``, while the line shows how far ``stage`` is. A stage within
        another is not shown."""
        with self.stage(stage, total, done) as advance:
            for i, item in enumerate(items, done + 1):
                yield item
                advance(i, total)

    @contextmanager
    def stage(self, stage: str, total: int = 0, done: int = 0) -> Iterator[Advance]:
        """While the block runs, ``stage`` is shown; it calls what it is given with how much of how much is done."""
        if self._active:
            yield _nothing
            return
        self._active = True
        self.schedule.start(stage, self._clock(), done / total if total else 0.0)
        try:
            with self._shown(stage, done, total) as show:

                def advance(at: float, of: int) -> None:
                    self.schedule.advance(at / of if of else 0.0)
                    show(at, of)

                yield advance
        finally:
            self.stopped_at = self.schedule.fraction
            self.schedule.finish(self._clock())
            self._active = False

    @contextmanager
    def _shown(self, stage: str, done: int, total: int) -> Iterator[Advance]:
        if self.quiet:
            yield _nothing
        elif self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[left]}"))
            with Progress(*columns, console=self.console, expand=True, transient=True) as bar:
                task = bar.add_task(escape(self._words(done, total)), total=1.0, left=self._left())
                yield lambda at, of: self._redraw(bar, task, at, of)
        else:
            self._line(done, total)
            yield self._line_now_and_then

    def _redraw(self, bar: Progress, task: TaskID, at: float, of: int) -> None:
        words = escape(self._words(at, of))
        bar.update(task, description=words, completed=self.schedule.fraction, left=self._left())

    def _line_now_and_then(self, at: float, of: int) -> None:
        if self._clock() - self._last >= LINE_SECONDS:
            self._line(at, of)

    def _line(self, at: float, of: int) -> None:
        self._last = self._clock()
        left = self._left()
        self.say(self._words(at, of) + (f", {left}" if left else ""))

    def _words(self, at: float, of: int) -> str:
        """Such as "3 of 6: measure and round, 12 of 30"."""
        place, count = self.schedule.position
        ahead = f"{place} of {count}: " if count > 1 and place else ""
        return f"{ahead}{printable(self.schedule.stage)}" + (f", {int(at)} of {of}" if of > 1 else "")

    def _left(self) -> str:
        left = self.schedule.left(self._clock())
        return "" if left is None else f"about {in_words(left)} left" + (" in all" if self.schedule.position[1] > 1 else "")

    def where(self) -> str:
        """How far the run is, for a person who stopped it; empty before its first stage."""
        if not self.schedule.stage:
            return ""
        return f"{self._words(0, 0)}, {100 * self.stopped_at:.0f} % of it done"

    def say(self, text: str) -> None:
        self.said.add(text)
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=not self.console.is_terminal)


class Relay(Reporter):
    """In a worker process: each stage is one of ``count``, and goes to the process that started it, by standard output."""

    def __init__(self, count: int) -> None:
        super().__init__(quiet=True)
        self.count, self.finished = count, 0

    @contextmanager
    def _shown(self, stage: str, done: int, total: int) -> Iterator[Advance]:
        def show(at: float, of: int) -> None:
            line = {"at": self.finished + (at / of if of else 0.0), "of": self.count}
            print(RELAYED + json.dumps(line), flush=True)

        yield show
        self.finished += 1

    def say(self, text: str) -> None:
        print(RELAYED + json.dumps({"say": printable(text)}), flush=True)


QUIET = Reporter(quiet=True)


def _nothing(at: float, of: int) -> None: ...


def relayed(lines: Iterable[str], advance: Advance, say: Callable[[str], object]) -> Iterator[str]:
    """The ``lines`` of a worker process but for those of its Relay, which are passed on: how far it is, and what it says."""
    for line in lines:
        words, mark, told = line.partition(RELAYED)  # what a library wrote may stand before it
        if mark:
            message = json.loads(told)
            if "say" in message:
                say(message["say"])
            else:
                advance(message["at"], message["of"])
        if words or not mark:
            yield words
