"""bitwright cache"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, wide_console


@guarded
def run(
    clean: Annotated[bool, typer.Option("--clean", help="Remove all of it. What is needed is made or fetched again.")] = False,
    json_: common.Json = False,
) -> None:
    """Show what Bitwright keeps for the next run: unpacked and converted models, what 16-bit models answered."""
    from bitwright.checkpoint.cached import kept_entries, remove_kept
    from bitwright.host.places import cache_dir

    entries = kept_entries(cache_dir())
    total = sum(nbytes for _, nbytes in entries)
    if clean:
        remove_kept(cache_dir())
    if json_:
        listed = [{"name": name, "nbytes": nbytes} for name, nbytes in entries]
        print(json.dumps({"place": str(cache_dir()), "entries": listed, "removed": clean}, indent=1))
        return
    console = wide_console()
    for name, nbytes in entries:
        print_plain(console, f"{nbytes / 1e6:>10,.1f} MB  {name}")
    print_plain(console, f"{total / 1e6:>10,.1f} MB  in {cache_dir()}{', removed' if clean else ''}")
