"""How far a run is: the stages to come, what each is expected to take, and how much time is left of all (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping

# The stages of the job, as people read them.
WRITE_TEXT, ANSWER = "model writes calibration text", "model answers about pictures"
FORWARD, RECORD, LABELS, ROUND = "run the model", "record its calls", "draw labels", "measure and round"
ALONE = "measure large damages directly"
ASK = "ask the 16-bit model"
WRITE, COMPARE, CHECK, TASKS = "write files", "compare with 16 bit", "check the prediction", "answer tasks"

SURE = 0.05  # share of a stage after which its own pace counts alone
TRUSTED = 0.1  # of all expected seconds, taken as gone as expected: one short stage that was misjudged says little of the rest


class Schedule:
    """Stages in order with expected costs; the clock is the caller's, in seconds.

    Costs may be in any unit: the stages that are done tell how long one takes. Where the costs are ``seconds`` the time left is
    known from the start. ``within``: seconds that all stages may take together, which makes those to come fit.

    >>> schedule = Schedule({"read": 10.0, "round": 30.0}, seconds=True)
    >>> schedule.start("read", now=0.0)
    >>> schedule.left(0.0), schedule.position
    (40.0, (1, 2))
    >>> schedule.advance(0.5); round(schedule.left(10.0), 1)  # twice as slow as expected, and so may be the rest
    56.7
    >>> hurried = Schedule({"ask": 1.0, "train": 10.0}, within=60.0)
    >>> hurried.start("ask", now=0.0)
    >>> hurried.advance(0.5); hurried.left(10.0)
    50.0
    """

    def __init__(self, costs: Mapping[str, float] | None = None, seconds: bool = False, within: float = math.inf) -> None:
        self.costs = dict(costs or {})
        self.seconds, self.within = seconds, within
        self._opened: float | None = None
        self.stage = ""
        self.fraction = 0.0
        self._first = self._began = 0.0
        self._spent: dict[str, tuple[float, float]] = {}  # stage -> seconds, expected

    @property
    def position(self) -> tuple[int, int]:
        """Which stage this is, from one, and of how many."""
        names = list(self.costs)
        return (names.index(self.stage) + 1 if self.stage in names else 0), len(names)

    def start(self, stage: str, now: float, fraction: float = 0.0) -> None:
        """``stage`` begins, of which an earlier run did ``fraction``. Stages that were passed over are not awaited."""
        self._opened = now if self._opened is None else self._opened
        if stage not in self.costs:  # nobody expected it: it comes behind the one before
            at = self.position[0]
            known = list(self.costs.items())
            self.costs = dict([*known[:at], (stage, 0.0), *known[at:]])
        self.stage, self._began, self.fraction, self._first = stage, now, fraction, fraction

    def advance(self, fraction: float) -> None:
        self.fraction = min(1.0, fraction)

    def finish(self, now: float) -> None:
        done = 1.0 - self._first
        self._spent[self.stage] = (now - self._began, self.costs.get(self.stage, 0.0) * done)
        self.fraction = 1.0

    def left(self, now: float) -> float | None:
        """Seconds left of all stages; None while nothing tells how long anything takes."""
        spent = 0.0 if self._opened is None else now - self._opened
        reckoned, rest = self._reckoned(now), self.within - spent
        if math.isinf(rest) or rest <= 0:  # no more than it may take, until that has gone wrong
            return reckoned
        return rest if reckoned is None else min(reckoned, rest)

    def _reckoned(self, now: float) -> float | None:
        """The same by the pace of what is done."""
        elapsed, done = now - self._began, self.fraction - self._first
        names = list(self.costs)
        later = sum(self.costs[name] for name in names[names.index(self.stage) + 1 :]) if self.stage in names else 0.0
        pace = self._pace(elapsed, done)
        if done >= SURE:
            here = elapsed * (1 - self.fraction) / done
        elif pace is not None:
            here = self.costs.get(self.stage, 0.0) * (1 - self.fraction) * pace
        else:
            return None
        return None if later and pace is None else here + later * (pace or 0.0)

    def _pace(self, elapsed: float, done: float) -> float | None:
        """Seconds that a unit of cost takes, by what has been done."""
        seconds = sum(spent for spent, cost in self._spent.values() if cost)
        expected = sum(cost for _, cost in self._spent.values())
        if self.stage not in self._spent and done >= SURE:
            seconds, expected = seconds + elapsed, expected + self.costs.get(self.stage, 0.0) * done
        trusted = TRUSTED * sum(self.costs.values()) if self.seconds else 0.0
        return (seconds + trusted) / (expected + trusted) if expected + trusted > 0 else None


def in_words(seconds: float) -> str:
    """A time for people.

    >>> in_words(41), in_words(700), in_words(8000)
    ('41 s', '12 min', '2 h 13 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
