"""A low-rank adapter as llama.cpp and Ollama load it beside a GGUF file (``--lora``, ``ADAPTER``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
from gguf import GGUFWriter
from torch import Tensor

from bitwright.containers.gguf.layout import family_of, name_of
from bitwright.containers.gguf.rotary import rotated_as_pairs, rotated_heads
from bitwright.models.source import Source

LORA = "lora"  # the kind of adapter, and the ending of its tensors


def write_adapter(path: Path, source: Source, changes: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> None:
    """Write ``changes`` of the weights of ``source`` to ``path``: of each name A [R, K] and B [N, R], times ``alpha`` / R.

    Source: src/llama-adapter.cpp of llama.cpp, which scales by ``adapter.lora.alpha`` / R and keeps rows as the file has them.
    """
    family = family_of(source.spec)
    writer = GGUFWriter(path, arch=gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, LORA)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, (a, b) in changes.items():
        if family.pairs_rotated and (heads := rotated_heads(name, source.config)):
            b = rotated_as_pairs(b, heads)
        for ending, part in (("a", a), ("b", b)):
            writer.add_tensor(f"{name_of(source, name)}.{LORA}_{ending}", part.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
