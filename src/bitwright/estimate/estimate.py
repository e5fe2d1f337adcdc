"""Will it fit: bytes on disk and in memory of a model that need not be here, format by format (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitwright.estimate.cache import cache_nbytes, longest_context
from bitwright.estimate.families import ODD, odd_settings
from bitwright.estimate.parts import by_role
from bitwright.estimate.source import Source
from bitwright.estimate.storage import SIXTEEN, stored_nbytes
from bitwright.models.settings import Config, require_sizes, text_config, unknown_types

CHUNK_TOKENS = 512  # of a prompt that are worked on at once


@dataclass(frozen=True)
class Line:
    """One format. Memory is what is stored, the cache of the context, and workspace."""

    format: str
    disk_nbytes: int
    cache_nbytes: int
    workspace_nbytes: int
    longest_context: int | None  # tokens, where a memory was named
    fits: bool | None

    @property
    def memory_nbytes(self) -> int:
        return self.disk_nbytes + self.cache_nbytes + self.workspace_nbytes


@dataclass(frozen=True)
class Estimate:
    """All formats of one model at one context."""

    n_parameters: int
    n_active: int  # that take part in one token
    n_by_role: dict[str, int]
    context: int
    batch: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Line | None:
        """The line that fits with the most bytes a weight, 16 bit at most."""
        usable = [line for line in self.lines if line.fits and line.disk_nbytes <= self._sixteen.disk_nbytes]
        return max(usable, key=lambda line: line.disk_nbytes, default=None)

    @property
    def _sixteen(self) -> Line:
        return next(line for line in self.lines if line.format == SIXTEEN)


def estimate(
    source: Source,
    *,
    memory: int | None = None,
    context: int = 4096,
    batch: int = 1,
    cache_bits: float = 16,
    plans: dict[str, int] | None = None,
    overhead: int = 0,
) -> Estimate:
    """Count ``source`` in every format.

    ``memory``: bytes of the device, for what fits and the longest context that does. ``plans``: further lines, by the bytes
    of their tensors. ``overhead``: bytes that the runtime takes beside the model, such as half a gigabyte of a CUDA context;
    told as workspace.
    """
    text: Config = {}
    try:
        text = text_config(source.config)
        require_sizes(text)
        lines = tuple(_lines(source, text, memory, context, batch, cache_bits, plans or {}, overhead))
    except ODD as error:
        raise odd_settings(text, error) from None
    total, active = (sum(getattr(part, name) for part in source.parts) for name in ("n_parameters", "n_active"))
    unknown = tuple(f"layers of the kind {kind!r} are counted as full attention" for kind in unknown_types(text))
    return Estimate(total, active, by_role(source.parts), context, batch, lines, source.notes + unknown)


def _lines(
    source: Source,
    text: Config,
    memory: int | None,
    context: int,
    batch: int,
    cache_bits: float,
    plans: dict[str, int],
    overhead: int,
) -> Iterator[Line]:
    config = source.config
    cache, workspace = cache_nbytes(config, context, batch, cache_bits), workspace_nbytes(text, batch) + overhead
    stored = {f"as it is: {source.stored.format}": source.stored.nbytes} if source.stored else {}
    for name, nbytes in (stored | stored_nbytes(source.parts, text) | plans).items():
        room = None if memory is None else memory - nbytes - workspace
        longest = None if room is None else longest_context(config, max(0, room), batch, cache_bits) if room > 0 else 0
        yield Line(name, nbytes, cache, workspace, longest, None if room is None else room >= cache)


def workspace_nbytes(text: Config, batch: int) -> int:
    """What one forward pass needs beside weights and cache: activations of one chunk in 16 bit, logits in 32.

    Of a token the residual stream, its norm, queries, keys and values, and both inner vectors of the feed-forward layer are
    alive at once.
    """
    hidden, inner = int(text["hidden_size"]), int(text.get("intermediate_size") or 0)
    return 2 * batch * CHUNK_TOKENS * (6 * hidden + 3 * inner) + 4 * batch * int(text["vocab_size"])
