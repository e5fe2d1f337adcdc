"""The 16-bit model as files and meaning: where the values of every parameter lie, and what they are for. No live model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.tensors import DTYPES, NAMES
from bitwright.models.spec import ModelSpec

WIDE = ("F32", "F64")


@dataclass(frozen=True)
class Source:
    """What every later stage reads of the model that is quantized."""

    checkpoint: Checkpoint
    spec: ModelSpec
    tensor_of: dict[str, str] = field(repr=False)  # parameter or buffer -> tensor in the checkpoint
    config: Any  # the text model's, a transformers configuration
    wide: frozenset[str] = frozenset()  # parameters and buffers that the class computes with in 32 bit whatever its type

    def read(self, parameter: str) -> Tensor:
        """The values of one parameter as they are stored."""
        return self.checkpoint.read(self.tensor_of[parameter])

    def swapped(self, values: dict[str, Tensor]) -> Source:
        """The same model with other ``values`` for some parameters, in their shapes."""
        return _Swapped(self.checkpoint, self.spec, self.tensor_of, self.config, self.wide, values)

    def written_as(self, parameter: str) -> str:
        """Its name in a checkpoint of ours: with several stacks that of the source, which third parties know the model by."""
        return self.tensor_of[parameter] if len(self.spec.stacks) > 1 else parameter

    def stored_dtype(self, parameter: str) -> torch.dtype:
        """The type in which the source stores it."""
        return DTYPES[self.checkpoint.refs[self.tensor_of[parameter]].dtype]

    def written_dtype(self, parameter: str) -> torch.dtype:
        """The type in which a checkpoint of ours stores it when it is not quantized: that of the source, but 32 bit only where
        the class computes so. Stock loaders of quantized checkpoints take the others as they are and then stop."""
        stored = self.checkpoint.refs[self.tensor_of[parameter]].dtype
        if stored not in WIDE:
            return DTYPES[stored]
        return torch.float32 if parameter in self.wide else torch.bfloat16

    def written_name(self, parameter: str) -> str:
        """The name of that type in a safetensors header."""
        return NAMES[self.written_dtype(parameter)]

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type that a runtime computes in: float16 where all weights are stored so, else bfloat16."""
        stored = {self.checkpoint.refs[self.tensor_of[weight.name]].dtype for weight in self.spec.weights}
        return torch.float16 if stored == {"F16"} else torch.bfloat16

    @cached_property
    def kept_nbytes(self) -> int:
        """Bytes of all that is not a weight, as it is written."""
        kept = [k for k in self.spec.kept if k.tied_to is None]
        return sum(k.nbytes // 2 * self.written_dtype(k.name).itemsize for k in kept)


@dataclass(frozen=True)
class _Swapped(Source):
    values: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def read(self, parameter: str) -> Tensor:
        found = self.values.get(parameter)
        return super().read(parameter) if found is None else found
