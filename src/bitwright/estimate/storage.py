"""Bytes of a model's tensors in well-known formats, from their shapes (no torch)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from bitwright.containers.gguf.recipes import Matrix, recipe
from bitwright.estimate.parts import EMBEDDING, EXPERT, HEAD, LINEAR, VISION, VISION_LINEAR, Part
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.models.settings import n_layers

SIXTEEN, PLAIN_4_BIT = "BF16 / FP16", "NF4 (bitsandbytes)"
RECIPES = ("Q4_0", "Q4_K_M")  # of llama.cpp
NF4_BLOCK, GPTQ_GROUP = 64, 128
NF4_EXTRAS = 16 * 4 + 90  # the map of levels and the JSON record of each weight
SCALE_BLOCK, NF4_DOUBLE_EXTRAS = 256, 256 * 4 + 60  # scales that share one, and their map of levels with its record
DYNAMIC = 1.10  # what a dynamic 4-bit checkpoint takes over plain NF4

Parts = tuple[Part, ...]


def stored_nbytes(parts: Parts, config: dict[str, Any]) -> dict[str, int]:
    """Format -> bytes of all tensors; a format that these shapes cannot be counted in is absent."""
    found = {name: count(parts) for name, count in COUNTS.items()}
    found["dynamic 4 bit, +10 %"] = min(found[SIXTEEN], round(DYNAMIC * found[PLAIN_4_BIT]))
    if has_gguf_names(parts):
        found |= {name: _gguf(parts, config, name) for name in RECIPES}
    return found


def has_gguf_names(parts: Parts) -> bool:
    """Whether every matrix of the blocks has the name that llama.cpp's recipes go by."""
    blocks = [part for part in parts if part.role in (LINEAR, EXPERT)]
    return bool(blocks) and all(part.name.startswith("blk.") for part in blocks)


def _every(bits: int) -> Callable[[Parts], int]:
    return lambda parts: sum(part.n_parameters for part in parts) * bits // 8


def in_matrices(of_one: Callable[[int, int], int], roles: tuple[str, ...]) -> Callable[[Parts], int]:
    """Matrices of these roles in the format, everything else in 16 bit."""

    def count(parts: Parts) -> int:
        return sum(
            part.count * of_one(prod(part.shape[:-1]), part.shape[-1]) if part.role in roles else 2 * part.n_parameters
            for part in parts
        )

    return count


def _int8(n_rows: int, n_cols: int) -> int:
    """LLM.int8 (arXiv 2208.07339): a byte a weight and a float32 scale a row."""
    return n_rows * n_cols + 4 * n_rows


def _nf4(n_rows: int, n_cols: int) -> int:
    """Two weights a byte, a float32 scale for each block of 64."""
    n = n_rows * n_cols
    return -(-n // 2) + 4 * -(-n // NF4_BLOCK) + NF4_EXTRAS


def nf4_double(n_rows: int, n_cols: int) -> int:
    """The same with scales in 8 bit, and a float32 scale for 256 of them (QLoRA, arXiv 2305.14314)."""
    n = n_rows * n_cols
    scales = -(-n // NF4_BLOCK)
    return -(-n // 2) + scales + 4 * -(-scales // SCALE_BLOCK) + NF4_EXTRAS + NF4_DOUBLE_EXTRAS


def _gptq(n_rows: int, n_cols: int) -> int:
    """AutoGPTQ's layout: 4-bit codes and zero points, float16 scales, the group of each column in 32 bit."""
    groups = -(-n_cols // GPTQ_GROUP)
    return n_rows * n_cols // 2 + groups * n_rows * 2 + groups * n_rows // 2 + 4 * n_cols


def gguf_formats(parts: Parts, config: dict[str, Any], name: str) -> dict[str, str]:
    """GGUF tensor name -> format under llama.cpp's recipe ``name``."""
    matrices = [Matrix(part.name, part.shape[1]) for part in parts if part.role in (LINEAR, EXPERT, EMBEDDING, HEAD)]
    heads = int(config.get("num_attention_heads") or 1)
    group = heads // int(config.get("num_key_value_heads") or heads)
    tied = not any(part.role == HEAD for part in parts)
    experts = max((part.count for part in parts if part.role == EXPERT), default=0)
    return recipe(name, matrices, n_layers(config), group, tied, experts)


def _gguf(parts: Parts, config: dict[str, Any], name: str) -> int:
    """Under llama.cpp's recipe ``name``; vectors in 32 bit, what sees in a file of its own in 16 bit."""
    chosen, total = gguf_formats(parts, config, name), 0
    for part in parts:
        if part.role in (VISION, VISION_LINEAR):
            total += 2 * part.n_parameters
        elif part.name not in chosen:
            total += 4 * part.n_parameters
        elif chosen[part.name] == "16bit":
            total += 2 * part.n_parameters
        else:
            format = GGML_FORMATS[chosen[part.name]]
            total += part.n_parameters // format.record * format.record_nbytes
    return total


LAYERS = (LINEAR, VISION_LINEAR)  # what bitsandbytes converts: linear layers, and no stacked experts
WEIGHTS = (LINEAR, EXPERT)  # what GPTQ is applied to
COUNTS: dict[str, Callable[[Parts], int]] = {
    "FP32": _every(32),
    SIXTEEN: _every(16),
    "INT8 (bitsandbytes)": in_matrices(_int8, LAYERS),
    PLAIN_4_BIT: in_matrices(_nf4, LAYERS),
    "NF4, double quantized": in_matrices(nf4_double, LAYERS),
    "GPTQ g128": in_matrices(_gptq, WEIGHTS),
}
