"""Budgets, pins, reasons, and an answer without torch."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bitwright.allocate.allocate import allocate, stock_or_16bit, uniform
from bitwright.allocate.budget import budget_nbytes
from bitwright.errors import BitwrightError
from bitwright.plan import OF_PICTURES, Plan, Rounding
from bitwright.sensitivity import Row, Sensitivity, WeightRows

SHAPE = (64, 128)


def weight_rows(i: int, damage: float) -> WeightRows:
    count = SHAPE[0] * SHAPE[1]

    def row(format: str, rounding: Rounding, bits: float, factor: float) -> Row:
        d = damage * factor
        return Row(format, rounding, int(count * bits / 8), d, d / 5, d, d * 1.1, d / 4, 0.1, 0.1)

    rows = (
        row("nf4-b64", Rounding.NEAREST, 4.5, 3.0),
        row("nf4-b64-dq", Rounding.CALIBRATED, 4.125, 1.2),
        row("nf4-b32-dq", Rounding.CALIBRATED, 4.25, 1.0),
        row("16bit", Rounding.NONE, 16, 0.0),
    )
    role = "down_proj" if i % 2 else "up_proj"
    return WeightRows(f"model.layers.{i // 2}.mlp.{role}.weight", i // 2, role, *SHAPE, rows, "nf4-b64", 0.01)


@pytest.fixture
def table() -> Sensitivity:
    weights = tuple(weight_rows(i, 0.001 * 1.3**i) for i in range(20))
    return Sensitivity("somewhere", "bitsandbytes", "stock NF4", 10_000, weights, {"seed": 0})


def test_budgets_as_people_write_them(table: Sensitivity) -> None:
    stock = table.stock_nbytes()
    assert budget_nbytes("+10%", table) == int(stock * 1.1)
    assert budget_nbytes("-2.5 %", table) == int(stock * 0.975)
    assert budget_nbytes("0.5GB", table) == 500_000_000
    assert budget_nbytes("500MiB", table) == 500 * 2**20
    assert budget_nbytes("4.6bpw", table) == table.kept_nbytes + int(4.6 * table.n_parameters / 8)
    for wrong in ("", "10", "+10", "ten%", "5 parsecs", "-3GB", "1e3MB"):
        with pytest.raises(BitwrightError, match="budget/syntax"):
            budget_nbytes(wrong, table)


def test_the_plan_spends_where_it_matters(table: Sensitivity) -> None:
    plan = allocate(table, "+20%")
    assert plan.nbytes <= plan.budget_nbytes == int(table.stock_nbytes() * 1.2)
    assert plan.nbytes == table.kept_nbytes + sum(c.nbytes for c in plan.choices)
    assert plan.choices[-1].format == "16bit"
    assert plan.choices[0].format != "16bit"
    assert plan.gap < 1e-3
    assert plan.price_nats_per_mb > 0
    assert plan.damage_nats == pytest.approx(sum(c.damage_nats for c in plan.choices))
    damages = [point.damage_nats for point in plan.frontier]
    assert damages == sorted(damages, reverse=True)
    assert damages[-1] == pytest.approx(0, abs=1e-9)
    for point in plan.frontier[1:-1:5]:
        assert allocate(table, f"{point.nbytes}B", frontier=False).damage_nats == pytest.approx(point.damage_nats)


def test_other_texts_are_expected_around_the_kinds_that_were_read(table: Sensitivity) -> None:
    plan = replace(allocate(table, "+10%"), check_nats=0.02, check_by_kind=())
    assert plan.elsewhere == pytest.approx((0.015, 0.035))
    kinds = (("text that the model wrote itself", 0.05), ("documentation", 0.03), (OF_PICTURES, 0.001))
    assert replace(plan, check_by_kind=kinds).elsewhere == pytest.approx((0.0225, 0.0875))


def test_every_exception_has_a_reason_in_words(table: Sensitivity) -> None:
    plan = allocate(table, "+20%")
    for choice in plan.choices:
        assert bool(choice.reason) == (choice.format != plan.default_format)
    reason = plan.choices[-1].reason
    assert "16 bit: costs" in reason
    assert "saves" in reason
    assert "next best use of these bytes was model.layers." in reason


@pytest.mark.parametrize("budget", ["+5%", "+10%", "+20%", "+60%"])
def test_the_next_best_use_is_never_better_than_the_choice(table: Sensitivity, budget: str) -> None:
    """What is named fits into the same bytes: if it saved more, the choice would not be the best one."""
    pairs = [
        re.search(r"saves ([\d.e-]+) nats; next best .* saves ([\d.e-]+) nats", choice.reason)
        for choice in allocate(table, budget, frontier=False).choices
        if "next best" in choice.reason
    ]
    assert pairs
    assert all(pair and float(pair[2]) <= float(pair[1]) * 1.05 for pair in pairs)


def test_max_damage_buys_the_fewest_bytes(table: Sensitivity) -> None:
    plan = allocate(table, max_damage=0.1)
    assert plan.damage_nats <= 0.1
    tighter = allocate(table, f"{plan.nbytes - 200}B")
    assert tighter.damage_nats > 0.1
    for wrong in (0.0, -1.0):
        with pytest.raises(BitwrightError, match="budget/damage"):
            allocate(table, max_damage=wrong)


def test_pins_are_kept_and_bad_ones_refused(table: Sensitivity) -> None:
    plan = allocate(table, "+40%", pins=("*.0.mlp.*=16bit", "*.9.mlp.down_proj=nf4-b64-dq"))
    assert [c.format for c in plan.choices[:2]] == ["16bit", "16bit"]
    assert plan.choices[-1].format == "nf4-b64-dq"
    assert plan.choices[0].pinned
    assert "pinned" in plan.choices[0].reason
    for wrong in ("*.nowhere=16bit", "*=int3", "no equals sign", "*=nf4-b64"):
        with pytest.raises(BitwrightError, match="allocate/pin"):
            allocate(table, pins=(wrong,))


@pytest.mark.parametrize("nats", [float("nan"), float("inf"), 0.0, -1.0, 1e300])
def test_a_damage_is_a_number(table: Sensitivity, nats: float) -> None:
    with pytest.raises(BitwrightError, match="budget/damage"):
        allocate(table, max_damage=nats)


def test_two_answers_to_one_question_are_refused(table: Sensitivity) -> None:
    with pytest.raises(BitwrightError, match="budget/two"):
        allocate(table, "500MB", max_damage=0.1)
    name = table.weights[0].name.removesuffix(".weight")
    with pytest.raises(BitwrightError, match="allocate/pin") as caught:
        allocate(table, pins=("*=16bit", f"{name}=nf4-b64-dq"))
    assert "16bit already" in caught.value.finding.saw
    assert allocate(table, "100%", pins=(f"{name}=16bit", f"{name}=16bit")).choice(table.weights[0].name).pinned
    for budget in ("9" * 400 + "MB", "+" + "9" * 400 + "%", "9" * 400 + "bpw"):
        with pytest.raises(BitwrightError, match="budget/syntax"):
            allocate(table, budget)


def test_impossible_budgets_name_the_limit(table: Sensitivity) -> None:
    least = table.kept_nbytes + sum(min(r.nbytes for r in w.rows if r.rounding != Rounding.NEAREST) for w in table.weights)
    with pytest.raises(BitwrightError, match="budget/minimum") as caught:
        allocate(table, "-30%")
    assert f"{least / 1e6:.2f} MB" in caught.value.finding.wanted
    with pytest.raises(BitwrightError, match="budget/maximum"):
        allocate(table, "1GB")


def test_skip_lists_and_uniform_choices(table: Sensitivity) -> None:
    skips = allocate(table, "+20%", allowed=stock_or_16bit)
    assert {(c.format, c.rounding) for c in skips.choices} == {("nf4-b64", Rounding.NEAREST), ("16bit", Rounding.NONE)}
    same = uniform(table, "nf4-b32-dq", Rounding.CALIBRATED)
    assert {c.format for c in same.choices} == {"nf4-b32-dq"}
    assert allocate(table, f"{same.nbytes}B").damage_nats <= same.damage_nats


def test_files_survive_a_round_trip_and_garbage_is_refused(table: Sensitivity, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(table.to_json())
    assert Sensitivity.load(tmp_path / "s.json") == table
    plan = allocate(table)
    (tmp_path / "p.json").write_text(plan.to_json())
    assert Plan.load(tmp_path / "p.json") == plan
    for text in (
        "",
        "{}",
        "[]",
        table.to_json().replace("sensitivity/4", "sensitivity/3"),
        plan.to_json().replace("plan/3", "plan/2"),
        '{"schema": "bitwright.plan/3"}',
        '{"schema": "bitwright.sensitivity/4", "weights": [3]}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BitwrightError, match="plan/file"):
            Plan.load(tmp_path / "bad.json")
        with pytest.raises(BitwrightError, match="sensitivity/file"):
            Sensitivity.load(tmp_path / "bad.json")


def test_the_command_answers_without_torch(table: Sensitivity, tmp_path: Path) -> None:
    (tmp_path / "sensitivity.json").write_text(table.to_json())
    code = (
        "import sys; from bitwright.cli.main import app\n"
        "try: app(['allocate', 'sensitivity.json', '--budget', '+10%', '--json'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["budget"] == "+10%"
    assert Plan.load(tmp_path / "plan.json").budget == "+10%"
