"""Tensors of numbers too small for their format.

Below the least normal number a format loses a digit with every factor of two, and processors compute much slower with
such numbers. Many of them in one tensor come from weight decay on something that is not used, or from a cast of
float32 to float16.

Source: IEEE 754; least normal numbers 2^-14 (float16) and 2^-126 (bfloat16, float32).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics
from bitwright.errors import Finding, Severity

MANY = 0.05  # of a tensor's entries; normal training in float16 leaves well below a hundredth


def check(model: Model, statistics: list[Statistics]) -> Iterator[Finding]:
    for found in statistics:
        share = found.n_subnormal / found.n_entries
        if share > MANY:
            yield Finding(
                "weights/subnormal",
                found.ref.name,
                f"{100 * share:.0f} % of its entries are subnormal",
                "normal numbers",
                "start from the float32 or bfloat16 checkpoint",
                Severity.WARNING,
            )
