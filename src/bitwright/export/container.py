"""What an exporter promises: which formats its runtime loads, what each costs in its files, and how it writes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from bitwright.errors import fail
from bitwright.formats.format import Format
from bitwright.formats.pack import AnyCodes
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import ModelSpec, Weight
from bitwright.plan import Plan

CodesOf = Callable[[Weight, str, str], AnyCodes]  # (weight, format, rounding) -> codes as measured


class Container(ABC):
    """One kind of checkpoint. Bytes are those of the files, but for text beside the weights."""

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]  # everything that the runtime loads
    stock_name: ClassVar[str]  # what people get without us, the zero of "+10%"
    suffix: ClassVar[str] = ""  # of a container that is one file; a directory has none
    stores_vocabulary: ClassVar[bool] = False  # whether embedding and head can be quantized
    rounds_on_load: ClassVar[bool] = False  # whether its library quantizes a 16-bit model while loading it

    @abstractmethod
    def menu(self, weight: Weight) -> tuple[str, ...]:
        """Formats in which ``weight`` is measured unless the user asks for others."""

    @abstractmethod
    def stock(self, spec: ModelSpec) -> dict[str, str]:
        """Weight -> format as the container's own quantizer chooses it; weights that it leaves alone are absent."""

    def sizes(self, skeleton: Skeleton) -> dict[str, int]:
        """Bytes of well-known recipes applied to this model, for ``--like``."""
        return {}

    @abstractmethod
    def nbytes(self, format: Format, n_rows: int, n_cols: int) -> int:
        """Bytes that a weight [n_rows, n_cols] takes."""

    @abstractmethod
    def kept_nbytes(self, skeleton: Skeleton) -> int:
        """Bytes of everything that is not a weight."""

    @abstractmethod
    def unavailable(self, format: Format, n_rows: int, n_cols: int) -> str | None:
        """Why a weight [n_rows, n_cols] cannot be stored in ``format``, or None."""

    def require(self, skeleton: Skeleton) -> None:  # noqa: B027
        """Raise BitwrightError when the runtime does not run this model."""

    @abstractmethod
    def write(self, out: Path, skeleton: Skeleton, plan: Plan, codes_of: CodesOf) -> int:
        """Write the model at ``out``, an existing empty directory or a new file; returns its bytes."""


def container_of(name: str) -> Container:
    """The container called ``name``; raises BitwrightError for an unknown one."""
    from bitwright.export.bitsandbytes import BITSANDBYTES
    from bitwright.export.gguf import GGUF

    known = {container.name: container for container in (BITSANDBYTES, GGUF)}
    if name not in known:
        raise fail(
            "container/unknown", "--container", saw=name, wanted=f"one of {', '.join(known)}", help="--container bitsandbytes"
        )
    return known[name]
