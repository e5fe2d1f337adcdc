"""The command line: one file per verb. Nothing here loads torch, so that --help answers at once."""

from __future__ import annotations

import typer

from bitwright.cli import allocate, doctor, estimate, evaluate, finetune, measure, merge, push, quantize, repair, report
from bitwright.host.quiet import silence_libraries

app = typer.Typer(
    help="Make a language model smaller, and measure what it lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (quantize, measure, allocate, evaluate, report, push, finetune, merge, repair, doctor, estimate):
    app.command(name=verb.__name__.rsplit(".", 1)[-1])(verb.run)


@app.callback()
def main() -> None:
    """Silence what libraries print before they are loaded."""
    silence_libraries()


if __name__ == "__main__":
    app()
