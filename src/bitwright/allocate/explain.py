"""A reason in plain words for every weight that is not stored in the plan's default format (no torch)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.allocate.groups import Problem, Unit
from bitwright.plan import SIXTEEN
from bitwright.sensitivity import Row, Sensitivity, WeightRows


@dataclass(frozen=True)
class _Step:
    """An upgrade that was not bought: one module to a larger format."""

    module: str
    format: str
    nbytes: int
    saves: float


def explain(sensitivity: Sensitivity, problem: Problem, chosen: Sequence[Row], default: str) -> list[str]:
    """One sentence per weight, empty for those in ``default`` that no pin put there.

    Weights that are chosen together have one reason: what their module costs and saves.
    """
    steps = _Steps(sensitivity.weights, problem, chosen)
    reasons = [""] * len(chosen)
    for unit in problem.units:
        taken = [chosen[i] for i in unit.weights]
        for i, row in zip(unit.weights, taken, strict=True):
            if problem.pinned[i]:
                reasons[i] = f"{_name(row)}: pinned by --set"
            elif row.format != default:
                alike = {r.format for r in taken}
                whole = unit.name and len(alike) == 1
                reasons[i] = (
                    _reason_of_group(unit, problem, taken, default, steps)
                    if whole
                    else _reason(sensitivity.weights[i], problem.rows[i], row, default, steps)
                )
    return reasons


def _reason_of_group(unit: Unit, problem: Problem, taken: Sequence[Row], default: str, steps: _Steps) -> str:
    base = [next((r for r in problem.rows[i] if r.format == default), None) for i in unit.weights]
    own = f"{_name(taken[0])} with the rest of {unit.name.rsplit('.', 1)[-1]}"
    known = [row for row in base if row is not None]
    if len(known) < len(base):
        return f"{own}: {default} cannot store all of them"
    extra = sum(row.nbytes for row in taken) - sum(row.nbytes for row in known)
    saved = sum(row.damage_nats for row in known) - sum(row.damage_nats for row in taken)
    return _told(own, extra, saved, steps, unit.name)


def _reason(weight: WeightRows, rows: tuple[Row, ...], row: Row, default: str, steps: _Steps) -> str:
    base = next((r for r in rows if r.format == default), None)
    if base is None:
        why = dict(weight.unavailable).get(default, "it is not among the options")
        return f"{_name(row)}: {default} cannot store this weight ({why})"
    module = weight.name.removesuffix(".weight")
    told = _told(_name(row), row.nbytes - base.nbytes, base.damage_nats - row.damage_nats, steps, module)
    return told if weight.ceiling_nats is None else f"{told} (measured directly)"


def _told(own: str, extra: int, saved: float, steps: _Steps, module: str) -> str:
    """What ``own`` costs and saves against the plan's default format, and what else the bytes could have bought."""
    if extra < 0:
        return f"{own}: frees {_size(-extra)}, costs {-saved:.2g} nats; those bytes save more elsewhere"
    text = f"{own}: costs {_size(extra)}, saves {saved:.2g} nats"
    other = steps.best_within(extra, module)
    if other is None:
        return text
    return f"{text}; next best use of these bytes was {other.module} in {other.format}, which saves {other.saves:.2g} nats"


class _Steps:
    """All single changes that were not bought, by size."""

    def __init__(self, weights: Sequence[WeightRows], problem: Problem, chosen: Sequence[Row]) -> None:
        steps = []
        for unit in problem.units:
            taken = [chosen[i] for i in unit.weights]
            module = unit.name or weights[unit.weights[0]].name.removesuffix(".weight")
            nbytes, damage = sum(row.nbytes for row in taken), sum(row.damage_nats for row in taken)
            for rows in unit.combinations:
                extra = sum(row.nbytes for row in rows) - nbytes
                saves = damage - sum(row.damage_nats for row in rows)
                if extra > 0 and saves > 0:
                    format = " and ".join(dict.fromkeys(_name(row) for row in rows))
                    steps.append(_Step(module, format, extra, saves))
        steps.sort(key=lambda step: step.nbytes)
        self._sizes = [step.nbytes for step in steps]
        self._best: list[tuple[_Step, ...]] = []  # of all steps up to here the two that save most, of different modules
        best: tuple[_Step, ...] = ()
        for step in steps:
            ranked = sorted((*best, step), key=lambda s: -s.saves)
            best = (ranked[0], *[s for s in ranked[1:] if s.module != ranked[0].module][:1])
            self._best.append(best)

    def best_within(self, nbytes: int, module: str) -> _Step | None:
        """The change of another module than ``module`` that saves most and takes no more than ``nbytes``."""
        at = bisect_right(self._sizes, nbytes)
        return next((step for step in self._best[at - 1] if step.module != module), None) if at else None


def _name(row: Row) -> str:
    return "16 bit" if row.format == SIXTEEN else row.format


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:.1f} kB"
