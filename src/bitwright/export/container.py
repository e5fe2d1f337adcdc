"""What an exporter promises: which formats its runtime loads, what each costs in its files, and how it writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitwright.errors import fail
from bitwright.formats.codes import Codes
from bitwright.formats.format import Format
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import Weight
from bitwright.plan import Plan

CodesOf = Callable[[Weight, str, str], Codes]  # (weight, format, rounding) -> codes as measured


@dataclass(frozen=True)
class Container:
    """One kind of checkpoint. Bytes are those of tensor data in the files."""

    name: str
    formats: tuple[str, ...]  # everything that the runtime loads
    menu: tuple[str, ...]  # what is measured unless the user asks for more
    stock_format: str  # what its own quantizer writes
    nbytes: Callable[[Format, int, int], int]  # (format, N, K) -> bytes
    unavailable: Callable[[Format, int, int], str | None]  # why a weight of N x K cannot be stored, or None
    write: Callable[[Path, Skeleton, Plan, CodesOf], int]  # returns bytes of tensor data


def container_of(name: str) -> Container:
    """The container called ``name``; raises BitwrightError for an unknown one."""
    from bitwright.export.bitsandbytes import BITSANDBYTES

    known = {container.name: container for container in (BITSANDBYTES,)}
    if name not in known:
        raise fail(
            "container/unknown", "--container", saw=name, wanted=f"one of {', '.join(known)}", help="--container bitsandbytes"
        )
    return known[name]
