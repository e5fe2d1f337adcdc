"""bitwright repair OUT"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, settings_of, wide_console


@guarded
def run(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A checkpoint that bitwright quantize wrote. It is replaced by a better one.")
    ],
    source: Annotated[str, typer.Option(help="The 16-bit model that it was made of, where its name alone does not tell.")] = "",
    minutes: Annotated[float, typer.Option(min=1.0, help="How long it may take in all.")] = 30.0,
    steps: Annotated[int, typer.Option(min=0, help="So many steps, instead of as many as there is time for.")] = 0,
    rank: Annotated[
        int, typer.Option(min=0, help="Train low-rank changes, for a model too large to train whole. 0: whole.")
    ] = 0,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Of codes, in steps between two levels: 0.003. Scales take 0.3 of it.")
    ] = None,
    codes_below: Annotated[
        float, typer.Option(min=0.0, help="Train codes of fewer bits a weight than this; of others, scales and minima alone.")
    ] = 4.0,
    calibration: common.Calibration = "",
    held_out: common.HeldOut = "documentation",
    sequences: Annotated[int | None, typer.Option(min=6, help="Texts, and questions about pictures, to train on: 512.")] = None,
    length: common.Length = 256,
    held_out_sequences: Annotated[int, typer.Option(min=2, help="Sequences of held-out text.")] = 16,
    held_out_length: Annotated[int, typer.Option(min=16, help="Tokens of each.")] = 512,
    seed: common.Seed = 0,
    workdir: common.Workdir = "",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    verbose: common.Verbose = False,
    json_: common.Json = False,
) -> None:
    """Train the codes of OUT against its 16-bit model, and keep the new file only if it measures closer."""
    from bitwright.finetune.card import curve
    from bitwright.finetune.repair import repair
    from bitwright.host.progress import Reporter

    settings = settings_of(
        calibration=calibration,
        held_out=held_out,
        sequences=sequences or 0,
        length=length,
        held_out_sequences=held_out_sequences,
        held_out_length=held_out_length,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    found = repair(
        out,
        source,
        minutes=minutes,
        steps=steps,
        rank=rank,
        learning_rate=learning_rate,
        codes_below=codes_below,
        settings=settings,
        workdir=workdir or None,
        reporter=Reporter(quiet=json_, verbose=verbose),
    )
    low, high = found.gain
    if json_:
        print(json.dumps(asdict(found) | {"kept": found.kept, "ratio": found.ratio, "gain": [low, high]}, indent=1))
        return
    console = wide_console()
    before, after = found.before, found.after
    print_plain(console, f"loss while training: {curve(found.losses)}")
    print_plain(console, f"{found.steps} steps in {found.seconds / 60:.0f} min")
    print_plain(console, f"KL divergence from 16 bit on what was held out: {before.kl:.4f} before, {after.kl:.4f} after")
    print_plain(console, f"the same next word as 16 bit: {100 * before.top1:.1f} % before, {100 * after.top1:.1f} % after")
    if found.kept:
        print_plain(console, f"{out} is the repaired one now; it gained {low:.4f} to {high:.4f} nats (95 % interval)")
    else:
        print_plain(console, f"{out} stays as it was: training did not bring it closer beyond chance")
