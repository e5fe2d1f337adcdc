"""Will it fit: bytes on disk and in memory of a model that need not be here, format by format (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitwright.estimate.advice import advise
from bitwright.estimate.families import ODD, odd_settings
from bitwright.estimate.footnotes import footnotes
from bitwright.estimate.parts import by_role
from bitwright.estimate.source import Source
from bitwright.estimate.storage import SIXTEEN, stored_nbytes
from bitwright.estimate.workload import CUDA_NBYTES, Workload
from bitwright.models.settings import Config, require_sizes, text_config


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
    """All formats of one model at one context, and what to do."""

    n_parameters: int
    n_active: int  # that take part in one token
    n_by_role: dict[str, int]
    context: int
    batch: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()  # rows that are missing, and rows that hold something else than their names say
    verdict: str = ""  # sentences, a line each
    command: str | None = None  # what to type next; None where nothing needs to be done, or nothing can be

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
    overhead: int | None = None,
    gpu: bool = False,
) -> Estimate:
    """Count ``source`` in every format, and say what to do.

    ``memory``: bytes of the device, for what fits and the longest context that does. ``plans``: further lines, by the bytes
    of their tensors. ``overhead``: bytes that the runtime takes beside the model, told as workspace; where it is not given,
    CUDA_NBYTES on a ``gpu`` and nothing elsewhere.
    """
    beside = (CUDA_NBYTES if gpu else 0) if overhead is None else overhead
    work = Workload(source.config, context, batch, cache_bits, beside, memory)
    text: Config = {}
    try:
        text = text_config(source.config)
        require_sizes(text)
        lines = tuple(_lines(source, text, work, plans or {}))
        notes = source.notes + tuple(footnotes(source.parts, text))
        advice = advise(source, work, {line.format: line.disk_nbytes for line in lines})
    except ODD as error:
        raise odd_settings(text, error) from None
    total, active = (sum(getattr(part, name) for part in source.parts) for name in ("n_parameters", "n_active"))
    return Estimate(total, active, by_role(source.parts), context, batch, lines, notes, advice.verdict, advice.command)


def _lines(source: Source, text: Config, work: Workload, plans: dict[str, int]) -> Iterator[Line]:
    room, cache, workspace = work.room_nbytes, work.cache_nbytes, work.workspace_nbytes
    stored = {f"as it is: {source.stored.format}": source.stored.nbytes} if source.stored else {}
    for name, nbytes in (*stored.items(), *stored_nbytes(source.parts, text).items(), *plans.items()):
        fits = None if room is None else nbytes <= room
        yield Line(name, nbytes, cache, workspace, work.longest_context(nbytes), fits)
