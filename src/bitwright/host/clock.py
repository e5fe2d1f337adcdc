"""What each stage of a run costs: time by the clock, time of all processors, peak memory (no torch)."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Stage:
    """One stage. Processor time counts every core and the processes that were waited for."""

    seconds: float
    processor_seconds: float
    peak_nbytes: int  # most memory resident in this process; of the whole run so far where Linux is missing


class Clock:
    """Costs since the last lap, by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self._seconds, self._processor_seconds = time.perf_counter(), _processor_seconds()
        _reset_peak()

    def lap(self, stage: str) -> None:
        """Everything since the last call, or since this clock was made, was ``stage``."""
        seconds, processor_seconds = time.perf_counter(), _processor_seconds()
        self.stages[stage] = Stage(
            round(seconds - self._seconds, 2), round(processor_seconds - self._processor_seconds, 2), _peak_nbytes()
        )
        self._seconds, self._processor_seconds = seconds, processor_seconds
        _reset_peak()


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_nbytes() -> int:
    if STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_peak() -> None:
    try:
        RESET.write_text("5", encoding="utf-8")  # man 5 proc: the peak becomes what is resident now
    except OSError:
        return
