"""Rotary positions that do not reach the stated context, or lack a setting.

Under YaRN a context is its original length times a factor. Where `max_position_embeddings` says more than that, texts
beyond it are read with positions that the model never saw; where settings of YaRN or Llama 3 are missing, each
runtime fills in its own.

Source: YaRN, arXiv 2309.00071; transformers' rope utilities, which warn about the same settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
}
TOLERANCE = 0.01  # of the context: published lengths are rounded


def check(model: Model) -> Iterator[Finding]:
    config = model.text_config
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    for name, settings in _by_layer(stated):
        kind = settings.get("rope_type", settings.get("type", "default"))
        missing = [key for key in NEEDED.get(str(kind), ()) if settings.get(key, config.get(key)) is None]
        if missing:
            yield Finding(
                "config/rope",
                f"config.json, {name}",
                f"{kind} without {', '.join(missing)}",
                "all settings of this scaling",
                "copy them from the original model",
                Severity.WARNING,
            )
            continue
        original = settings.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
        factor, reach = settings.get("factor"), config.get("max_position_embeddings")
        numbers = [value for value in (original, factor, reach) if isinstance(value, int | float) and value > 0]
        if kind == "yarn" and len(numbers) == 3 and numbers[2] > numbers[0] * numbers[1] * (1 + TOLERANCE):
            reached = int(numbers[0] * numbers[1])
            yield Finding(
                "config/rope-context",
                f"config.json, {name}",
                f"max_position_embeddings {reach}, {original} tokens times {factor}",
                "a context that the scaling reaches",
                f"set max_position_embeddings to {reached}",
                Severity.WARNING,
            )


def _by_layer(stated: Any) -> list[tuple[str, dict[str, Any]]]:
    """The settings, or those of each kind of layer where they differ."""
    if not isinstance(stated, dict):
        return []
    nested = [(f"rope_parameters.{name}", part) for name, part in stated.items() if isinstance(part, dict)]
    return nested or [("rope_parameters", stated)]
