"""How fast this machine is at what a run does most: two small trials of a second together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitwright.measure.scores import by_rounder
from bitwright.measure.subject import Subject
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.row_feedback import RowFeedback, interleaved

TRIAL_SECONDS = 0.5
SIDE = 512  # rows and columns of the weight that is rounded on trial; every format can store rows of it
TALL = 4096  # rows of a second one on a GPU, where as many columns take nearly the same time whatever their length
CALLS = 100  # small operations of a trial


@dataclass(frozen=True)
class Speed:
    """``products``: floating-point operations a second in matrix products. ``rounding``: seconds for one weight (a number, not
    a matrix) through every format of the menu.

    On a GPU small operations wait for one another: ``column`` seconds more for each column that is rounded, and ``call``
    seconds for each operation of a model."""

    products: float
    rounding: float
    column: float = 0.0
    call: float = 0.0

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
        x = draw(2 * SIDE, SIDE)
        of_columns = Feedback.of(x.t() @ x / len(x))

        def rounding_seconds(n_rows: int) -> float:
            value, rows = draw(n_rows, SIDE), RowFeedback(interleaved(n_rows, device), torch.eye(n_rows, device=device))
            feedback = replace(of_columns, rows=rows)

            def rounded() -> None:
                for rounder, own in by_rounder(formats, subject.method.rounders):
                    rounder.calibrated(value, feedback, own)

            return _seconds_of(rounded, device)

        products, short = 2 * 1024**3 / seconds, rounding_seconds(SIDE)
        if device.type == "cpu":
            return cls(products, short / SIDE**2)
        number = max(0.0, rounding_seconds(TALL) - short) / (TALL - SIDE) / SIDE
        one = torch.zeros(1, device=device)
        calls = _seconds_of(lambda: [one.add_(1) for _ in range(CALLS)], device)
        return cls(products, number, max(0.0, short / SIDE - number * SIDE), calls / CALLS)


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
