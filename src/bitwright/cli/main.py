"""The command line: one file per verb. Nothing here loads torch, so that --help answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli import (
    allocate,
    cache,
    chat,
    doctor,
    estimate,
    evaluate,
    finetune,
    measure,
    merge,
    push,
    quantize,
    repair,
    report,
    try_,
)
from bitwright.host.quiet import silence_libraries

EXAMPLES = {  # the first thing that somebody would type
    estimate: "bitwright estimate Qwen/Qwen3-8B --memory 8GB",
    doctor: "bitwright doctor my-model --weights",
    quantize: "bitwright quantize demo demo-out --budget +10%",
    try_: 'bitwright try demo-out "What is a whale?"',
    chat: "bitwright chat demo-out",
    evaluate: "bitwright evaluate demo demo-out",
    finetune: "bitwright finetune demo-out questions.csv adapter",
    merge: "bitwright merge adapter demo questions.csv tuned.gguf",
    repair: "bitwright repair demo-2bit --minutes 30",
    push: "bitwright push demo-out USER/NAME --dry-run",
    measure: "bitwright measure demo -o sensitivity.json",
    allocate: "bitwright allocate sensitivity.json --budget 4.6bpw",
    report: "bitwright report WORKDIR",
    cache: "bitwright cache --clean",
}
app = typer.Typer(
    help="Make a language model smaller, and measure what it lost.", no_args_is_help=True, pretty_exceptions_enable=False
)
for verb, example in EXAMPLES.items():
    app.command(name=verb.__name__.rsplit(".", 1)[-1].rstrip("_"), epilog=f"Example: {example}")(verb.run)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"bitwright {version('bitwright')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Make a language model smaller, and measure what it lost."""
    silence_libraries()


if __name__ == "__main__":
    app()
