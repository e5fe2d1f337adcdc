"""Weights that are NaN or infinite.

One such entry makes every output of its layer NaN. It comes from training that diverged, from a cast of bfloat16 to
float16, or from a damaged download.

Source: IEEE 754; bitwright refuses such weights as a source, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics
from bitwright.errors import Finding


def check(model: Model, statistics: list[Statistics]) -> Iterator[Finding]:
    for found in statistics:
        if found.n_not_finite:
            yield Finding(
                "weights/not-finite",
                found.ref.name,
                f"{found.n_not_finite} of {found.n_entries} entries, the first at flat index {found.first_not_finite}",
                "every weight is a finite number",
                "download the checkpoint again, or ask its author",
            )
