"""The runtimes, in the order in which they are asked whether they load a checkpoint."""

from __future__ import annotations

from typing import Any

from bitwright.runtimes import llama_cpp, transformers
from bitwright.runtimes.base import Loaded

RUNTIMES = (llama_cpp, transformers)


def load(candidate: dict[str, Any], device: str, n_tokens: int) -> Loaded:
    """``candidate`` (the fields of evaluate.Candidate) as any user would load it, for texts of up to ``n_tokens``."""
    runtime = next(runtime for runtime in RUNTIMES if runtime.accepts(candidate["path"]))
    loaded: Loaded = runtime.load(candidate, device, n_tokens)
    return loaded
