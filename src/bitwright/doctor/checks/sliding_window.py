"""Windows of attention that contradict each other.

`layer_types` gives each layer full or sliding attention and must name every layer; sliding layers need a window.

Source: transformers' configurations of Gemma 2 and 3, Qwen and Mistral.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding


def check(model: Model) -> Iterator[Finding]:
    config = model.text_config
    types, layers, window = config.get("layer_types"), config.get("num_hidden_layers"), config.get("sliding_window")
    if isinstance(types, list) and isinstance(layers, int) and len(types) != layers:
        yield Finding(
            "config/layer-types",
            "config.json",
            f"{len(types)} layer_types, {layers} layers",
            "one for each layer",
            "copy config.json from the original model",
        )
    slides = isinstance(types, list) and "sliding_attention" in types
    if slides and not (isinstance(window, int) and window > 0):
        yield Finding(
            "config/sliding-window",
            "config.json",
            f"sliding layers, sliding_window {window}",
            "the window's length in tokens",
            "copy sliding_window from the original model",
        )
