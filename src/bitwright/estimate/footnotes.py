"""Why a row is not in the table, or holds something else than its name says (no torch)."""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.estimate.parts import EXPERT, Part
from bitwright.estimate.storage import RECIPES, gguf_formats, has_gguf_names
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.models.settings import BOTH, CONVOLUTION, RECURRENT, Config, layer_kinds, unknown_types

WITH_A_STATE = (RECURRENT, CONVOLUTION, BOTH)
K_QUANTS = "Q4_K_M"


def footnotes(parts: tuple[Part, ...], text: Config) -> Iterator[str]:
    """One sentence for each such row of a model of ``parts``; ``text``: the settings of its language model."""
    for kind in unknown_types(text):
        yield f"layers of the kind {kind!r} are counted as full attention"
    if any(part.role == EXPERT for part in parts):
        yield "rows of INT8 and NF4: experts stay in 16 bit, because bitsandbytes converts linear layers and no stacked experts"
    if not has_gguf_names(parts):
        yield f"no rows {' and '.join(RECIPES)}: {_without_recipe(text)}"
        return
    yield from _other_formats(parts, text)


def _without_recipe(text: Config) -> str:
    if "kv_lora_rank" in text:
        return "what llama.cpp makes of latent attention is not counted here"
    if any(kind in WITH_A_STATE for kind in layer_kinds(text)):
        return "what llama.cpp makes of recurrent layers is not counted here"
    return f"the names that llama.cpp gives the tensors of {text.get('model_type')} are not known here"


def _other_formats(parts: tuple[Part, ...], text: Config) -> Iterator[str]:
    """Matrices whose rows are no whole blocks of what the recipe would take."""
    block, record = GGML_FORMATS["q4_0"].record, GGML_FORMATS["q4_k"].record
    chosen = gguf_formats(parts, text, K_QUANTS)
    widths = {part.shape[1] for part in parts if part.name in chosen}
    if odd := sorted(width for width in widths if width % block):
        yield f"rows {' and '.join(RECIPES)}: rows of {_listed(odd)} weights are no multiple of {block}, and stay in 16 bit"
    if narrow := sorted(width for width in widths if width % record and width % block == 0):
        yield f"row {K_QUANTS}: rows of {_listed(narrow)} weights are no multiple of {record}, and get larger formats"


def _listed(sizes: list[int]) -> str:
    most = 3
    return ", ".join(map(str, sizes[:most])) + (" ..." if len(sizes) > most else "")
