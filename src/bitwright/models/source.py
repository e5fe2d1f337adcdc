"""The 16-bit model as files and meaning: where the values of every parameter lie, and what they are for. No live model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.tensors import NAMES
from bitwright.models.spec import ModelSpec

SIXTEEN = ("F16", "BF16")
WIDE = ("F32", "F64")


@dataclass(frozen=True)
class Source:
    """What every later stage reads of the model that is quantized."""

    checkpoint: Checkpoint
    spec: ModelSpec
    tensor_of: dict[str, str] = field(repr=False)  # parameter or buffer -> tensor in the checkpoint
    config: Any  # the text model's, a transformers configuration

    def read(self, parameter: str) -> Tensor:
        """The values of one parameter as they are stored."""
        return self.checkpoint.read(self.tensor_of[parameter])

    def written(self, parameter: str) -> Tensor:
        """The values of one parameter as a checkpoint of ours stores them when they are not quantized."""
        return self.read(parameter).to(self.written_dtype(parameter))

    def written_dtype(self, parameter: str) -> torch.dtype:
        """16 bit, but what a 16-bit model keeps in 32 bit on purpose (a norm, a router's bias) stays so."""
        ref = self.checkpoint.refs[self.tensor_of[parameter]]
        if ref.dtype not in WIDE:
            return _dtype(ref.dtype)
        kept = self.is_sixteen_bit and parameter not in self._weights
        return torch.float32 if kept else torch.bfloat16

    def written_name(self, parameter: str) -> str:
        """The name of that type in a safetensors header."""
        return NAMES[self.written_dtype(parameter)]

    @cached_property
    def is_sixteen_bit(self) -> bool:
        """Whether the weights are stored in 16 bit, whatever else is."""
        return all(self.checkpoint.refs[self.tensor_of[name]].dtype in SIXTEEN for name in self._weights)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type that a runtime computes in: float16 where all weights are stored so, else bfloat16."""
        stored = {self.checkpoint.refs[self.tensor_of[name]].dtype for name in self._weights}
        return torch.float16 if stored == {"F16"} else torch.bfloat16

    @cached_property
    def kept_nbytes(self) -> int:
        """Bytes of all that is not a weight, as it is written."""
        kept = [k for k in self.spec.kept if k.tied_to is None]
        return sum(k.nbytes // 2 * self.written_dtype(k.name).itemsize for k in kept)

    @cached_property
    def _weights(self) -> frozenset[str]:
        return frozenset(weight.name for weight in self.spec.weights)


def _dtype(name: str) -> torch.dtype:
    return next(dtype for dtype, known in NAMES.items() if known == name)
