"""bitwright merge ADAPTER SOURCE DATA OUT"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, settings_of, wide_console
from bitwright.settings import Effort


@guarded
def run(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="What bitwright finetune wrote.")],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The 16-bit model that it was trained for: a directory, a hub id, demo.")
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="The file that it was trained on: it calibrates the rounding.")],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The checkpoint to create: a directory, or NAME.gguf for llama.cpp and Ollama."),
    ],
    container: Annotated[
        str, typer.Option(help="bitsandbytes, compressed-tensors or gguf; by the name of OUT where it is left out.")
    ] = "",
    budget: Annotated[
        str, typer.Option(help="+10% (over stock), 0.5GB, 500MB, or 4.6bpw. Default: the formats of --plan, or +10%.")
    ] = "",
    plan: Annotated[
        str,
        typer.Option(
            help="A checkpoint of ours or a plan.json whose formats are kept. Default: what ADAPTER was trained beside, where "
            "that is of the same container."
        ),
    ] = "",
    whole: Annotated[
        str, typer.Option(help="Keep the merged 16-bit model there: repair, more training and other containers need it.")
    ] = "",
    effort: common.EffortOption = Effort.NORMAL,
    sequences: common.Sequences = None,
    length: common.Length = 256,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint at OUT that Bitwright wrote.")] = False,
    verbose: common.Verbose = False,
    json_: common.Json = False,
) -> None:
    """Put ADAPTER into SOURCE and quantize the whole anew; refused where the file loses what training gained."""
    from bitwright.containers.registry import container_for
    from bitwright.finetune.merge import merge
    from bitwright.host.progress import Reporter

    settings = settings_of(
        container=container or container_for(out).name,
        sequences=sequences or 0,
        effort=effort,
        length=length,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    reporter = Reporter(quiet=json_, verbose=verbose)
    found = merge(
        adapter, source, data, out, budget, plan=plan, whole=whole, settings=settings, overwrite=overwrite, reporter=reporter
    )
    if json_:
        from bitwright.checkpoint.workdir import finite

        print(json.dumps(finite(asdict(found) | {"kept": found.kept}), indent=1))
        return
    console = wide_console()
    if not math.isnan(found.survived):
        print_plain(console, f"of the change {100 * found.survived:.0f} % is in the written weights")
    if not math.isnan(found.moved):
        print_plain(console, f"codes that are others than before: {100 * found.moved:.1f} %")
    if math.isnan(found.merged.loss):
        return
    three = {"before": found.before, "with the adapter": found.adapter, "merged": found.merged}
    losses = ", ".join(f"{name} {one.loss:.3f}" for name, one in three.items())
    rights = ", ".join(f"{name} {100 * one.right:.0f} %" for name, one in three.items())
    print_plain(console, f"loss on texts that were kept apart: {losses}")
    print_plain(console, f"answers right to the last token: {rights}")
    print_plain(console, f"{out} keeps {100 * found.kept:.0f} % of what training gained")
