"""A reason in plain words for every weight that is not stored in the plan's default format (no torch)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from bitwright.measure.sensitivity import Row, Sensitivity, WeightRows


@dataclass(frozen=True)
class _Step:
    """An upgrade that was not bought: one weight to a larger format."""

    weight: str
    format: str
    nbytes: int
    saves: float


def explain(
    sensitivity: Sensitivity,
    options: tuple[tuple[Row, ...], ...],
    chosen: tuple[Row, ...],
    pinned: tuple[bool, ...],
    default: str,
) -> list[str]:
    """One sentence per weight, empty for those in ``default`` that no pin put there."""
    steps = _Steps(sensitivity.weights, options, chosen)
    reasons = []
    for weight, rows, row, pin in zip(sensitivity.weights, options, chosen, pinned, strict=True):
        if pin:
            reasons.append(f"{_name(row)}: pinned by --set")
        elif row.format == default:
            reasons.append("")
        else:
            reasons.append(_reason(weight, rows, row, default, steps))
    return reasons


def _reason(weight: WeightRows, rows: tuple[Row, ...], row: Row, default: str, steps: _Steps) -> str:
    base = next((r for r in rows if r.format == default), None)
    if base is None:
        why = dict(weight.unavailable).get(default, "it is not among the options")
        return f"{_name(row)}: {default} cannot store this weight ({why})"
    extra, saved = row.nbytes - base.nbytes, base.damage_nats - row.damage_nats
    if extra < 0:
        return f"{_name(row)}: frees {_size(-extra)}, costs {-saved:.2g} nats; those bytes save more elsewhere"
    text = f"{_name(row)}: costs {_size(extra)}, saves {saved:.2g} nats"
    other = steps.best_within(extra, weight.name.removesuffix(".weight"))
    if other is None:
        return text
    return f"{text}; next best use of these bytes was {other.weight} in {other.format}, which saves {other.saves:.2g} nats"


class _Steps:
    """All single changes that were not bought, by size."""

    def __init__(self, weights: tuple[WeightRows, ...], options: tuple[tuple[Row, ...], ...], chosen: tuple[Row, ...]) -> None:
        steps = []
        for weight, rows, row in zip(weights, options, chosen, strict=True):
            for other in rows:
                extra, saves = other.nbytes - row.nbytes, row.damage_nats - other.damage_nats
                if extra > 0 and saves > 0:
                    steps.append(_Step(weight.name.removesuffix(".weight"), _name(other), extra, saves))
        steps.sort(key=lambda step: step.nbytes)
        self._sizes = [step.nbytes for step in steps]
        self._best: list[tuple[_Step, ...]] = []  # of all steps up to here the two that save most, of different weights
        best: tuple[_Step, ...] = ()
        for step in steps:
            ranked = sorted((*best, step), key=lambda s: -s.saves)
            best = (ranked[0], *[s for s in ranked[1:] if s.weight != ranked[0].weight][:1])
            self._best.append(best)

    def best_within(self, nbytes: int, weight: str) -> _Step | None:
        """The change of another weight than ``weight`` that saves most and takes no more than ``nbytes``."""
        at = bisect_right(self._sizes, nbytes)
        return next((step for step in self._best[at - 1] if step.weight != weight), None) if at else None


def _name(row: Row) -> str:
    return "16 bit" if row.format == "16bit" else row.format


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:.1f} kB"
