"""bitwright doctor MODEL"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded


@guarded
def run(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model directory, a .gguf file, demo, or a hub id (of which texts and headers are fetched)."
        ),
    ] = "",
    weights: Annotated[bool, typer.Option("--weights", help="Read every weight once, too.")] = False,
    fix: Annotated[str, typer.Option(help="Write a corrected copy here: what can be put right without a guess.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Print what every check looks for, and why.")] = False,
    json_: common.Json = False,
) -> None:
    """Look for silent mistakes in MODEL's configuration, tokenizer and headers. Exit code 0, 1 (warnings) or 2 (errors)."""
    from bitwright.diagnose import doctor, place_of
    from bitwright.doctor.doctor import examine, exit_code, rules

    if not model and not explain:
        print(context.get_help())
        raise typer.Exit(2)
    if explain:
        print("\n\n".join(f"{name}\n{text}" for name, text in rules().items()))
        return
    from bitwright.host.progress import Reporter

    if not fix:
        findings = doctor(model, weights, Reporter(quiet=json_))
    else:
        from bitwright.doctor.fix import fixed_copy

        place = Path(fix).expanduser()
        changes = fixed_copy(place_of(model), place)
        for name, value in changes.items():
            print(f"{fix}/{name}: {'left out' if value is None else 'corrected'}", file=sys.stderr)
        findings = examine(place, weights, Reporter(quiet=json_))
    if json_:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
    else:
        for finding in findings:
            print(finding)
        counts = [f"{sum(f.severity == kind for f in findings)} {kind}s" for kind in ("error", "warning", "note")]
        print(f"{len(rules())} checks: {', '.join(counts)}")
    raise typer.Exit(exit_code(findings))
