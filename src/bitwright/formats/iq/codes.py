"""Entries, signs and scales of one weight as llama.cpp's codebook formats store them, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import gguf
import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.iq.format import DELTA, CodebookFormat
from bitwright.formats.iq.records import fields_of, records_of


@cache
def table_of(format: CodebookFormat) -> Tensor:
    """The entries of ``format``, float32 [n, group], as the gguf package carries them."""
    source = getattr(gguf.quants, format.name.upper())
    source.init_grid()
    return torch.from_numpy(source.grid.reshape(source.grid_shape).copy()).float()


@dataclass(frozen=True)
class CodebookCodes(Codes):
    """One weight in a codebook format. R records, row-major."""

    parts: ClassVar[tuple[str, ...]] = ("records",)

    format: CodebookFormat
    shape: tuple[int, ...]
    entry: Tensor  # int16 [prod(shape) / group]
    sign: Tensor  # bool [prod(shape)], negative; for formats without signs bool [prod(shape) / shifted]
    step: Tensor  # uint8 [prod(shape) / block]
    scale: Tensor  # float16 [R]

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [*shape] in float32, by the gguf package's order of operations, then rounded to ``dtype``."""
        format = self.format
        values = table_of(format).to(self.entry.device).index_select(0, self.entry.int()).reshape(-1)
        per_record = self.scale.float().repeat_interleave(format.record // format.block)
        scales = (per_record * (self.step.float() + 0.5) * format.gain).repeat_interleave(format.block)
        if format.signs == "none":
            values += torch.where(self.sign, -DELTA, DELTA).repeat_interleave(format.shifted)
            values *= scales
        else:
            values = scales * values * torch.where(self.sign, -1.0, 1.0)
        return values.to(dtype).reshape(self.shape)

    @property
    def chosen(self) -> Tensor:
        return self.entry

    def tensors(self) -> dict[str, Tensor]:
        return {"records": records_of(self)}

    @classmethod
    def from_tensors(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Self:
        return cls(format, shape, *fields_of(format, shape, tensors["records"]))
