"""The command line: one file per verb. Nothing here loads torch, so that --help answers at once."""

from __future__ import annotations

import os

import typer

from bitwright.cli import allocate, doctor, estimate, evaluate, measure, push, quantize, report

app = typer.Typer(
    help="Spend a memory budget on a language model's weights where it matters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (quantize, measure, allocate, evaluate, report, push, doctor, estimate):
    app.command(name=verb.__name__.rsplit(".", 1)[-1])(verb.run)


@app.callback()
def main() -> None:
    """Silence what libraries print before they are loaded."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings repeat what a model's files say, as they say it


if __name__ == "__main__":
    app()
