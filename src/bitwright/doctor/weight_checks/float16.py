"""Weights that float16 cannot hold.

bfloat16 and float32 reach 3e38, float16 65,504. A larger weight becomes infinite when a runtime casts to float16, as
older accelerators and many defaults do.

Source: IEEE 754 binary16.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics
from bitwright.errors import Finding, Severity

LARGEST = 65504.0  # of float16


def check(model: Model, statistics: list[Statistics]) -> Iterator[Finding]:
    for found in statistics:
        if found.ref.dtype != "F16" and found.largest > LARGEST:
            yield Finding(
                "weights/float16",
                found.ref.name,
                f"{found.largest:.3g}",
                f"at most {LARGEST:.0f}, which float16 holds",
                "run this model in bfloat16 or float32",
                Severity.WARNING,
            )
