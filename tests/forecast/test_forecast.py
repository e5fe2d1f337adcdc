"""What is said of a run before it begins has the stages that then come, and grows with what has to be done."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import bitwright
from bitwright import Settings
from bitwright.errors import BitwrightError
from bitwright.forecast.forecast import BLOCK_CALLS, forecast_of, measuring_seconds
from bitwright.forecast.speed import Speed
from bitwright.host.progress import Reporter
from bitwright.host.schedule import LABELS, RECORD, ROUND, WRITE_TEXT
from bitwright.measure.subject import Subject
from tests.conftest import Build

SMALL = Settings(sequences=8, length=32, held_out_sequences=2, held_out_length=32, dtype="float32", device="cpu", compare=False)
SPEED = Speed(products=1e11, rounding=1e-6)


class Diary(Reporter):
    """Tells where nobody reads, and notes the stages that begin."""

    def __init__(self) -> None:
        super().__init__()
        self.console, self.stages = Console(file=io.StringIO()), list[str]()

    def _words(self, at: float, of: int) -> str:
        if self.schedule.stage not in self.stages:
            self.stages.append(self.schedule.stage)
        return super()._words(at, of)


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_the_stages_that_were_announced_come_in_their_order(build: Build, tmp_path: Path, name: str) -> None:
    diary, container = Diary(), "gguf" if name.endswith("gguf") else "bitsandbytes"
    bitwright.quantize(build("llama"), tmp_path / name, "+40%", settings=replace(SMALL, container=container), reporter=diary)
    announced = list(diary.schedule.costs)
    assert [stage for stage in diary.stages if stage != RECORD] == announced
    assert diary.schedule.position == (len(announced), len(announced))


def test_more_to_do_takes_longer(build: Build) -> None:
    found = {}
    enough = replace(SMALL, sequences=48)  # no weight is short of tokens, and rounded a second time
    for settings in (enough, replace(enough, sequences=96), replace(enough, length=64)):
        subject = Subject.open(build("llama"), settings)
        plan = bitwright.allocate(subject.blank_table(), "+40%", frontier=False)
        found[settings] = forecast_of(subject, SPEED, plan)
    first, *others = found.values()
    assert all(other.total > first.total for other in others)
    assert all(other.disk_nbytes > first.disk_nbytes for other in others)


def test_launching_counts_where_it_is_what_takes_time(build: Build) -> None:
    """A GPU writes token by token and rounds column by column, whatever there is to multiply."""
    subject = Subject.open(build("llama"), replace(SMALL, calibration="self"))
    fast = Speed(products=1e14, rounding=1e-9)
    plain, launched = (measuring_seconds(subject, speed) for speed in (fast, replace(fast, column=1e-4, call=1e-5)))
    assert launched[WRITE_TEXT] - plain[WRITE_TEXT] == pytest.approx(SMALL.length * 2 * BLOCK_CALLS * 1e-5)
    columns = sum(w.n_cols for w in subject.source.spec.weights if w.at.index < 2)
    assert launched[ROUND] - plain[ROUND] >= columns * 1e-4
    assert launched[LABELS] == plain[LABELS]


def test_the_result_is_at_most_the_budget_and_known_where_it_was_measured(build: Build, tmp_path: Path) -> None:
    source, work = build("llama"), tmp_path / "work"
    blank = bitwright.forecast(source, tmp_path / "out", "200kB", settings=SMALL)
    assert (blank.nbytes, blank.damage_nats) == (200_000, None)
    whole = bitwright.forecast(source, tmp_path / "out", max_damage=0.01, settings=SMALL)
    assert whole.nbytes == Subject.open(source, SMALL).blank_table().sixteen_bit_nbytes()
    report = bitwright.quantize(source, tmp_path / "out", "+40%", workdir=work, settings=SMALL, reporter=Reporter(quiet=True))
    known = bitwright.forecast(source, tmp_path / "other", "+40%", workdir=work, settings=SMALL)
    assert known.damage_nats == report.plan.check_nats
    assert known.nbytes == report.plan.nbytes
    with pytest.raises(BitwrightError):
        bitwright.forecast(source, tmp_path / "out", "-90%", settings=SMALL)


def test_a_trial_leaves_the_random_numbers_of_the_run_alone(build: Build) -> None:
    subject = Subject.open(build("llama"), SMALL)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    speed = Speed.of(subject)
    assert torch.equal(torch.rand(3), wanted)
    assert speed.products > 1e8
    assert 0 < speed.rounding < 1e-2
