"""bitwright quantize SOURCE OUT"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, settings_of, wide_console
from bitwright.errors import fail
from bitwright.settings import Effort

USUAL = "+10%"


@guarded
def run(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A model directory, a .gguf file, a hub id, demo or demo-vision.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory or .gguf file to create.")],
    budget: Annotated[str, typer.Option(help="+10% (over stock), 0.5GB, 500MB, or 4.6bpw.")] = USUAL,
    like: Annotated[str, typer.Option(help="GGUF: the size of llama.cpp's Q4_K_M, Q5_K_S ... instead of --budget.")] = "",
    max_damage: Annotated[
        float | None,
        typer.Option(help="Instead of a budget: the smallest file predicted below this KL divergence, such as 0.02."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Force a format: '*.down_proj=16bit', 'vision=16bit'. Can be given often.")
    ] = None,
    container: common.ContainerName = "",
    formats: common.Formats = "",
    calibration: common.Calibration = "",
    imatrix: common.Imatrix = "",
    held_out: common.HeldOut = "documentation",
    effort: common.EffortOption = Effort.NORMAL,
    sequences: common.Sequences = None,
    length: common.Length = 256,
    seed: common.Seed = 0,
    workdir: common.Workdir = "",
    max_memory: common.MaxMemory = "",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    trust_remote_code: common.Trust = False,
    plan: Annotated[str, typer.Option(help="Write this plan.json, which you may have edited, instead of choosing.")] = "",
    fused_groups: common.FusedGroups = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint at OUT that Bitwright wrote.")] = False,
    compare: Annotated[bool, typer.Option(help="Also build variants to compare with for the report (slower).")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how long it would take, and how much it needs.")] = False,
    verbose: common.Verbose = False,
    json_: common.Json = False,
) -> None:
    """Quantize SOURCE into the new directory OUT within a budget, and prove it against the 16-bit model."""

    from bitwright.checkpoint.output import beside
    from bitwright.containers.registry import container_for, container_of
    from bitwright.host.progress import Reporter
    from bitwright.host.schedule import in_words
    from bitwright.pipeline import quantize
    from bitwright.report.report import sees, sentences
    from bitwright.report.table import table

    settings = settings_of(
        container=container or container_for(out).name,
        formats=formats,
        calibration=calibration,
        imatrix=imatrix,
        held_out=held_out,
        sequences=sequences or 0,
        effort=effort,
        length=length,
        seed=seed,
        max_memory=max_memory,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        compare=compare,
        fused_groups=fused_groups,
    )
    if like and budget != USUAL:
        raise fail("budget/two", f"--budget {budget}", saw=f"--like {like} too", wanted="one of them", help=f"--like {like}")
    budget = f"like {like}" if like else budget
    if dry_run:
        asked = {"max_damage": max_damage, "pins": tuple(set_ or ()), "plan": plan or None, "workdir": workdir or None}
        _forecast(json_, source, out, budget, settings=settings, **asked)
        return
    reporter = Reporter(quiet=json_, verbose=verbose)
    report = quantize(
        source,
        out,
        budget,
        max_damage=max_damage,
        pins=tuple(set_ or ()),
        plan=plan or None,
        workdir=workdir or None,
        overwrite=overwrite,
        settings=settings,
        reporter=reporter,
        command=tuple(sys.argv),
    )
    if json_:
        print(json.dumps(report.to_dict(), indent=1))
        return
    console = wide_console()
    console.print()
    console.print(table(report.verdict.entries, report.verdict.stock, console.width), soft_wrap=True)
    console.print()
    for line in (*sentences(report), *(f"note: {note}" for note in report.notes)):
        if line not in reporter.said:
            print_plain(console, line)
    print_plain(console, f"\n{out} in {in_words(report.seconds)}. Every figure and reason: {beside(out, 'report.html')}\n")
    for line in container_of(report.plan.container).loading(str(out), sees(report)):
        print_plain(console, line, code=True)


def _forecast(json_: bool, source: str, out: Path, budget: str, **asked: Any) -> None:
    """Print what a run would take."""
    from bitwright.host.schedule import in_words
    from bitwright.pipeline import forecast

    found = forecast(source, out, budget, **asked)
    if json_:
        print(json.dumps(asdict(found), indent=1))
        return
    width = max(map(len, found.seconds))
    for stage, seconds in found.seconds.items():
        print(f"{stage:{width}}  {in_words(seconds):>10}")
    print(f"{'in all':{width}}  {in_words(found.total):>10}\n")
    damage = "known once it is measured" if found.damage_nats is None else f"{found.damage_nats:.4f} nats per token"
    facts = {
        "result": f"{'' if found.damage_nats is not None or asked['plan'] else 'at most '}{found.nbytes / 1e6:,.1f} MB",
        "peak memory": f"{found.peak_nbytes / 1e9:.1f} GB",
        "disk while it runs": f"{found.disk_nbytes / 1e9:.1f} GB",
        "predicted damage": damage,
    }
    for name, value in facts.items():
        print(f"{name:20}{value}")
    print("\nTimes are guesses from two trials of half a second; half or twice as much is")
    print("possible.")
