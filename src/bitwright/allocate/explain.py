"""A reason in plain words for every weight that is not stored in the plan's default format (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.measure.sensitivity import Row, Sensitivity, WeightRows


@dataclass(frozen=True)
class _Step:
    """An upgrade that was not bought: one weight to a larger format."""

    weight: str
    format: str
    slope: float  # nats saved per byte
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
    steps = _unbought(sensitivity.weights, options, chosen)
    reasons = []
    for weight, rows, row, pin in zip(sensitivity.weights, options, chosen, pinned, strict=True):
        if pin:
            reasons.append(f"{_name(row)}: pinned by --set")
        elif row.format == default:
            reasons.append("")
        else:
            reasons.append(_reason(weight, rows, row, default, steps))
    return reasons


def _reason(weight: WeightRows, rows: tuple[Row, ...], row: Row, default: str, steps: list[_Step]) -> str:
    base = next((r for r in rows if r.format == default), None)
    if base is None:
        why = dict(weight.unavailable).get(default, "it is not among the options")
        return f"{_name(row)}: {default} cannot store this weight ({why})"
    extra, saved = row.nbytes - base.nbytes, base.damage_nats - row.damage_nats
    if extra < 0:
        return f"{_name(row)}: frees {_size(-extra)}, costs {-saved:.2g} nats; those bytes save more elsewhere"
    text = f"{_name(row)}: costs {_size(extra)}, saves {saved:.2g} nats"
    other = next((step for step in steps if step.weight != weight.name), None)
    if other is None:
        return text
    would = other.slope * extra
    return f"{text}; next best use of these bytes was {other.weight} in {other.format}, at {would:.2g} nats for as many"


def _unbought(weights: tuple[WeightRows, ...], options: tuple[tuple[Row, ...], ...], chosen: tuple[Row, ...]) -> list[_Step]:
    steps = []
    for weight, rows, row in zip(weights, options, chosen, strict=True):
        for other in rows:
            extra, saves = other.nbytes - row.nbytes, row.damage_nats - other.damage_nats
            if extra > 0 and saves > 0:
                steps.append(_Step(weight.name.removesuffix(".weight"), _name(other), saves / extra, extra, saves))
    return sorted(steps, key=lambda step: -step.slope)[:2]


def _name(row: Row) -> str:
    return "16 bit" if row.format == "16bit" else row.format


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:.1f} kB"
