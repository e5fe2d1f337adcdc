"""The costs of a stage are those of that stage."""

import subprocess
import sys
import time

import pytest

from bitwright.host import clock
from bitwright.host.clock import Clock


class Memory:
    """The kernel's account of a process, in KiB (man 5 proc): stands for /proc/self/status and /proc/self/clear_refs."""

    def __init__(self, resets: bool) -> None:
        self.resets, self.resident, self.peak = resets, 0, 0

    def hold(self, *amounts: int) -> None:
        """One after the other these are resident."""
        self.resident, self.peak = amounts[-1], max(self.peak, *amounts)

    def exists(self) -> bool:
        return True

    def read_text(self, encoding: str) -> str:
        return f"VmPeak:\t 9999999 kB\nVmHWM:\t {self.peak:7d} kB\nVmRSS:\t {self.resident:7d} kB\n"

    def write_text(self, text: str, encoding: str) -> None:
        if not self.resets:
            raise PermissionError
        assert text == "5", "what resets the peak"
        self.peak = self.resident


@pytest.mark.parametrize(
    ("resets", "peaks"), [(True, {"large": 700, "small": 250, "idle": 120}), (False, {"large": 900, "small": 900, "idle": 900})]
)
def test_the_peak_of_a_stage_does_not_count_what_an_earlier_one_held(
    monkeypatch: pytest.MonkeyPatch, resets: bool, peaks: dict[str, int]
) -> None:
    """Where the kernel does not let the peak be reset, it is that of the run so far."""
    memory = Memory(resets)
    monkeypatch.setattr(clock, "STATUS", memory)
    monkeypatch.setattr(clock, "RESET", memory)
    memory.hold(900, 100)
    found = Clock()
    memory.hold(700, 200)
    found.lap("large")
    memory.hold(250, 120)
    found.lap("small")
    found.lap("idle")
    assert {stage: costs.peak_nbytes for stage, costs in found.stages.items()} == {s: 1024 * kib for s, kib in peaks.items()}


def test_processor_time_counts_children_and_not_waiting() -> None:
    found = Clock()
    time.sleep(0.3)
    found.lap("waiting")
    subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
    found.lap("child")
    assert found.stages["waiting"].seconds >= 0.3
    assert found.stages["waiting"].processor_seconds < 0.2
    assert found.stages["child"].processor_seconds > 0.05
