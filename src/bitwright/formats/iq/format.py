"""llama.cpp's codebook formats below 3.5 bits: groups of four or eight weights are entries of a published table (no torch).

weight = d * (step + 1/2) * gain * value, where value is an entry's number with a sign of its own, or, in the formats below
two bits, an entry's number of -1, 0 or 1 plus or minus an eighth. Source: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.formats.base import Format, whole_groups

RECORD = 256
SIGNED = 8  # weights whose signs are stored together
DELTA = 0.125  # of the formats without signs


@dataclass(frozen=True)
class CodebookFormat(Format):
    """One codebook format. ``signs``: even (the last of eight follows from the others), free, or none: then a shift of DELTA
    has one sign for ``shifted`` weights."""

    name: str
    group: int  # weights of one entry
    block: int  # weights of one scale step
    n_steps: int
    gain: float
    signs: str
    record_nbytes: int
    shifted: int = 0
    record: int = RECORD

    def unavailable(self, n_cols: int) -> str | None:
        return whole_groups(n_cols, self.record)


_ROWS = (
    CodebookFormat("iq2_xxs", 8, 32, 16, 0.25, "even", 66),
    CodebookFormat("iq2_xs", 8, 16, 16, 0.25, "even", 74),
    CodebookFormat("iq2_s", 8, 16, 16, 0.25, "free", 82),
    CodebookFormat("iq3_xxs", 4, 32, 16, 0.5, "even", 98),
    CodebookFormat("iq3_s", 4, 32, 16, 2.0, "free", 110),
    CodebookFormat("iq1_s", 8, 32, 8, 2.0, "none", 50, 32),
    CodebookFormat("iq1_m", 8, 16, 8, 2.0, "none", 56, 8),
)
CODEBOOK_FORMATS: dict[str, CodebookFormat] = {row.name: row for row in _ROWS}
