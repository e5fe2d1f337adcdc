"""Codes, scales and minima of one weight as llama.cpp's block formats store them, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.ggml.format import GgmlFormat
from bitwright.formats.ggml.records import fields_of, records_of


@dataclass(frozen=True)
class GgmlCodes(Codes):
    """One weight in a block format. R records and B blocks in all, row-major."""

    parts: ClassVar[tuple[str, ...]] = ("records",)

    format: GgmlFormat
    shape: tuple[int, ...]
    code: Tensor  # uint8 [prod(shape)]
    scale: Tensor  # float16 [R], or uint8 [R]: the exponent of a power of two
    minimum: Tensor | None = None  # float16 [R]
    scale_step: Tensor | None = None  # int8 [B]
    minimum_step: Tensor | None = None  # int8 [B]

    def block_scales(self) -> Tensor:
        """Scale of each block, float32 [B]."""
        scale = power_of_two(self.scale) if self.scale.dtype == torch.uint8 else self.scale.float()
        return scale if self.scale_step is None else _times_steps(scale, self.scale_step)

    def block_minima(self) -> Tensor | None:
        """What is added to each weight of a block, float32 [B]; with steps the file holds its negative."""
        if self.minimum is None:
            return None
        if self.minimum_step is None:
            return self.minimum.float()
        return -_times_steps(self.minimum.float(), self.minimum_step)

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [*shape]: scale * level + minimum in float32, then one rounding to ``dtype``."""
        levels = torch.tensor(self.format.levels, dtype=torch.float32, device=self.code.device)
        values = levels.index_select(0, self.code.int()).reshape(-1, self.format.block)
        values *= self.block_scales()[:, None]
        minima = self.block_minima()
        if minima is not None:
            values += minima[:, None]
        return values.to(dtype).reshape(self.shape)

    @property
    def chosen(self) -> Tensor:
        return self.code

    def tensors(self) -> dict[str, Tensor]:
        return {"records": records_of(self)}

    @classmethod
    def from_tensors(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Self:
        return cls(format, shape, *fields_of(format, shape, tensors["records"]))


def _times_steps(per_record: Tensor, step: Tensor) -> Tensor:
    return (per_record[:, None] * step.reshape(len(per_record), -1).float()).reshape(-1)


def power_of_two(exponent: Tensor) -> Tensor:
    """Half of 2^(exponent - 127), float32: the levels of MXFP4 are stored doubled. OCP Microscaling Formats 1.0, E8M0."""
    wide = exponent.to(torch.int32)
    bits = torch.where(wide < 2, 0x00200000 << wide.clamp(max=1), (wide - 1) << 23)
    return bits.to(torch.int32).view(torch.float32)
