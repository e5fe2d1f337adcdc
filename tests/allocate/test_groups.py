"""Weights that a runtime fuses are chosen together: exactly, against every combination; pins and reasons follow."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright import BitwrightError
from bitwright.allocate.allocate import allocate
from bitwright.allocate.groups import broken
from bitwright.plan import SIXTEEN, Rounding
from bitwright.sensitivity import Group, Row, Sensitivity, Shares, WeightRows

FORMATS = {"small": 4, "middle": 6, SIXTEEN: 16}  # bytes a unit


def table(seed: int, shares: Shares, n_groups: int = 2, n_alone: int = 2) -> Sensitivity:
    chance = random.Random(seed)
    names = [f"layers.{g}.{part}_proj.weight" for g in range(n_groups) for part in "qkv"]
    groups = tuple(Group(f"layers.{g}.qkv_proj", tuple(names[3 * g : 3 * g + 3]), shares) for g in range(n_groups))
    names += [f"layers.{a}.down_proj.weight" for a in range(n_alone)]
    weights = []
    for name in names:
        size, harm = chance.randint(1, 9), chance.random()
        rows = []
        for format, width in FORMATS.items():
            damage = 0.0 if format == SIXTEEN else harm * chance.uniform(0.5, 1.5) / width
            rounding = Rounding.NONE if format == SIXTEEN else Rounding.CALIBRATED
            rows.append(Row(format, rounding, size * width, damage, 0.0, damage, damage, 0.0, 0.1, 0.1))
        weights.append(WeightRows(name, 0, name.split(".")[-2], size, 1, tuple(rows), "small", 0.01))
    return Sensitivity("x", "bitsandbytes", "stock", 0, tuple(weights), {}, groups=groups, serves=("vLLM",))


def allowed(sensitivity: Sensitivity, formats: dict[str, str]) -> bool:
    for group in sensitivity.groups:
        taken = [formats[name] for name in group.weights]
        if group.shares is Shares.FORMAT and len(set(taken)) > 1:
            return False
        if group.shares is Shares.SIXTEEN_BIT and SIXTEEN in taken and set(taken) != {SIXTEEN}:
            return False
    return True


def between(sensitivity: Sensitivity, share: float) -> str:
    """A budget between the smallest choice and 16 bit."""
    least, most = (sum(f(r.nbytes for r in w.rows) for w in sensitivity.weights) for f in (min, max))
    return f"{int(least + share * (most - least))}B"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(Shares), st.floats(0.3, 0.95))
def test_the_choice_is_the_best_of_all_that_keep_the_groups(seed: int, shares: Shares, share: float) -> None:
    sensitivity = table(seed, shares, n_groups=1)
    budget = int(between(sensitivity, share).removesuffix("B"))
    best = min(
        sum(row.damage_nats for row in rows)
        for rows in itertools.product(*(w.rows for w in sensitivity.weights))
        if sum(row.nbytes for row in rows) <= budget
        and allowed(sensitivity, {w.name: r.format for w, r in zip(sensitivity.weights, rows, strict=True)})
    )
    plan = allocate(sensitivity, f"{budget}B")
    formats = {choice.weight: choice.format for choice in plan.choices}
    assert plan.damage_nats == pytest.approx(best, rel=1e-6)
    assert plan.nbytes <= budget
    assert allowed(sensitivity, formats)
    assert broken(sensitivity, formats) == []
    free = allocate(sensitivity, f"{budget}B", fused_groups=False)
    assert free.damage_nats <= plan.damage_nats + 1e-12
    assert plan.fused_cost_nats == pytest.approx(plan.damage_nats - free.damage_nats, abs=1e-9)
    assert free.fused_cost_nats == 0.0


def test_what_breaks_a_group_is_named() -> None:
    found = 0
    for seed in range(20):
        sensitivity = table(seed, Shares.SIXTEEN_BIT)
        free = allocate(sensitivity, between(sensitivity, 0.6), fused_groups=False)
        formats = {choice.weight: choice.format for choice in free.choices}
        names = tuple(g.name for g in sensitivity.groups if not allowed_group(g, formats))
        assert free.broken_groups == names
        found += len(names)
    assert found, "some free choice mixes"


def allowed_group(group: Group, formats: dict[str, str]) -> bool:
    taken = {formats[name] for name in group.weights}
    return SIXTEEN not in taken or taken == {SIXTEEN}


@pytest.mark.parametrize("shares", Shares)
def test_pins_that_a_group_cannot_keep_are_refused_and_pins_of_one_are_followed(shares: Shares) -> None:
    sensitivity = table(1, shares)
    with pytest.raises(BitwrightError, match="allocate/group") as caught:
        allocate(sensitivity, between(sensitivity, 0.6), pins=("layers.0.q_proj=16bit", "layers.0.k_proj=small"))
    assert "--no-fused-groups" in caught.value.finding.help
    plan = allocate(sensitivity, between(sensitivity, 0.6), pins=("layers.0.q_proj=16bit",))
    formats = {choice.weight: choice.format for choice in plan.choices}
    assert {formats[name] for name in sensitivity.groups[0].weights} == {SIXTEEN}
    apart = ("layers.0.q_proj=16bit", "layers.0.k_proj=small")
    mixed = allocate(sensitivity, between(sensitivity, 0.6), pins=apart, fused_groups=False)
    assert "layers.0.qkv_proj" in mixed.broken_groups


def test_a_group_in_16_bit_has_one_reason() -> None:
    sensitivity = table(1, Shares.SIXTEEN_BIT)
    plan = allocate(sensitivity, between(sensitivity, 0.6), pins=("layers.0.q_proj=16bit",))
    reasons = {choice.weight: choice.reason for choice in plan.choices}
    assert reasons["layers.0.q_proj.weight"] == "16 bit: pinned by --set"
    assert reasons["layers.0.k_proj.weight"] == reasons["layers.0.v_proj.weight"]
    assert reasons["layers.0.k_proj.weight"].startswith("16 bit with the rest of qkv_proj")


def test_the_table_keeps_its_groups_on_disk(tmp_path: Path) -> None:
    sensitivity = table(3, Shares.FORMAT)
    path = tmp_path / "sensitivity.json"
    path.write_text(sensitivity.to_json())
    assert Sensitivity.load(path) == sensitivity
