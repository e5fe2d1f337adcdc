"""Matrices with rows that are all zero, or all of one value.

A linear layer's row of zeros is an output that does nothing: pruned on purpose, padded to a round size, or lost when
a checkpoint was converted. A whole matrix of zeros or of one value was never trained or never loaded.

Source: PyTorch starts linear layers at random (`torch.nn.Linear`), so that equal entries have another origin.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics
from bitwright.errors import Finding, Severity


def check(model: Model, statistics: list[Statistics]) -> Iterator[Finding]:
    tokens = {ref.name for ref in (model.embedding, model.head) if ref is not None}
    for found in statistics:
        if len(found.ref.shape) != 2 or found.ref.name in tokens:
            continue
        rows = found.ref.shape[0]
        dead = found.n_zero_rows + found.n_constant_rows
        if dead == rows:
            yield Finding(
                "weights/constant",
                found.ref.name,
                f"all {rows} rows are zero or of one value",
                "trained weights",
                "compare with the original model",
            )
        elif dead:
            yield Finding(
                "weights/dead-rows",
                found.ref.name,
                f"{dead} of {rows} rows are zero or of one value",
                "rows that work",
                "compare with the original model",
                Severity.WARNING,
            )
