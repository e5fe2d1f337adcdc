"""The two ways to round a weight, whatever the format: to nearest, and with calibration, the default."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bitwright.formats.codebook import CodebookFormat
from bitwright.formats.codes import Codes
from bitwright.formats.format import BlockFormat, Quantized
from bitwright.formats.ggml import GgmlFormat
from bitwright.formats.pack import AnyCodes
from bitwright.rounding.codebook_feedback import codebook_feedback, nearest_codebook
from bitwright.rounding.coordinate_descent import coordinate_descent
from bitwright.rounding.error_feedback import Feedback, error_feedback
from bitwright.rounding.ggml_descent import ggml_descent
from bitwright.rounding.ggml_feedback import ggml_feedback
from bitwright.rounding.ggml_nearest import nearest_ggml
from bitwright.rounding.nearest import nearest

STACK_ENTRIES = 1 << 24  # weights of all formats that are rounded side by side: 64 MiB in float32
FINE_LEVELS = 256  # from here on what calibration gains is below the arithmetic noise of every runtime
SWEEPS = 1  # a second one moves the objective by less than a hundredth (docs/LOG.md)


def round_nearest(weight: Tensor, format: Quantized) -> AnyCodes:
    """Codes of ``weight`` [N, K], each weight to the nearest level under the scale that the stock quantizer takes."""
    if isinstance(format, CodebookFormat):
        return nearest_codebook(weight, format)
    return nearest_ggml(weight, format) if isinstance(format, GgmlFormat) else nearest(weight, format)


def round_calibrated(weight: Tensor, feedback: Feedback, formats: Sequence[Quantized]) -> list[AnyCodes]:
    """Codes of ``weight`` [N, K] in each of ``formats``, in their order: error feedback, then a sweep of coordinate descent."""
    codes: dict[str, AnyCodes] = {}
    blocks = [format for format in formats if isinstance(format, BlockFormat)]
    for one in _round_blocks(weight, feedback, blocks):
        codes[one.format.name] = one
    for format in formats:
        if isinstance(format, CodebookFormat):
            codes[format.name] = codebook_feedback(weight, feedback, format, SWEEPS)
        elif isinstance(format, GgmlFormat) and len(format.levels) >= FINE_LEVELS:
            codes[format.name] = nearest_ggml(weight, format)
        elif isinstance(format, GgmlFormat):
            start = ggml_feedback(weight, feedback, format)
            codes[format.name] = ggml_descent(weight, start, feedback.moment, SWEEPS)
    return [codes[format.name] for format in formats]


def _round_blocks(weight: Tensor, feedback: Feedback, formats: list[BlockFormat]) -> list[Codes]:
    at_once = max(1, STACK_ENTRIES // weight.numel())
    done = []
    for grid in dict.fromkeys(format.grid for format in formats):
        same = [format for format in formats if format.grid == grid]
        for first in range(0, len(same), at_once):
            for start in error_feedback(weight, feedback, same[first : first + at_once]):
                done.append(coordinate_descent(weight, start, feedback.moment, SWEEPS))
    return done
