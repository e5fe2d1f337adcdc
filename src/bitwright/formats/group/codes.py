"""Integers and scales of one weight in a group format, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.group.format import GroupFormat
from bitwright.formats.group.words import pack_words, unpack_words


@dataclass(frozen=True)
class GroupCodes(Codes):
    """One weight [N, K] in groups: G = K / group_size of them in a row."""

    parts: ClassVar[tuple[str, ...]] = ("packed", "scale")

    format: GroupFormat
    shape: tuple[int, ...]
    code: Tensor  # uint8 [N, K], the integer minus the lowest one
    scale: Tensor  # bfloat16 [N, G]

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [N, K]: integer times scale in float32, which is exact, then one rounding to ``dtype``."""
        values = (self.code.to(torch.float32) + self.format.lowest).reshape(*self.scale.shape, self.format.group_size)
        return values.mul_(self.scale.float()[:, :, None]).reshape(self.shape).to(dtype)

    @property
    def chosen(self) -> Tensor:
        return self.code

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": pack_words(self.code, self.format.bits), "scale": self.scale}

    @classmethod
    def from_tensors(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Self:
        code = unpack_words(tensors["packed"], format.bits, shape[1])
        return cls(format, shape, code, tensors["scale"])
