"""What every format and its codes promise, whatever the family (no torch until a tensor is made).

A format is a numeric contract: which numbers a code stands for and how scales are stored. Where the bytes lie in a file is the
container's business: it may permute bits and never rounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Format(ABC):
    """One way to store a matrix [N, K]. Every subclass is a frozen dataclass with a ``name``."""

    name: str

    @abstractmethod
    def unavailable(self, n_cols: int) -> str | None:
        """Why rows of ``n_cols`` weights cannot be stored, or None."""

    def rows_together(self, n_cols: int) -> int:
        """How many rows of ``n_cols`` weights share something that is stored, and are rounded together."""
        return 1


@dataclass(frozen=True)
class SixteenBit(Format):
    """The weight as the source stores it: bfloat16 or float16, unchanged."""

    name: str = "16bit"

    def unavailable(self, n_cols: int) -> str | None:
        return None


SIXTEEN_BIT = SixteenBit()


def whole_groups(n_cols: int, size: int) -> str | None:
    """Why rows of ``n_cols`` columns are not whole groups of ``size``, or None.

    >>> whole_groups(576, 128), whole_groups(576, 64)
    ('rows of 576 columns are not a multiple of 128', None)
    """
    return f"rows of {n_cols} columns are not a multiple of {size}" if n_cols % size else None


class Codes(ABC):
    """One weight in one format: what a file stores of it, and what that decodes to."""

    format: Any  # a Format of the family
    shape: tuple[int, ...]
    parts: ClassVar[tuple[str, ...]]  # every name that ``tensors`` may give
    common: ClassVar[tuple[str, ...]] = ()  # those of them that are the same for any rows of the weight
    gpu_tile: ClassVar[int] = 1 << 24  # weights that a GPU decodes at once for a product: many small products are slow

    @abstractmethod
    def decode(self, dtype: torch.dtype = ...) -> Tensor:
        """The weights [*shape]: computed in float32, then rounded once to ``dtype``."""

    @property
    @abstractmethod
    def chosen(self) -> Tensor:
        """The code of every weight, or of as many together as share one; scales are no part of it."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Codes and scales as small as in a checkpoint, for the work directory and for the writers."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of ``tensors``."""

    @classmethod
    def decode_packed(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """What ``from_tensors`` and ``decode`` give, without a stop between them where a family knows a shorter way."""
        return cls.from_tensors(format, shape, tensors).decode(dtype)


@dataclass(frozen=True)
class Packed:
    """One weight's codes as files keep them. Between rounding and a file nothing unpacks them."""

    format: Format
    shape: tuple[int, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, codes: Codes) -> Packed:
        return cls(codes.format, codes.shape, codes.tensors())

    def to(self, device: torch.device | str) -> Packed:
        return Packed(self.format, self.shape, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    def rows(self, start: int, stop: int, common: tuple[str, ...] = ()) -> Packed:
        """The rows from ``start`` to ``stop`` of a matrix, as views. Both are multiples of ``rows_together``, or the end.
        ``common``: tensors that are the same for any rows."""
        n_rows = self.shape[0]
        parts = {
            name: tensor if name in common else tensor[len(tensor) * start // n_rows : len(tensor) * stop // n_rows]
            for name, tensor in self.tensors.items()
        }
        return Packed(self.format, (stop - start, *self.shape[1:]), parts)
