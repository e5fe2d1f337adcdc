"""Linears that serving engines multiply as one, under a name of its own (data, no torch).

vLLM and SGLang stack the rows of these weights into one matrix, which has one format, or is left in 16 bit as a whole.
Source: packed_modules_mapping of the model classes of vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Iterable

FUSED: dict[str, tuple[str, ...]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
FUSED_NAME = {part: whole for whole, parts in FUSED.items() for part in parts}


def fused_module(module: str) -> str | None:
    """The module that engines make of ``module`` and its neighbours, or None where they leave it alone.

    >>> fused_module("model.layers.3.self_attn.v_proj"), fused_module("model.layers.3.mlp.down_proj")
    ('model.layers.3.self_attn.qkv_proj', None)
    """
    parent, _, last = module.rpartition(".")
    whole = FUSED_NAME.get(last)
    return f"{parent}.{whole}" if whole and parent else None


def fused_modules(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Fused module -> those of ``modules`` that it is made of, where there are at least two."""
    found: dict[str, list[str]] = {}
    for module in modules:
        if whole := fused_module(module):
            found.setdefault(whole, []).append(module)
    return {whole: tuple(parts) for whole, parts in found.items() if len(parts) > 1}
