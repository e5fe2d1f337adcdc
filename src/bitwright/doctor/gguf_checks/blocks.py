"""A GGUF file whose settings and tensors count different blocks.

`ARCHITECTURE.block_count` says how many blocks there are; their tensors are called `blk.0` and so on. llama.cpp stops
where one is missing, and leaves out what is beyond the count. A part of a model that was split over several files
(`split.count`) is none of that.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from bitwright.checkpoint.gguf_header import GgufHeader, parts_of
from bitwright.errors import Finding, Severity

BLOCK = re.compile(r"blk\.(\d+)\.")


def check(header: GgufHeader) -> Iterator[Finding]:
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        yield Finding(
            "gguf/architecture",
            "general.architecture",
            repr(architecture),
            "the name of the architecture",
            "convert the model again",
        )
        return
    if (count := parts_of(header)) > 1:
        yield Finding(
            "gguf/part",
            "split.count",
            f"one of {count} files over which a model was split",
            "the whole model, in which blocks can be counted",
            "llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf",
            Severity.NOTE,
        )
        return
    stated = header.metadata.get(f"{architecture}.block_count")
    held = {int(match[1]) for name in header.tensors if (match := BLOCK.match(name))}
    whole = isinstance(stated, int) and len(held) == stated and max(held, default=-1) == stated - 1
    if isinstance(stated, int) and held and not whole:
        beyond = min(stated, max(held) + 2)
        missing = list(islice((block for block in range(beyond) if block not in held), 3))
        saw = f"blocks {missing} are missing" if missing else f"block_count {stated}, tensors of block {max(held)}"
        yield Finding(
            "gguf/blocks",
            f"{architecture}.block_count",
            saw,
            "tensors of every block and of no other",
            "convert the model again",
        )
