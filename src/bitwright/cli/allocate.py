"""bitwright allocate sensitivity.json"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, wide_console


@guarded
def run(
    sensitivity: Annotated[Path, typer.Argument(metavar="SENSITIVITY", help="The table that bitwright measure wrote.")],
    budget: Annotated[str, typer.Option(help="+10% (over stock), 0.5GB, 500MB, or 4.6bpw.")] = "+10%",
    like: Annotated[str, typer.Option(help="As many bytes as this recipe of the container takes: Q4_K_M.")] = "",
    max_damage: Annotated[float | None, typer.Option(help="Fewest bytes within this many nats per token, instead.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="pattern=format, for example '*.down_proj=16bit'.")] = None,
    fused_groups: common.FusedGroups = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan to write.")] = Path("plan.json"),
    json_: common.Json = False,
) -> None:
    """Choose a format for every weight: the least damage within a budget, exactly."""
    from rich.table import Table

    from bitwright.allocate.allocate import allocate
    from bitwright.allocate.edited import keep_plan, require_unedited
    from bitwright.checkpoint.output import require_text_place
    from bitwright.plan import KNOWN_BY
    from bitwright.sensitivity import Sensitivity

    require_text_place(output, KNOWN_BY)
    require_unedited(output)
    table = Sensitivity.load(sensitivity)
    plan = allocate(
        table, f"like {like}" if like else budget, max_damage=max_damage, pins=tuple(set_ or ()), fused_groups=fused_groups
    )
    keep_plan(output, plan)
    if json_:
        print(json.dumps(plan.to_dict(), indent=1))
        return
    console = wide_console()
    view = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("MB", "vs stock", "predicted nats"):
        view.add_column(title, justify="right")
    stock = table.stock_nbytes()
    for point in plan.frontier:
        view.add_row(f"{point.nbytes / 1e6:.1f}", f"{100 * (point.nbytes / stock - 1):+.1f} %", f"{point.damage_nats:.5f}")
    console.print(view)
    say = partial(print_plain, console)
    for choice in plan.choices:
        if choice.reason:
            say(f"{choice.weight.removesuffix('.weight')}  {choice.reason}")
    assert plan.gap is not None  # of a plan that was solved
    low, high = plan.elsewhere
    say(
        f"\n{output}: {plan.nbytes / 1e6:.2f} MB ({100 * (plan.nbytes / stock - 1):+.1f} % against {table.stock}), "
        f"{plan.bits_per_weight(table.n_parameters):.2f} bits per weight, predicted {plan.check_nats:.4f} nats "
        f"(+- {plan.check_stderr:.4f}; {low:.4f} to {high:.4f} on text of other kinds), "
        f"gap to the optimum {100 * plan.gap:.3f} %, one more MB saves "
        f"{plan.price_nats_per_mb:.2g} nats"
    )
