"""The estimate of a model by its name, for Python (no torch)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bitwright.estimate import estimate as by_source
from bitwright.estimate.estimate import Estimate
from bitwright.estimate.source import Source, free_name, read_source
from bitwright.host.sizes import size_nbytes


def estimate(
    model: str | Path,
    memory: str | int | None = None,
    *,
    context: int = 4096,
    batch: int = 1,
    cache_bits: float = 16,
    overhead: str | int | None = None,
    gpu: bool = False,
) -> Estimate:
    """What a model takes on disk and in memory, format by format, before any weight is downloaded.

    Args:
        model: A directory, a config.json, a .gguf file, ``demo``, ``demo-vision``, or a hub id, of which headers are fetched.
        memory: Of the device, ``8GB`` or bytes: says what fits, and how long a context.
        context: Tokens whose keys and values are kept.
        batch: Texts at once.
        cache_bits: Bits of a number in the cache.
        overhead: What the runtime takes beside the model.
        gpu: The memory is a GPU's, of which CUDA takes a part.

    Returns:
        A line for each format, notes, and the command to type next.

    Raises:
        BitwrightError: There is no such model, or its configuration is not known.

    Example:
        >>> bitwright.estimate("demo", "180MB").command  # doctest: +SKIP
        'bitwright quantize demo demo-out.gguf --budget 77.1MB'
    """
    return by_source.estimate(
        source_of(str(model)),
        memory=_nbytes(memory),
        context=context,
        batch=batch,
        cache_bits=cache_bits,
        overhead=_nbytes(overhead),
        gpu=gpu,
    )


def source_of(model: str) -> Source:
    """What is known of ``model`` without its weights; ``demo-vision`` is put together first where it is not there yet."""
    if model != "demo-vision":
        return read_source(model)
    from bitwright.checkpoint.open import local_directory  # loads torch

    return replace(read_source(str(local_directory(model))), model=model, out=free_name(model))


def _nbytes(size: str | int | None) -> int | None:
    return size_nbytes(size) if isinstance(size, str) else size
