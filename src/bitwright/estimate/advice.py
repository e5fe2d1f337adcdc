"""What to do about it: the command to type next, or what to change first (no torch)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bitwright.estimate.source import Source
from bitwright.estimate.storage import SIXTEEN
from bitwright.estimate.workload import Workload
from bitwright.estimate.writable import Writable, obstacle, writable
from bitwright.host.sizes import as_option, in_units, rounded_down, rounded_up
from bitwright.models.settings import text_config

SHORTEST = 256  # tokens; a context for a question and its answer
NARROW_CACHE = 8  # bits that runtimes offer for keys and values
READ_BACK = 1  # byte that a size with a decimal point may lose
NOTHING_STORABLE = "no matrix of it can be stored in blocks of 4 bit"


@dataclass(frozen=True)
class Advice:
    """``verdict``: sentences, a line each; empty where the command says it all. ``command``: None where none would work."""

    verdict: str
    command: str | None = None


def advise(source: Source, work: Workload, rows: dict[str, int]) -> Advice:
    """What to do with ``source`` under ``work``. ``rows``: format -> bytes of all tensors, of the whole table."""
    reason = obstacle(source.parts, text_config(source.config))
    if _fits_as_it_is(source, work) and (source.obstacle or reason):
        return Advice(_as_it_is(source))
    if work.memory is not None and rows[SIXTEEN] + work.beside_nbytes <= work.memory:
        return Advice(f"16 bit fits into {in_units(work.memory)}: nothing needs to be quantized")
    kinds = () if reason else writable(source.config, source.parts, rows)
    if not kinds:
        return Advice(_not_written(reason or NOTHING_STORABLE, work, rows))
    room = work.room_nbytes
    if room is None:
        return _typed(source, kinds[0], kinds[0].usual, "")
    chosen = _chosen(kinds, room)
    if chosen is None:
        return Advice(_nothing_fits(kinds, work, rows))
    options = f"--budget {as_option(rounded_down(room))}"
    if not _fits_as_it_is(source, work):
        return _typed(source, chosen, options, _why(chosen, kinds, room))
    if chosen.suffix:
        return Advice(_as_it_is(source))
    return _typed(source, chosen, options, f"{_as_it_is(source)}, unless {chosen.reader} is to load it:")


def _fits_as_it_is(source: Source, work: Workload) -> bool:
    """Whether ``source`` is quantized already, and fits so."""
    stored, room = source.stored, work.room_nbytes
    return stored is not None and stored.quantized and room is not None and stored.nbytes <= room


def _as_it_is(source: Source) -> str:
    return f"it fits as it is ({source.stored.format if source.stored else ''}): nothing needs to be quantized"


def _chosen(kinds: tuple[Writable, ...], room: int) -> Writable | None:
    """The first whose stock fits, which has 4 bit everywhere; else the smallest, which is GGUF where it can be."""
    fitting = [kind for kind in kinds if kind.least_nbytes <= room]
    roomy = [kind for kind in fitting if kind.stock_nbytes <= room]
    return roomy[0] if roomy else min(fitting, key=lambda kind: kind.least_nbytes, default=None)


def _why(chosen: Writable, kinds: tuple[Writable, ...], room: int) -> str:
    words = f"{in_units(rounded_down(room))} are left for weights: {chosen.container}, for {chosen.reader}"
    if chosen is kinds[0]:
        return words
    return f"{words}; {kinds[0].container} in plain 4 bit takes {in_units(kinds[0].stock_nbytes)}"


def _typed(source: Source, chosen: Writable, options: str, verdict: str) -> Advice:
    """The command, or why there is none although the model could be written."""
    if source.obstacle:
        told = f"no command: {source.obstacle}. For its 16-bit weights: bitwright quantize MODEL OUT{chosen.suffix} {options}"
        return Advice(f"{verdict}\n{told}".strip())
    words = ["bitwright", "quantize", source.model, f"{source.out}{chosen.suffix}", *options.split()]
    return Advice(verdict, shlex.join(words))


def _not_written(reason: str, work: Workload, rows: dict[str, int]) -> str:
    said = f"no command: {reason}"
    smallest = min(rows, key=lambda name: rows[name])
    if work.room_nbytes is None or rows[smallest] <= work.room_nbytes:
        return said
    return f"{_too_large(f'the smallest row, {smallest},', rows[smallest], work)}\n{said}"


def _nothing_fits(kinds: tuple[Writable, ...], work: Workload, rows: dict[str, int]) -> str:
    least = min(kinds, key=lambda kind: kind.least_nbytes)
    what = f"the smallest that quantize writes ({least.container}, for {least.reader})"
    return _too_large(what, least.least_nbytes, work, "" if min(rows.values()) > (work.room_nbytes or 0) else " of ours")


def _too_large(what: str, weights_nbytes: int, work: Workload, whose: str = "") -> str:
    needed = in_units(rounded_up(weights_nbytes + work.beside_nbytes))
    return (
        f"nothing{whose} fits into {in_units(work.memory or 0)} at this context: {what} takes {in_units(weights_nbytes)}, "
        f"and {needed} with cache and workspace\n"
        f"it fits with {' or '.join(_changes(work, weights_nbytes))}"
    )


def _changes(work: Workload, weights_nbytes: int) -> Iterator[str]:
    """Options, each of which makes room for such weights."""
    longest = work.longest_context(weights_nbytes) or 0
    if SHORTEST <= longest < work.context:
        yield f"--context {longest}"
    n_texts = _most_texts(work, weights_nbytes)
    if n_texts:
        yield f"--batch {n_texts}"
    of_one = replace(work, batch=1).longest_context(weights_nbytes) or 0
    if not n_texts and longest < SHORTEST <= of_one < work.context:
        yield f"--batch 1 --context {of_one}"
    narrow = replace(work, cache_bits=NARROW_CACHE)
    if work.cache_bits > NARROW_CACHE and weights_nbytes <= (narrow.room_nbytes or 0):
        yield f"--cache-bits {NARROW_CACHE}"
    yield f"--memory {as_option(rounded_up(weights_nbytes + work.beside_nbytes + READ_BACK))}"


def _most_texts(work: Workload, weights_nbytes: int) -> int:
    """The largest smaller batch that fits; 0 where one text alone is too much."""
    low, high = 0, work.batch - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = weights_nbytes <= (replace(work, batch=middle).room_nbytes or 0)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
