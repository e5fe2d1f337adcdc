"""What a result is measured against: stock, arithmetic noise, the best uniform choice, and ablations of our own method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitwright.allocate.allocate import allocate, least_nbytes, stock, stock_but, stock_or_16bit, uniform
from bitwright.formats.base import SIXTEEN_BIT
from bitwright.plan import NOISE_FLOOR, Plan, Rounding
from bitwright.sensitivity import Sensitivity, WeightRows

SAME_BYTES = "calibrated, stock bytes"
SKIPS_ONLY = "skips, stock rounding"
VISION_WIDE = "vision in 16 bit, stock text"  # what every other quantizer does with a tower
VISION_MLPS = "vision MLPs in 16 bit, stock"  # the kind of list that is published for models that see
VISION, MLP = "vision", (".mlp.", ".feed_forward.")  # groups of towers, and what is in the names of their feed-forward weights


@dataclass(frozen=True)
class Rival:
    """A way to store the model, written by us unless the runtime makes it from the source itself."""

    label: str
    plan: Plan
    gated: bool = False  # whether the result gives way to it where it measures better
    from_source: bool = False  # the runtime loads the source, ...
    quantization: dict[str, Any] | None = None  # ... and quantizes it so


OnLoad = Callable[[Plan], dict[str, Any] | None]


def rivals(table: Sensitivity, plan: Plan, on_load: OnLoad, ablations: bool, fused_groups: bool) -> list[Rival]:
    """The rivals of ``plan``. ``on_load``: the configuration with which a runtime makes a plan itself, or None.

    ``ablations``: also our rounding and choice at the bytes of stock, and the best skip list under stock rounding. None that
    stores a pinned weight otherwise takes the place of the result.
    """
    plain = stock(table)
    by_runtime = on_load(plain)
    sixteen = uniform(table, SIXTEEN_BIT.name, Rounding.NONE)
    pinned = {choice.weight: choice.format for choice in plan.choices if choice.pinned}

    def keeps_pins(other: Plan) -> bool:
        return all(pinned.get(choice.weight, choice.format) == choice.format for choice in other.choices)

    found = [
        Rival(table.stock, plain, gated=keeps_pins(plain), from_source=by_runtime is not None, quantization=by_runtime),
        Rival(NOISE_FLOOR, sixteen, from_source=by_runtime is not None),
    ]
    formats = {row.format for w in table.weights for row in w.rows if row.rounding == Rounding.CALIBRATED}
    choices = [uniform(table, name, Rounding.CALIBRATED) for name in sorted(formats)]
    choices = [choice for choice in choices if choice.nbytes <= plan.nbytes]
    if choices:
        best = min(choices, key=lambda choice: choice.damage_nats)
        found.append(Rival(f"uniform {best.default_format}", best, gated=keeps_pins(best)))
    if ablations and plan.nbytes > plain.nbytes >= least_nbytes(table, fused_groups=fused_groups):
        same = allocate(table, f"{plain.nbytes}B", frontier=False, fused_groups=fused_groups)
        found.append(Rival(SAME_BYTES, same))
    of_skips = least_nbytes(table, stock_or_16bit, fused_groups)
    if ablations and by_runtime is not None and plan.nbytes >= max(plain.nbytes, of_skips):
        skips = allocate(table, f"{plan.nbytes}B", allowed=stock_or_16bit, frontier=False, fused_groups=fused_groups)
        found.append(Rival(SKIPS_ONLY, skips, from_source=True, quantization=on_load(skips)))
    if ablations and by_runtime is not None:
        lists = hand_made_lists(table)
        found += [Rival(name, chosen, from_source=True, quantization=on_load(chosen)) for name, chosen in lists.items()]
    return found


def hand_made_lists(table: Sensitivity) -> dict[str, Plan]:
    """What people keep in 16 bit of a model that sees, under stock rounding; nothing for one that does not."""

    def of_vision(weight: WeightRows) -> bool:
        return weight.group.startswith(VISION)

    def mlp_of_vision(weight: WeightRows) -> bool:
        return of_vision(weight) and any(part in weight.name for part in MLP)

    if not any(of_vision(weight) for weight in table.weights):
        return {}
    lists = {VISION_WIDE: of_vision, VISION_MLPS: mlp_of_vision}
    return {name: stock_but(table, name, wide) for name, wide in lists.items()}
