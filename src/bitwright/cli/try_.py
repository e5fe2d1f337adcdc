"""bitwright try OUT [PROMPT]"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from bitwright.evaluate.talk import Reply, Talker

LONGEST = 2048  # tokens of a conversation


@guarded
def run(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A checkpoint that bitwright quantize wrote.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask. Without it a few short questions.")] = "",
    source: Annotated[str, typer.Option(help="The 16-bit model that it was made of, where its name alone does not tell.")] = "",
    tokens: Annotated[int, typer.Option(min=1, max=1000, help="Tokens of an answer at most.")] = 48,
    device: common.Device = "auto",
    json_: common.Json = False,
) -> None:
    """Ask OUT and its 16-bit model the same, and show both answers. The likeliest word is always taken."""
    from bitwright.checkpoint.result import original_of
    from bitwright.data.tokenizer import tokenizer_of
    from bitwright.evaluate.talk import QUESTIONS, Talker
    from bitwright.host.device import device_of
    from bitwright.host.progress import Reporter
    from bitwright.host.schedule import ASK

    original, reporter = original_of(out, source), Reporter(quiet=json_)
    tokenizer, where = tokenizer_of(original), str(device_of(device))
    questions = (prompt,) if prompt else QUESTIONS
    console = wide_console()
    wide = Talker(original, tokenizer, LONGEST, where)
    asked = reporter.track(questions, ASK, len(questions))
    wanted = [wide.reply([{"role": "user", "content": question}], tokens) for question in asked]
    facts = {"16 bit": (wide.tokens_per_second, wide.nbytes)}
    del wide
    small = Talker(out, tokenizer, LONGEST, where)
    found = [
        _shown(console, small, question, expected, out.name, tokens, quiet=json_)
        for question, expected in zip(questions, wanted, strict=True)
    ]
    facts[out.name] = (small.tokens_per_second, small.nbytes)
    if json_:
        rows = zip(questions, wanted, found, strict=True)
        answers = [{"prompt": question, "16 bit": a.text, out.name: b.text} for question, a, b in rows]
        told = {name: {"tokens_per_second": pace, "loaded_nbytes": size} for name, (pace, size) in facts.items()}
        print(json.dumps({"answers": answers, "models": told}, indent=1))
        return
    for name, (pace, size) in facts.items():
        print_plain(console, f"{name}: {pace:.1f} tokens a second, {size / 1e9:.2f} GB when loaded")


def _shown(console: Console, small: Talker, question: str, expected: Reply, name: str, tokens: int, quiet: bool) -> Reply:
    """Print a question with both answers; what follows the first difference is in another colour, or behind a bar."""
    from bitwright.errors import printable
    from bitwright.evaluate.talk import same_start

    if quiet:
        return small.reply([{"role": "user", "content": question}], tokens)
    width = max(len("16 bit"), len(name))
    print_plain(console, f"> {question}")
    print_plain(console, f"{'16 bit':>{width}}  {expected.text}")
    console.print(f"{printable(name):>{width}}  ", end="", highlight=False, markup=False)
    ids: list[int] = []

    def tell(text: str, token: int) -> None:
        ids.append(token)
        same = same_start(ids, expected.ids)
        if same == len(ids) - 1 and same < len(expected.ids) and console.color_system is None:
            text = f"‖{text}"
        style = "yellow" if same < len(ids) else None
        console.print(printable(text), end="", style=style, highlight=False, markup=False, soft_wrap=True)

    reply = small.reply([{"role": "user", "content": question}], tokens, tell)
    same = same_start(reply.ids, expected.ids)
    console.print()
    words = "the same" if reply.ids == expected.ids else f"the same for {same} of {len(expected.ids)} tokens"
    print_plain(console, f"{'':>{width}}  ({words})\n")
    return reply
