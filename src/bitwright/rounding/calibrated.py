"""The default way to round with calibration: error feedback, then one sweep of coordinate descent."""

from __future__ import annotations

from torch import Tensor

from bitwright.formats.codes import Codes
from bitwright.formats.format import BlockFormat
from bitwright.rounding.coordinate_descent import coordinate_descent
from bitwright.rounding.error_feedback import Feedback, error_feedback

STACK_ENTRIES = 1 << 24  # weights of all formats that are rounded side by side: 64 MiB in float32
SWEEPS = 1  # a second one moves the objective by less than a hundredth (docs/LOG.md)


def round_calibrated(weight: Tensor, feedback: Feedback, formats: list[BlockFormat]) -> list[Codes]:
    """Codes of ``weight`` [N, K] in each of ``formats``, in their order."""
    codes: dict[str, Codes] = {}
    at_once = max(1, STACK_ENTRIES // weight.numel())
    for grid in dict.fromkeys(format.grid for format in formats):
        same = [format for format in formats if format.grid == grid]
        for first in range(0, len(same), at_once):
            for start in error_feedback(weight, feedback, same[first : first + at_once]):
                codes[start.format.name] = coordinate_descent(weight, start, feedback.moment, SWEEPS)
    return [codes[format.name] for format in formats]
