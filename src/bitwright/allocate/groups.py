"""Weights that are chosen together, since a runtime multiplies them as one matrix (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from bitwright.allocate.knapsack import Option, efficient
from bitwright.errors import fail
from bitwright.plan import SIXTEEN
from bitwright.sensitivity import Group, Row, Sensitivity, Shares

WIDEST = 64  # combinations of a group that are kept, those on its own frontier


@dataclass(frozen=True)
class Unit:
    """Weights that are chosen together, by number, and every combination of rows that they may take."""

    weights: tuple[int, ...]
    combinations: tuple[tuple[Row, ...], ...]
    name: str = ""  # of the fused module; empty for a weight on its own


@dataclass(frozen=True)
class Problem:
    """The rows that each weight may take, after pins, and which weights are chosen together."""

    rows: tuple[tuple[Row, ...], ...]
    pinned: tuple[bool, ...]
    joined: tuple[Unit, ...] = ()

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Every weight once: groups first, then the others alone."""
        taken = {i for unit in self.joined for i in unit.weights}
        alone = (Unit((i,), tuple((row,) for row in rows)) for i, rows in enumerate(self.rows) if i not in taken)
        return (*self.joined, *alone)

    @cached_property
    def options(self) -> list[list[Option]]:
        """The knapsack: one list a unit."""
        return [
            [Option(sum(row.nbytes for row in rows), sum(row.damage_nats for row in rows)) for rows in unit.combinations]
            for unit in self.units
        ]

    def chosen(self, choice: Sequence[int]) -> tuple[Row, ...]:
        """The row of every weight, from the chosen option of every unit."""
        found: dict[int, Row] = {}
        for unit, option in zip(self.units, choice, strict=True):
            found |= dict(zip(unit.weights, unit.combinations[option], strict=True))
        return tuple(found[i] for i in range(len(self.rows)))

    def fused(self, sensitivity: Sensitivity) -> Problem:
        """The same with the groups of ``sensitivity``; raises BitwrightError for pins that break one."""
        number = {weight.name: i for i, weight in enumerate(sensitivity.weights)}
        joined = []
        for group in sensitivity.groups:
            members = tuple(number[name] for name in group.weights)
            combinations = _combinations([self.rows[i] for i in members], group.shares)
            if not combinations:
                raise fail(
                    "allocate/group",
                    group.name,
                    saw=f"--set asks for formats of its {len(members)} weights that it cannot mix",
                    wanted=f"{_rule(group.shares)}, since {' and '.join(sensitivity.serves)} multiplies them as one matrix",
                    help="pin them alike, or let go of such runtimes: --no-fused-groups",
                )
            joined.append(Unit(members, tuple(combinations), group.name))
        return replace(self, joined=tuple(joined))


def broken(sensitivity: Sensitivity, formats: Mapping[str, str]) -> list[Group]:
    """The groups whose rule a choice of ``formats`` by weight does not keep."""
    found = []
    for group in sensitivity.groups:
        taken = {formats[name] for name in group.weights}
        mixed = len(taken) > 1 if group.shares is Shares.FORMAT else len(taken) > 1 and SIXTEEN in taken
        if mixed:
            found.append(group)
    return found


def _rule(shares: Shares) -> str:
    return "one format for all of them" if shares is Shares.FORMAT else "all of them in 16 bit, or none"


def _combinations(rows: Sequence[tuple[Row, ...]], shares: Shares) -> list[tuple[Row, ...]]:
    """What the members of a group may take together."""
    if shares is Shares.FORMAT:
        common = [row.format for row in rows[0] if all(any(r.format == row.format for r in others) for others in rows)]
        return [tuple(next(r for r in others if r.format == format) for others in rows) for format in common]
    wide = [tuple(row for row in others if row.format == SIXTEEN) for others in rows]
    packed = [tuple(row for row in others if row.format != SIXTEEN) for others in rows]
    return [*product(*wide), *_efficient(packed)]


def _efficient(rows: Sequence[tuple[Row, ...]]) -> list[tuple[Row, ...]]:
    """Combinations of one row of each that no other beats in bytes and damage, found member by member.

    A combination that another beats stays beaten whatever is added to both, so nothing is lost on the way but what WIDEST cuts.
    """
    kept: list[tuple[Row, ...]] = [()]
    for others in rows:
        grown = [(*before, row) for before in kept for row in others]
        options = [Option(sum(r.nbytes for r in c), sum(r.damage_nats for r in c)) for c in grown]
        best = efficient(options)
        step = max(1.0, len(best) / WIDEST)
        kept = [grown[best[int(i * step)]] for i in range(int(len(best) / step))]
    return kept
