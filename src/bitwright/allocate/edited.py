"""A plan that a person made or edited: checked against the measurement, its bytes and damages counted again (no torch)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bitwright.allocate.allocate import calibrated, given
from bitwright.allocate.groups import broken
from bitwright.checkpoint.output import write_text
from bitwright.errors import fail
from bitwright.host.texts import read_object
from bitwright.plan import DIGEST, Plan, digest
from bitwright.sensitivity import Row, Sensitivity, WeightRows


def edited(sensitivity: Sensitivity, plan: Plan, where: Path, fused_groups: bool = True) -> Plan:
    """``plan``, read from ``where``, with the rows of ``sensitivity``: only its weights and formats count.

    Raises BitwrightError for a plan of another container, for weights and formats that the measurement does not have, and, with
    ``fused_groups``, where weights that a runtime fuses do not share what it asks of them.
    """
    if plan.container != sensitivity.container:
        raise fail(
            "plan/container",
            where,
            saw=f"a plan for {plan.container}",
            wanted=f"a plan for {sensitivity.container}",
            help=f"--container {plan.container}",
        )
    formats = {choice.weight: choice.format for choice in plan.choices}
    odd = sorted(set(formats) ^ {weight.name for weight in sensitivity.weights})
    if odd or len(formats) != len(plan.choices):
        raise fail(
            "plan/weights",
            where,
            saw=f"{odd[0]} is in the plan or in the model, but not in both" if odd else "a weight is there twice",
            wanted="a choice for every weight of this model, each once",
            help="edit formats alone, in the plan that bitwright quantize --workdir DIR left in DIR",
        )
    if fused_groups and (groups := broken(sensitivity, formats)):
        raise fail(
            "plan/group",
            f"{where}: {groups[0].name}",
            saw=", ".join(
                f"{name.removesuffix('.weight').rsplit('.', 1)[-1]} in {formats[name]}" for name in groups[0].weights
            ),
            wanted=f"formats that {' and '.join(sensitivity.serves)} can multiply as one matrix ({groups[0].shares})",
            help="give these weights what they must share, or let go of such runtimes: --no-fused-groups",
        )
    rows = [_row(weight, formats[weight.name], where) for weight in sensitivity.weights]
    counted = given(sensitivity, rows, f"as in {where.name}", fused_groups)
    return replace(counted, frontier=plan.frontier)


def _row(weight: WeightRows, format: str, where: Path) -> Row:
    found = next((row for row in weight.rows if row.format == format and calibrated(row)), None)
    if found is None:
        known = ", ".join(row.format for row in weight.rows if calibrated(row))
        raise fail(
            "plan/format",
            f"{where}: {weight.name}",
            saw=f"format {format!r}: {dict(weight.unavailable).get(format, 'not measured for this weight')}",
            wanted=f"one of {known}",
            help="edit the plan; other formats are measured with --formats",
        )
    return found


def require_unedited(path: Path) -> None:
    """Raise BitwrightError where ``path`` is a plan that somebody has edited since we wrote it."""
    if path.exists() and not _as_written(path):
        raise fail(
            "plan/edited",
            path,
            saw="it was edited since it was written, and this run would write another",
            wanted="an edited plan is used or put away, and never lost",
            help=f"bitwright quantize SOURCE OUT --plan {path}, or rename it",
        )


def keep_plan(path: Path, plan: Plan) -> None:
    """Write ``plan``; raises BitwrightError where somebody has edited the one that is there."""
    require_unedited(path)
    write_text(path, plan.to_json())


def _as_written(path: Path) -> bool:
    try:
        data = read_object(path)
        return bool(data.pop(DIGEST, "") == digest(data))
    except (OSError, ValueError):
        return False
