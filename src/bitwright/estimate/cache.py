"""Keys, values and states of the tokens so far: what a context costs in memory (no torch)."""

from __future__ import annotations

from bitwright.estimate.attention import kept_numbers
from bitwright.estimate.families import FAMILIES
from bitwright.models.settings import BOTH, CONVOLUTION, FULL, RECURRENT, SLIDING, Config, layer_kinds, of_layer, text_config


def cache_nbytes(config: Config, n_tokens: int, batch: int = 1, bits: float = 16) -> int:
    """Bytes that ``n_tokens`` of each of ``batch`` texts take, keys and values at ``bits`` a number.

    A layer with full attention keeps keys and values of all tokens for each key-value head, a sliding layer those of its
    window, latent attention (DeepSeek-V2, arXiv 2405.04434) one compressed vector and the rotary part of the key. A recurrent
    layer keeps its state, in which no context counts. Layers that attend to a picture keep nothing of a text, nor do the last
    layers where they read what earlier ones have kept (Gemma 3n and 4).
    """
    text = text_config(config)
    crossed = set(text.get("cross_attention_layers") or ())
    kinds = {layer: kind for layer, kind in enumerate(layer_kinds(text)) if layer not in crossed}
    own = list(kinds.items())[: len(kinds) - int(text.get("num_kv_shared_layers") or 0)]
    keep = [(layer, kind) for layer, kind in own if kind in (FULL, SLIDING, BOTH)]
    numbers = sum(kept_numbers(of_layer(text, layer, kind), kind, n_tokens) for layer, kind in keep)
    return round(batch * (numbers * bits / 8 + _states(text, list(kinds.values()))))


def _states(text: Config, kinds: list[str]) -> int:
    """Bytes of the recurrent layers' states for one text."""
    count = sum(kind in (RECURRENT, CONVOLUTION, BOTH) for kind in kinds)
    family = FAMILIES.get(str(text.get("model_type")))
    return count * family.recurrent.state(text) if count and family is not None and family.recurrent is not None else 0


def longest_context(config: Config, nbytes: int, batch: int = 1, bits: float = 16) -> int:
    """Tokens whose cache fits into ``nbytes``, at most what the model was made for; 0 where not even its states do."""
    low, high = 0, int(text_config(config).get("max_position_embeddings") or UNBOUNDED)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cache_nbytes(config, middle, batch, bits) <= nbytes else (low, middle - 1)
    return low


UNBOUNDED = 2**31  # of a model that states no limit
