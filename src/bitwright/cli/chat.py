"""bitwright chat OUT"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded

LONGEST = 4096  # tokens of a conversation; the oldest go first


@guarded
def run(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A checkpoint that bitwright quantize wrote, or a directory.")],
    source: Annotated[str, typer.Option(help="Where its tokenizer is, for a .gguf file whose plan does not tell.")] = "",
    tokens: Annotated[int, typer.Option(min=1, max=4000, help="Tokens of an answer at most.")] = 400,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0: always the likeliest word.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same answers.")] = 0,
    device: common.Device = "auto",
) -> None:
    """Talk with OUT. An empty line or Ctrl-D ends it."""
    import torch

    from bitwright.checkpoint.open import local_directory
    from bitwright.checkpoint.result import original_of
    from bitwright.data.tokenizer import tokenizer_of
    from bitwright.errors import printable
    from bitwright.evaluate.talk import Talker
    from bitwright.host.device import device_of

    words = original_of(out, source) if out.is_file() else local_directory(out)
    torch.manual_seed(seed)
    talker = Talker(out, tokenizer_of(words), LONGEST, str(device_of(device)))
    messages: list[dict[str, str]] = []
    while True:
        try:
            asked = input("> ").strip()
        except EOFError:
            print()
            return
        if not asked:
            return
        messages.append({"role": "user", "content": asked})
        reply = talker.reply(messages, tokens, lambda text, _: print(printable(text), end="", flush=True), temperature)
        print("\n")
        messages.append({"role": "assistant", "content": reply.text})
