"""How fast this machine is at what a run does most: two small trials of a second together."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from bitwright.measure.scores import by_rounder
from bitwright.measure.subject import Subject
from bitwright.rounding.kernels.error_feedback import Feedback

TRIAL_SECONDS = 0.5
SIDE = 512  # rows and columns of the weight that is rounded on trial; every format can store rows of it


@dataclass(frozen=True)
class Speed:
    """``products``: floating-point operations a second in matrix products. ``rounding``: seconds for one weight (a number, not
    a matrix) through every format of the menu."""

    products: float
    rounding: float

    @classmethod
    def of(cls, subject: Subject) -> Speed:
        """Measure this machine with the types and formats of ``subject``."""
        device, dtype = subject.device, subject.precision.work
        a, b = (torch.randn(1024, 1024, device=device).to(dtype) for _ in range(2))
        seconds = _seconds_of(lambda: a @ b, device)
        widest = max(subject.method.formats.values(), key=len)
        formats = tuple(format for format in widest if not format.unavailable(SIDE))
        value, x = torch.randn(SIDE, SIDE, device=device), torch.randn(2 * SIDE, SIDE, device=device)
        feedback = Feedback.of(x.t() @ x / len(x))

        def rounded() -> None:
            for rounder, own in by_rounder(formats, subject.method.rounders):
                rounder.calibrated(value, feedback, own)

        return cls(2 * 1024**3 / seconds, _seconds_of(rounded, device) / SIDE**2)


def _seconds_of(trial: object, device: torch.device) -> float:
    """Seconds that one call takes, after a first one that does not count."""
    assert callable(trial)
    trial()
    _wait(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < TRIAL_SECONDS:
        trial()
        _wait(device)
        count += 1
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
