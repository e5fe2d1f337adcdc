"""bitwright measure SOURCE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, settings_of
from bitwright.settings import Effort


@guarded
def run(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A model directory, a .gguf file, a hub id, demo or demo-vision.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")] = Path("sensitivity.json"),
    container: common.ContainerName = "bitsandbytes",
    formats: common.Formats = "",
    calibration: common.Calibration = "",
    imatrix: common.Imatrix = "",
    imatrix_output: Annotated[str, typer.Option(help="Also write llama.cpp's importance matrix here, as GGUF.")] = "",
    effort: common.EffortOption = Effort.NORMAL,
    sequences: common.Sequences = None,
    length: common.Length = 256,
    seed: common.Seed = 0,
    workdir: common.Workdir = "",
    max_memory: common.MaxMemory = "",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    trust_remote_code: common.Trust = False,
    verbose: common.Verbose = False,
    json_: common.Json = False,
) -> None:
    """Measure what every weight of SOURCE loses in every format, in nats per token."""
    from bitwright.host.progress import Reporter
    from bitwright.pipeline import measure

    settings = settings_of(
        container=container,
        formats=formats,
        calibration=calibration,
        imatrix=imatrix,
        sequences=sequences or 0,
        effort=effort,
        length=length,
        seed=seed,
        max_memory=max_memory,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    reporter = Reporter(quiet=json_, verbose=verbose)
    sensitivity = measure(
        source, output, imatrix_output=imatrix_output or None, workdir=workdir or None, settings=settings, reporter=reporter
    )
    if json_:
        print(sensitivity.to_json(), end="")
    else:
        reporter.say(f"{output}: {len(sensitivity.weights)} weights; next: bitwright allocate {output} --budget +10%")
