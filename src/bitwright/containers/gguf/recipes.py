"""The mixtures of formats that llama.cpp's own quantizer knows by name, as it would apply them to a model (no torch).

Source: llama-quant.cpp of llama.cpp. The rules for Falcon and for 70 B are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bitwright.formats.ggml.format import GGML_FORMATS

BASES = {
    "Q2_K": "q2_k",
    "Q3_K_S": "q3_k",
    "Q3_K_M": "q3_k",
    "Q3_K_L": "q3_k",
    "Q4_0": "q4_0",
    "IQ4_NL": "iq4_nl",
    "IQ4_XS": "iq4_xs",
    "Q4_K_S": "q4_k",
    "Q4_K_M": "q4_k",
    "Q5_K_S": "q5_k",
    "Q5_K_M": "q5_k",
    "Q6_K": "q6_k",
    "Q8_0": "q8_0",
}
NARROW = {  # where rows are no multiple of 256
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
}


MIXTRAL_EXPERTS = 8  # for which attention, shared by all experts, gets more bits
EIGHT_EXPERTS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("attn_k", "attn_v"), dict.fromkeys(BASES, "q8_0")),
    "attn_output": dict.fromkeys(("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"), "q5_k"),
}


@dataclass(frozen=True)
class Matrix:
    """A tensor that the recipe chooses a format for."""

    name: str  # as GGUF calls it
    n_cols: int


def recipe(
    name: str, matrices: Iterable[Matrix], n_blocks: int, n_group: int, tied: bool, n_experts: int = 0
) -> dict[str, str]:
    """GGUF tensor name -> format under the recipe ``name``; ``n_group`` is the number of query heads per key head."""
    return {matrix.name: _choice(name, matrix, n_blocks, n_group, tied, n_experts) for matrix in matrices}


def _choice(name: str, matrix: Matrix, n_blocks: int, n_group: int, tied: bool, n_experts: int) -> str:
    base = BASES[name]
    if matrix.name == "output.weight" or (tied and matrix.name == "token_embd.weight"):
        wide = matrix.n_cols % GGML_FORMATS[base].record == 0
        chosen = "q6_k" if wide and base != "q8_0" else "q8_0"
    elif matrix.name == "token_embd.weight":
        chosen = base
    else:
        _, index, part, *_ = matrix.name.split(".")
        eight = EIGHT_EXPERTS.get(part, {}).get(name) if n_experts == MIXTRAL_EXPERTS else None
        chosen = eight or _block_choice(name, base, part, int(index), n_blocks, n_group)
    if matrix.n_cols % GGML_FORMATS[chosen].record:
        chosen = NARROW.get(chosen, chosen)
    return chosen if matrix.n_cols % GGML_FORMATS[chosen].record == 0 else "16bit"


def _block_choice(name: str, base: str, part: str, index: int, n_blocks: int, n_group: int) -> str:
    eighth = n_blocks // 8
    more_bits = index < eighth or index >= 7 * n_blocks // 8 or (index - eighth) % 3 == 2
    early = index < eighth
    if part == "attn_v" or part == "attn_qkv":
        rules = {
            "Q2_K": "q4_k" if n_group >= 4 else "q3_k",
            "Q3_K_M": "q5_k" if index < 2 else "q4_k",
            "Q3_K_L": "q5_k",
            "Q4_K_M": "q6_k" if more_bits else base,
            "Q5_K_M": "q6_k" if more_bits else base,
            "Q4_K_S": "q5_k" if index < 4 else base,
            "IQ4_NL": "q5_k" if n_group >= 4 else base,
            "IQ4_XS": "q5_k" if n_group >= 4 else base,
        }
    elif part.startswith("ffn_down"):  # of experts, too
        rules = {
            "Q2_K": "q3_k",
            "Q3_K_M": "q5_k" if index < n_blocks // 16 else "q4_k",
            "Q3_K_L": "q5_k",
            "Q4_K_M": "q6_k" if more_bits else base,
            "Q5_K_M": "q6_k" if more_bits else base,
            "Q4_K_S": "q5_k" if early else base,
            "IQ4_NL": base,
            "IQ4_XS": base,
        }
    elif part == "attn_output":
        rules = {"Q2_K": "q3_k", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k"}
    else:
        rules = {}
    return rules.get(name, base)
