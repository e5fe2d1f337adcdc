"""A configuration from a few numbers, for a model that exists only as a plan (no torch)."""

from __future__ import annotations

import re
from typing import Any

from bitwright.errors import fail

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
RECORD, BLOCK, SMALL = 256, 32, 2048  # widths are multiples of these; below SMALL a record would be a coarse step
HEAD_WIDTH, VOCABULARY, CONTEXT = 128, 128_256, 131_072  # Llama 3's


def sketch(
    n_parameters: str,
    layers: int,
    hidden: int,
    heads: int = 0,
    shared: int = 0,
    inner: int = 0,
    vocabulary: int = VOCABULARY,
    tied: bool = False,
) -> dict[str, Any]:
    """A dense llama of about ``n_parameters`` ("7B"). What is 0 is filled in: heads of 128, key-value heads as many as heads,
    and the feed-forward width that makes the sum right.

    Raises BitwrightError for a number that cannot be read, and where the rest already takes more than the sum.
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([KMBT]?)", n_parameters.strip(), re.IGNORECASE)
    if not match:
        raise fail(
            "estimate/params",
            f"--params {n_parameters}",
            saw=repr(n_parameters),
            wanted="a number such as 7B or 350M",
            help="--params 7B",
        )
    heads = heads or max(1, hidden // HEAD_WIDTH)
    shared, width = shared or heads, hidden // heads
    if not width or heads % shared:
        raise fail(
            "estimate/heads",
            f"--heads {heads} --kv-heads {shared}",
            saw=f"a model {hidden} wide",
            wanted="heads that divide among key-value heads, and a width for each",
            help="--heads 32 --kv-heads 8",
        )
    total = float(match[1]) * UNITS[match[2].upper()]
    a_layer = 2 * (heads + shared) * width * hidden + 2 * hidden
    known = (1 if tied else 2) * vocabulary * hidden + hidden + layers * a_layer
    step = RECORD if hidden >= SMALL else BLOCK  # as real models have it, and block formats need it
    inner = inner or round((total - known) / (3 * layers * hidden) / step) * step
    if inner < 1:
        raise fail(
            "estimate/sketch",
            f"--params {n_parameters}",
            saw=f"embeddings and attention alone take {known / 1e9:.2f} billion",
            wanted="room for feed-forward layers",
            help="fewer --layers, a smaller --hidden or --vocabulary, or more --params",
        )
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": width,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": CONTEXT,
    }
