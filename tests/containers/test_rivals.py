"""What a result is measured against: none that breaks a pin takes its place, and none is asked for that nothing can choose."""

from __future__ import annotations

from typing import Any

import pytest

from bitwright.allocate.allocate import allocate, least_nbytes
from bitwright.containers.rivals import SAME_BYTES, SKIPS_ONLY, rivals
from bitwright.plan import SIXTEEN, Plan, Rounding
from bitwright.sensitivity import Group, Row, Sensitivity, Shares, WeightRows

SIZE = 64_000


def row(format: str, rounding: Rounding, nbytes: int, nats: float) -> Row:
    return Row(format, rounding, nbytes, nats, 0.0, nats, nats, 0.0, 0.0, 0.0)


def weight(name: str, size: int, stored: bool = True) -> WeightRows:
    rows = [row(SIXTEEN, Rounding.NONE, 2 * size, 0.0)]
    if stored:
        rows += [
            row("nf4-b64", Rounding.NEAREST, size * 9 // 16, 0.02),
            row("nf4-b32-dq", Rounding.CALIBRATED, size * 17 // 32, 0.01),
            row("nf4-b64-dq", Rounding.CALIBRATED, size * 33 // 64, 0.012),
        ]
    role = name.split(".")[-2]
    return WeightRows(name, 0, role, 64, size // 64, tuple(rows), "nf4-b64" if stored else SIXTEEN, 0.0)


def table(stored: bool) -> Sensitivity:
    """A block whose keys and values no format may be able to store, with queries that a runtime fuses with them."""
    weights = (
        weight("m.0.self_attn.q_proj.weight", 4 * SIZE),
        weight("m.0.self_attn.k_proj.weight", SIZE // 4, stored),
        weight("m.0.self_attn.v_proj.weight", SIZE // 4, stored),
        weight("m.0.mlp.down_proj.weight", 40 * SIZE),
    )
    group = Group("m.0.self_attn.qkv_proj", tuple(w.name for w in weights[:3]), Shares.SIXTEEN_BIT)
    return Sensitivity("x", "bitsandbytes", "stock NF4", 1000, weights, {}, groups=(group,), serves=("vLLM",))


def on_load(_: Plan) -> dict[str, Any]:
    return {}


def test_a_rival_that_breaks_a_pin_does_not_take_the_place_of_the_result() -> None:
    known = table(stored=True)
    for pins, gated in (((), True), (("*.k_proj=16bit",), False), (("*.down_proj=nf4-b32-dq",), True)):
        plan = allocate(known, "+10%", pins=pins, fused_groups=False)
        best = next(rival for rival in rivals(known, plan, on_load, True, True) if rival.label.startswith("uniform"))
        assert best.gated == gated, pins
        stock = rivals(known, plan, on_load, True, True)[0]
        assert stock.gated == (not pins)


@pytest.mark.parametrize("fused_groups", [True, False])
def test_a_rival_is_left_out_that_nothing_can_choose(fused_groups: bool) -> None:
    """A fused group is in 16 bit where one of its weights has to be, and stock does not care."""
    known = table(stored=False)
    plan = allocate(known, f"{known.stock_nbytes() + 4 * SIZE}B", fused_groups=False)
    labels = {rival.label for rival in rivals(known, plan, on_load, True, fused_groups)}
    possible = least_nbytes(known, fused_groups=fused_groups) <= known.stock_nbytes()
    assert possible == (not fused_groups)
    assert (SAME_BYTES in labels) == possible
    assert (SKIPS_ONLY in labels) == (not fused_groups)
