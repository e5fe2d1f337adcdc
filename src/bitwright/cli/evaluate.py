"""bitwright evaluate REFERENCE CANDIDATE ..."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, wide_console
from bitwright.errors import Finding


@guarded
def run(
    reference: Annotated[
        str,
        typer.Argument(metavar="REFERENCE", help="The 16-bit model: a directory, a .gguf file, a hub id, demo, demo-vision."),
    ],
    candidates: Annotated[
        list[str],
        typer.Argument(metavar="CANDIDATES", help="Models to compare: directories that transformers loads, .gguf files."),
    ],
    held_out: common.HeldOut = "documentation",
    sequences: Annotated[int, typer.Option(min=2, help="Sequences of held-out text.")] = 8,
    length: Annotated[int, typer.Option(min=16, help="Tokens per sequence.")] = 512,
    greedy: Annotated[int, typer.Option(min=0, help="Tokens that are continued greedily from each sequence's start.")] = 32,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-evaluation-harness and .jsonl files, separated by commas.")] = "",
    task_limit: Annotated[int | None, typer.Option(min=2, help="Questions of each task. Default: all.")] = None,
    device: common.Device = "auto",
    trust_remote_code: common.Trust = False,
    verbose: common.Verbose = False,
    json_: common.Json = False,
) -> None:
    """Measure how far CANDIDATES are from REFERENCE: KL divergence, top-1 agreement, perplexity."""

    from bitwright.evaluate.verdict import PartlyEvaluatedError
    from bitwright.host.progress import Reporter
    from bitwright.pipeline import evaluate
    from bitwright.report.table import table, task_table

    failures: tuple[Finding, ...] = ()
    try:
        entries = evaluate(
            reference,
            candidates,
            held_out=held_out,
            sequences=sequences,
            length=length,
            greedy=greedy,
            tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
            task_limit=task_limit,
            device=device,
            trust_remote_code=trust_remote_code,
            reporter=Reporter(quiet=json_, verbose=verbose),
        )
    except PartlyEvaluatedError as error:
        entries, failures = error.entries, error.failures
    if json_:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
    else:
        console = wide_console()
        console.print(table(entries, width=console.width), soft_wrap=True)
        if tasks:
            console.print()
            console.print(task_table(entries), soft_wrap=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        raise typer.Exit(2)
