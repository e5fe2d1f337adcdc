"""What ``bitwright quantize`` could write of a model, and how small that gets (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitwright.containers.gguf.families import FAMILIES, SEEING
from bitwright.estimate.footnotes import WITH_A_STATE
from bitwright.estimate.parts import EMBEDDING, EXPERT, HEAD, LINEAR, OTHER, VISION_LINEAR, Part
from bitwright.estimate.storage import NF4_BLOCK, PLAIN_4_BIT, RECIPES, SIXTEEN, in_matrices, nf4_double
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.host.sizes import rounded_up
from bitwright.models.settings import Config, layer_kinds, text_config, vision_config

Parts = tuple[Part, ...]
PACKED_ROWS = 32  # bitsandbytes multiplies no other multiples on processors
SMALLEST, SMALLEST_NARROW = "q2_k", "iq4_nl"  # of what quantize measures for GGUF
TOKEN_NBYTES = 64  # of the tokenizer in a GGUF file, for each token: 36 in SmolLM2's, 60 in Llama 3's with its merges
SPARE = 1.01  # over what is counted: headers, records of a few bytes more, the odd tensor in 32 bit
ROPES = ("default", "linear", "yarn", "llama3", "longrope")  # that a GGUF file can state
TEXT_CLASS, SEEING_CLASS = "ForCausalLM", "ForConditionalGeneration"
IN_GGUF = {name.removesuffix(TEXT_CLASS).lower() for name in FAMILIES}
SEEING_IN_GGUF = {
    name.removesuffix(SEEING_CLASS).lower().replace("_", ""): [tower for tower in towers if not tower.wrong]
    for name, towers in SEEING.items()
}


@dataclass(frozen=True)
class Writable:
    """A kind of checkpoint: the smallest that quantize writes, and what people get without it."""

    container: str
    reader: str  # what loads it
    suffix: str  # of OUT
    usual: str  # what to ask for where no memory is named
    least_nbytes: int
    stock_nbytes: int


def obstacle(parts: Parts, text: Config) -> str:
    """Why quantize takes no model of this kind, whatever the container; empty where it does."""
    if any(part.role == EXPERT for part in parts):
        return "its experts lie stacked in one tensor, which quantize does not take"
    convolves = any(part.role == OTHER and len(part.shape) == 3 for part in parts)
    if convolves or any(kind in WITH_A_STATE for kind in layer_kinds(text)):
        return "it has recurrent layers, which quantize does not take"
    return ""


def writable(config: Config, parts: Parts, rows: dict[str, int]) -> tuple[Writable, ...]:
    """What quantize writes smaller than 16 bit, the default first. ``rows``: format -> bytes, of the table."""
    return tuple(kind for kind in _kinds(config, parts, rows) if kind.least_nbytes < rows[SIXTEEN])


def _kinds(config: Config, parts: Parts, rows: dict[str, int]) -> Iterator[Writable]:
    stock, sixteen = rows[PLAIN_4_BIT], rows[SIXTEEN]
    usual = "--budget +10%" if 11 * stock <= 10 * sixteen else "--budget +0%"
    least = rounded_up(round(SPARE * _least_nf4(parts)))
    yield Writable("bitsandbytes", "transformers", "", usual, least, stock)
    recipe = RECIPES[-1]
    if recipe in rows and in_gguf(config):
        least = rounded_up(round(SPARE * _least_gguf(parts, int(text_config(config)["vocab_size"]))))
        yield Writable("GGUF", "llama.cpp", ".gguf", f"--like {recipe}", least, rows[recipe])


def in_gguf(config: Config) -> bool:
    """Whether quantize writes GGUF files of this family."""
    text = text_config(config)
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    for part in (rope, rope.get("full_attention") if isinstance(rope, dict) else None):
        if isinstance(part, dict) and str(part.get("rope_type", part.get("type", ROPES[0]))) not in ROPES:
            return False
    known = str(text.get("model_type")).removesuffix("_text") in IN_GGUF
    vision = vision_config(config)
    if vision is None:
        return known
    towers = SEEING_IN_GGUF.get(str(config.get("model_type")).replace("_", ""), [])
    if len(towers) > 1:  # of one alone, configurations have called it by several names
        towers = [tower for tower in towers if tower.tower == vision.get("model_type")]
    return any(tower.text or known for tower in towers)


def _least_nf4(parts: Parts) -> int:
    """Blocks of 64, double quantized, in every linear layer and in a head of its own."""

    def smallest(n_rows: int, n_cols: int) -> int:
        odd = n_rows % PACKED_ROWS or n_cols % NF4_BLOCK
        return 2 * n_rows * n_cols if odd else nf4_double(n_rows, n_cols)

    return in_matrices(smallest, (LINEAR, VISION_LINEAR, HEAD))(parts)


def _least_gguf(parts: Parts, n_tokens: int) -> int:
    """The smallest format of the menu in every matrix, everything else in 32 bit, and the tokenizer."""
    total = TOKEN_NBYTES * n_tokens
    for part in parts:
        n_cols = part.shape[-1]
        if part.role not in (LINEAR, VISION_LINEAR, EMBEDDING, HEAD):
            total += 4 * part.n_parameters
            continue
        fitting = (name for name in (SMALLEST, SMALLEST_NARROW) if n_cols % GGML_FORMATS[name].record == 0)
        format = GGML_FORMATS.get(next(fitting, ""))
        total += part.n_parameters // format.record * format.record_nbytes if format else 2 * part.n_parameters
    return total
