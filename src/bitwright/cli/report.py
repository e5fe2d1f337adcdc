"""bitwright report WORKDIR"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.common import guarded


@guarded
def run(
    workdir: Annotated[
        Path, typer.Argument(metavar="WORKDIR", help="The --workdir of a run of quantize that came to its end.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The page to write. Default: report.html in WORKDIR.")] = "",
) -> None:
    """Draw the report page of a finished run again."""
    from bitwright.errors import printable
    from bitwright.pipeline import report

    typer.echo(printable(str(report(workdir, output or None))))
