"""How fast this machine is at what a run does most: two small trials of a second together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
        generator = torch.Generator().manual_seed(0)  # of its own: a run shall not depend on having been timed

        def draw(n_rows: int, n_cols: int) -> Tensor:
            return torch.randn(n_rows, n_cols, generator=generator).to(device)

        a, b = (draw(1024, 1024).to(dtype) for _ in range(2))
        seconds = _seconds_of(lambda: a @ b, device)
        widest = max(subject.method.formats.values(), key=len)
        formats = tuple(format for format in widest if not format.unavailable(SIDE))
        value, x = draw(SIDE, SIDE), draw(2 * SIDE, SIDE)
        feedback = Feedback.of(x.t() @ x / len(x))

        def rounded() -> None:
            for rounder, own in by_rounder(formats, subject.method.rounders):
                rounder.calibrated(value, feedback, own)

        return cls(2 * 1024**3 / seconds, _seconds_of(rounded, device) / SIDE**2)


def _seconds_of(trial: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, after a first one that does not count."""
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
