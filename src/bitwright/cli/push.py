"""bitwright push OUT USER/NAME"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, wide_console


@guarded
def run(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What bitwright quantize wrote: a directory or a .gguf file.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Where to: USER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository for yourself alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    json_: common.Json = False,
) -> None:
    """Upload OUT with its card and report to the model hub, in one commit."""
    from rich.markup import escape
    from rich.table import Table

    from bitwright.errors import printable
    from bitwright.push.push import push

    files, address = push(out, repo, private=private, dry_run=dry_run)
    if json_:
        listed = [{"name": file.name, "nbytes": file.nbytes} for file in files]
        print(json.dumps({"address": address, "sent": not dry_run, "files": listed}, indent=1))
        return
    view = Table(box=None, header_style="bold", pad_edge=False)
    view.add_column("file")
    view.add_column("MB", justify="right")
    for file in files:
        view.add_row(escape(printable(file.name)), f"{file.nbytes / 1e6:.2f}")
    console = wide_console()
    console.print(view)
    total = sum(file.nbytes for file in files) / 1e6
    console.print(
        f"\n{'would go' if dry_run else 'went'} to {address}: {total:.1f} MB", highlight=False, markup=False, soft_wrap=True
    )
