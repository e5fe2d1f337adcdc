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
from bitwright.settings import Effort


@guarded
def run(
    source: Annotated[str, typer.Argument(help="A model directory, a .gguf file, a hub id, demo or demo-vision.")],
    out: Annotated[Path, typer.Argument(help="The directory or .gguf file to create.")],
    budget: Annotated[str, typer.Option(help="+10% (over stock), 0.5GB, 500MB, or 4.6bpw.")] = "+10%",
    like: Annotated[str, typer.Option(help="As many bytes as this recipe of the container takes: Q4_K_M.")] = "",
    max_damage: Annotated[float | None, typer.Option(help="Fewest bytes within this many nats per token, instead.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="pattern=format, for example '*.down_proj=16bit'.")] = None,
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
    compare: Annotated[bool, typer.Option(help="Also build and measure the ablations.")] = True,
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
    budget = f"like {like}" if like else budget
    if dry_run:
        _forecast(source, out, budget, max_damage, tuple(set_ or ()), workdir, settings, json_)
        return
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
        reporter=Reporter(quiet=json_, verbose=verbose),
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
        print_plain(console, line)
    print_plain(console, f"\n{out} in {in_words(report.seconds)}. Every figure and reason: {beside(out, 'report.html')}\n")
    for line in container_of(report.plan.container).loading(str(out), sees(report)):
        print_plain(console, line)


def _forecast(
    source: str,
    out: Path,
    budget: str,
    max_damage: float | None,
    pins: tuple[str, ...],
    workdir: str,
    settings: Any,
    json_: bool,
) -> None:
    """Print what a run would take."""
    from bitwright.host.schedule import in_words
    from bitwright.pipeline import forecast

    found = forecast(source, out, budget, max_damage=max_damage, pins=pins, workdir=workdir or None, settings=settings)
    if json_:
        print(json.dumps(asdict(found), indent=1))
        return
    width = max(map(len, found.seconds))
    for stage, seconds in found.seconds.items():
        print(f"{stage:{width}}  {in_words(seconds):>10}")
    print(f"{'in all':{width}}  {in_words(found.total):>10}\n")
    damage = "known once it is measured" if found.damage_nats is None else f"{found.damage_nats:.4f} nats per token"
    print(f"result            {found.nbytes / 1e6:,.1f} MB")
    print(f"peak memory       {found.peak_nbytes / 1e9:.1f} GB")
    print(f"disk while it runs {found.disk_nbytes / 1e9:.1f} GB")
    print(f"predicted damage  {damage}")
    print("\nTimes are of this machine as it is now, from two trials of half a second; half or twice as much is possible.")
