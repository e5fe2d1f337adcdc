"""The few largest damages under a ceiling that was seen (no torch).

The Fisher estimate is quadratic in the change, and KL divergence is not: what is wrong already gets no more wrong without end.
What was seen for one format d of a weight, m < d, gives the weight a ceiling c with m = d / (1 + d / c), and all its formats
are corrected by the same curve, which leaves small damages alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bitwright.plan import SIXTEEN, Rounding
from bitwright.sensitivity import Row, Sensitivity, WeightRows

LARGE = 0.02  # nats: estimates below are taken as they are
MOST = 8  # weights that are looked at, those of the largest estimates
SAMPLES = 16  # on which they are


@dataclass(frozen=True)
class Alone:
    """One weight in one format, the others in 16 bit: what was estimated and what was seen, in nats per token."""

    weight: str
    format: str
    rounding: Rounding
    estimated: float
    nats: float

    @property
    def ceiling(self) -> float | None:
        """What the weight cannot cost more than; None where no less was seen than estimated.

        >>> Alone("w", "q2_k", Rounding.CALIBRATED, estimated=0.9, nats=0.09).ceiling
        0.1
        """
        if self.nats >= self.estimated:
            return None
        return round(self.nats * self.estimated / (self.estimated - self.nats), 12)


def largest(table: Sensitivity) -> list[tuple[WeightRows, Row]]:
    """The costliest format of each weight, of the MOST weights where it costs LARGE and more."""
    rows = [(weight, max(weight.rows, key=lambda row: row.damage_nats)) for weight in table.weights]
    large = [(weight, row) for weight, row in rows if row.format != SIXTEEN and row.damage_nats >= LARGE]
    return sorted(large, key=lambda pair: -pair[1].damage_nats)[:MOST]


def bounded(table: Sensitivity, seen: Sequence[Alone]) -> Sensitivity:
    """``table`` with the damages of those weights under their ceilings."""
    ceilings = {one.weight: one.ceiling for one in seen if one.ceiling is not None}
    weights = tuple(_under(weight, ceilings.get(weight.name)) for weight in table.weights)
    return replace(table, weights=weights)


def alone_notes(seen: Sequence[Alone]) -> tuple[str, ...]:
    """What a person should know of it."""
    high = [one for one in seen if one.ceiling is not None]
    if not high:
        return ()
    worst = max(high, key=lambda one: one.estimated / one.nats if one.nats else math.inf)
    return (
        f"{len(seen)} large damages were measured directly; the estimate was too high for {len(high)}, most for "
        f"{worst.weight} in {worst.format}: {worst.estimated:.2g} nats estimated, {worst.nats:.2g} seen",
    )


def _under(weight: WeightRows, ceiling: float | None) -> WeightRows:
    if ceiling is None:
        return weight
    return replace(weight, ceiling_nats=ceiling, rows=tuple(_row_under(row, ceiling) for row in weight.rows))


def _row_under(row: Row, ceiling: float) -> Row:
    share = ceiling / (ceiling + row.damage_nats) if ceiling else float(not row.damage_nats)
    return replace(
        row,
        damage_nats=row.damage_nats * share,
        damage_stderr=row.damage_stderr * share,
        check_nats=row.check_nats * share,
        check_stderr=row.check_stderr * share,
        check_by_kind=tuple(nats * share for nats in row.check_by_kind),
    )
