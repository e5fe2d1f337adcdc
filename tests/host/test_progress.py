"""What a person is told about how far a run is."""

import io
from typing import Any

import pytest
from rich.console import Console

from bitwright.host.progress import RELAYED, Relay, Reporter, relayed
from bitwright.host.schedule import Schedule


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def reporter(clock: Clock, terminal: bool = False) -> tuple[Reporter, io.StringIO]:
    told, out = Reporter(clock=clock), io.StringIO()
    told.console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    return told, out


def test_elsewhere_than_on_a_terminal_a_line_every_half_minute() -> None:
    clock = Clock()
    told, out = reporter(clock)
    told.plan({"read": 100.0, "round": 200.0}, seconds=True)
    for _ in told.track(range(10), "read", 10):
        clock.now += 10
    for _ in told.track(range(5), "round", 10, done=5):
        clock.now += 10
    assert out.getvalue().splitlines() == [
        "1 of 2: read, 0 of 10, about 5 min left in all",
        "1 of 2: read, 3 of 10, about 4 min left in all",
        "1 of 2: read, 6 of 10, about 4 min left in all",
        "1 of 2: read, 9 of 10, about 4 min left in all",
        "2 of 2: round, 5 of 10, about 2 min left in all",
        "2 of 2: round, 8 of 10, about 20 s left in all",
    ]


def test_a_terminal_has_one_line_and_nothing_stays() -> None:
    clock = Clock()
    told, out = reporter(clock, terminal=True)
    told.plan({"read": 1.0, "round": 2.0})
    for _ in told.track(range(2), "read", 2):
        clock.now += 30
        for _ in told.track(range(2), "something within", 2):
            pass
    drawn = out.getvalue()
    assert "1 of 2: read, 2 of 2" in drawn
    assert "something within" not in drawn
    assert drawn.endswith("\x1b[2K")  # the line is gone


def test_stages_that_were_passed_over_are_not_awaited() -> None:
    schedule = Schedule({"text": 100.0, "run": 10.0, "round": 40.0}, seconds=True)
    schedule.start("run", now=0.0)
    assert schedule.left(0.0) == 50.0
    schedule.finish(now=20.0)
    schedule.start("round", now=20.0, fraction=0.5)
    assert schedule.left(20.0) == 28.0  # half of it: ten seconds took twenty, fifteen more are taken as expected


def test_a_short_stage_that_was_misjudged_says_little_of_the_others() -> None:
    schedule = Schedule({"answer": 2.0, "round": 998.0}, seconds=True)
    schedule.start("answer", now=0.0)
    schedule.advance(0.5)
    left = schedule.left(30.0)
    assert left is not None
    assert 1000 < left < 1400
    schedule.finish(now=60.0)
    schedule.start("round", now=60.0)
    schedule.advance(0.5)
    assert schedule.left(1060.0) == 1000.0  # its own pace counts alone


def test_relative_costs_tell_nothing_until_a_stage_has_begun() -> None:
    schedule = Schedule({"one": 1.0, "two": 3.0})
    schedule.start("one", now=0.0)
    assert schedule.left(0.0) is None
    schedule.advance(0.5)
    assert schedule.left(10.0) == 10.0 + 60.0


def test_a_worker_passes_on_how_far_it_is_and_what_libraries_write_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    worker = Relay(2)
    for _ in worker.track(range(2), "first", 2):
        print("a library says something", end="")
    worker.say("a note")
    for _ in worker.track(range(1), "second", 1):
        pass
    said, seen = io.StringIO(capsys.readouterr().out), list[tuple[Any, Any]]()
    told: list[str] = []
    kept = list(relayed(said, lambda at, of: seen.append((at, of)), told.append))
    assert told == ["a note"]
    assert seen == [(0.5, 2), (1.0, 2), (2.0, 2)]
    assert "".join(kept) == "a library says something" * 2
    assert RELAYED not in "".join(kept)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told = Reporter(quiet=True)
    told.plan({"read": 1.0})
    assert list(told.track(range(3), "read", 3)) == [0, 1, 2]
    told.say("nothing")
    assert capsys.readouterr() == ("", "")
    assert told.where() == "read, 100 % of it done"
