"""A GGUF file whose rotary positions are not those of its family.

`rope.freq_base` defaults to 10,000 where it is missing; Llama 3 was trained with 500,000, Qwen 2 and 3 with 1,000,000.
Llama 3.1 and later also need the tensor `rope_freqs.weight`, which converters before the end of July 2024 did not
write: without it texts beyond 8,192 tokens fall apart.

Source: https://github.com/ollama/ollama/issues/2379, https://github.com/ggml-org/llama.cpp/pull/11008 (the base);
https://github.com/ggml-org/llama.cpp/pull/8676 (the tensor).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.errors import Finding, Severity

DEFAULT = 10_000
TRAINED = {("llama", 128_256): 500_000} | {
    (kind, vocabulary): 1_000_000 for kind in ("qwen2", "qwen3", "qwen3moe") for vocabulary in (151_936, 152_064)
}
STATED = ("qwen2",)  # families some of whose models were trained with the default: Qwen 2.5 Math, R1's distillations
LONG = 131_072


def check(header: GgufHeader) -> Iterator[Finding]:
    kind, embedding = header.metadata.get("general.architecture"), header.tensors.get("token_embd.weight")
    trained = TRAINED.get((str(kind), embedding.shape[0])) if embedding is not None else None
    if trained is None:
        return
    base = header.metadata.get(f"{kind}.rope.freq_base")
    if base is None or (base == DEFAULT and kind not in STATED):
        yield Finding(
            "gguf/rope-base",
            f"{kind}.rope.freq_base",
            "missing" if base is None else f"{base:.0f}",
            f"{trained}",
            "convert the model again, from a config.json that has rope_theta",
        )
    scaled = f"{kind}.rope.scaling.type" in header.metadata or "rope_freqs.weight" in header.tensors
    if kind == "llama" and header.metadata.get("llama.context_length") == LONG and base == trained and not scaled:
        yield Finding(
            "gguf/rope-freqs",
            "rope_freqs.weight",
            f"missing, with a context of {LONG} tokens",
            "the factors of Llama 3.1 and later",
            "convert the model again with a llama.cpp of August 2024 or later",
            Severity.WARNING,
        )
