"""A GGUF file whose routers of experts are packed into few bits.

llama.cpp keeps `ffn_gate_inp` in 32 bit. Rounded to 4 bits or fewer it chooses other experts; at 8 bits no harm was
measured.

Source: https://github.com/warpfront/hipfire/pull/180; https://github.com/ikawrakow/ik_llama.cpp/pull/896.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.errors import Finding, Severity

WIDE = ("f32", "f16", "bf16", "q8_0")


def check(header: GgufHeader) -> Iterator[Finding]:
    packed = [t for t in header.tensors.values() if t.name.endswith("ffn_gate_inp.weight") and t.type not in WIDE]
    if packed:
        yield Finding(
            "gguf/router",
            packed[0].name,
            f"{packed[0].type}, and {len(packed) - 1} more",
            "a router in 16 or 32 bit",
            "quantize again with llama.cpp's own tool",
            Severity.WARNING,
        )
