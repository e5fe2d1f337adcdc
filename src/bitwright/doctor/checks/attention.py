"""Numbers of heads that do not divide, or do not fit the stored matrices.

Query heads share key and value heads evenly, and the rows of the projections are heads times their width. A config
taken from another size of the same family loads with a shape error at best, and is reshaped into nonsense at worst.

Source: grouped-query attention, arXiv 2305.13245.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding

OTHERS = re.compile("vision|visual|audio|resampler|connector")  # in the names of towers, whose heads are others
BY_LAYER = ("global_head_dim", "num_global_key_value_heads", "per_layer_config")  # layers differ where these are stated


def check(model: Model) -> Iterator[Finding]:
    config = model.settings
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if not _positive(heads) or not _positive(hidden):
        return
    assert isinstance(heads, int)
    assert isinstance(hidden, int)
    shared = config.get("num_key_value_heads")
    shared = shared if _positive(shared) else heads
    assert isinstance(shared, int)
    if heads % shared:
        yield Finding(
            "config/heads",
            "config.json",
            f"{heads} query heads, {shared} key-value heads",
            "the one a multiple of the other",
            "copy config.json from the original model",
        )
    width = config.get("head_dim")
    if not _positive(width):
        if hidden % heads:
            yield Finding(
                "config/heads",
                "config.json",
                f"hidden_size {hidden}, {heads} heads, no head_dim",
                "a width of each head",
                "copy config.json from the original model",
            )
            return
        width = hidden // heads
    assert isinstance(width, int)
    if "kv_lora_rank" in config or model.quantization is not None or any(config.get(name) for name in BY_LAYER):
        return  # latent attention and packed weights have other shapes
    of_text = {name: ref for name, ref in model.refs.items() if not OTHERS.search(name)}
    for role, count in (("k_proj", shared), ("v_proj", shared)):
        for name, ref in of_text.items():
            if name.endswith(f"self_attn.{role}.weight") and ref.shape and ref.shape[0] != count * width:
                yield Finding(
                    "config/heads",
                    name,
                    f"{ref.shape[0]} rows",
                    f"{count} heads of {width}, as config.json says",
                    "copy config.json from the original model",
                )
                return


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
