"""What each tensor of a model means: its stack and block, its role, whether it can be quantized (no torch)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "text"  # the stack that the output head reads
PROJECTOR = "projector"  # where linears between stacks are counted
VOCABULARY = "vocabulary"  # embedding and head


class Kind(StrEnum):
    """Where a weight takes part: in a block, or at the ends, where its rows are tokens."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    HEAD = "head"
    TIED = "tied"  # embedding and head at once


class Role(StrEnum):
    """Why a tensor is kept as it is."""

    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"
    OUTSIDE = "outside"  # a linear that is in no block
    CONVOLUTION = "convolution"
    RAW = "raw"  # a parameter that is used as it is: positions, class tokens, gates, a projection
    BUFFER = "buffer"  # not a parameter, but stored with them


@dataclass(frozen=True)
class Stack:
    """A run of like blocks that a model calls one after the other: the text decoder, a vision tower."""

    name: str  # text, ...
    path: str  # of the list of blocks in the model
    n_blocks: int
    width: int  # features of a block's input
    kind: str = ""  # what the class of its configuration is called: llama, clip_vision_model, ...


@dataclass(frozen=True, order=True)
class BlockId:
    """One block of one stack."""

    stack: str
    index: int

    def __str__(self) -> str:
        return f"{self.stack}-{self.index:04d}"


@dataclass(frozen=True)
class View:
    """How a matrix [N, K] lies in its parameter."""

    transposed: bool = False  # the parameter is [K, N] (GPT-2's Conv1D)

    def matrix(self, parameter: Tensor) -> Tensor:
        """The matrix [N, K], without a copy."""
        return parameter.t() if self.transposed else parameter


@dataclass(frozen=True)
class Weight:
    """A matrix that can be stored in a quantized format: y = W x with W of N rows (outputs) and K columns (inputs)."""

    name: str  # parameter name, for example model.layers.3.mlp.down_proj.weight
    at: BlockId  # of embedding and head the one after the last of the text stack; of linears between stacks PROJECTOR, 0
    n_rows: int
    n_cols: int
    nbytes: int  # in 16 bit
    kind: Kind = Kind.LINEAR
    view: View = View()
    as_stored: str = ""  # its name in a checkpoint, where that is another

    @property
    def tensor(self) -> str:
        """Its name in a checkpoint."""
        return self.as_stored or self.name

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def role(self) -> str:
        return self.module.rsplit(".", 1)[-1]

    @property
    def group(self) -> str:
        """Part of the model: a stack's name, PROJECTOR, VOCABULARY."""
        return self.at.stack if self.kind == Kind.LINEAR else VOCABULARY

    @property
    def shape(self) -> tuple[int, int]:
        """Of the parameter, as the checkpoint stores it."""
        return (self.n_cols, self.n_rows) if self.view.transposed else (self.n_rows, self.n_cols)


@dataclass(frozen=True)
class Kept:
    """A tensor that stays as it is, and why."""

    name: str
    shape: tuple[int, ...]
    role: Role
    nbytes: int
    tied_to: str | None = None  # shares its values with this tensor and is not stored
    group: str = TEXT  # part of the model: a stack's name, PROJECTOR, VOCABULARY


@dataclass(frozen=True)
class ModelSpec:
    """All parameters of a model, each exactly once."""

    architecture: str
    stacks: tuple[Stack, ...]
    weights: tuple[Weight, ...]
    kept: tuple[Kept, ...]

    @property
    def text(self) -> Stack:
        """The stack that the output head reads."""
        return self.stacks[-1]

    @property
    def between(self) -> BlockId | None:
        """Where linears between stacks are counted; None in a model of one stack."""
        return BlockId(PROJECTOR, 0) if len(self.stacks) > 1 else None

    @property
    def after_blocks(self) -> BlockId:
        """Where embedding and head are counted: behind the last block."""
        return BlockId(self.text.name, self.text.n_blocks)

    def blocks(self) -> tuple[BlockId, ...]:
        """Every block, in the order in which a forward pass meets them."""
        return tuple(BlockId(stack.name, index) for stack in self.stacks for index in range(stack.n_blocks))

    def weights_at(self, block: BlockId) -> tuple[Weight, ...]:
        return tuple(weight for weight in self.weights if weight.at == block)

    @property
    def vocabulary(self) -> tuple[Weight, ...]:
        """The weights whose rows are tokens, where the container quantizes them."""
        return tuple(weight for weight in self.weights if weight.kind != Kind.LINEAR)

    @property
    def kept_nbytes(self) -> int:
        return sum(kept.nbytes for kept in self.kept if kept.tied_to is None)

    def group(self, parameter: str) -> str:
        """The part of the model that one parameter is counted in."""
        return self._groups[parameter]

    @cached_property
    def _groups(self) -> dict[str, str]:
        return {weight.name: weight.group for weight in self.weights} | {kept.name: kept.group for kept in self.kept}

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The shape of one parameter as the checkpoint stores it."""
        return self._shapes[parameter]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {weight.name: weight.shape for weight in self.weights} | {kept.name: kept.shape for kept in self.kept}

    def coverage(self) -> list[dict[str, object]]:
        """One row per group and role: tensors, parameters, share of all parameters, and how they are treated."""
        counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        for weight in self.weights:
            row = counts[weight.group, weight.role, "measured and allocated"]
            row[0] += 1
            row[1] += weight.n_rows * weight.n_cols
        for kept in self.kept:
            if kept.tied_to is None:
                row = counts[kept.group, kept.role.value, "kept in 16 bit"]
                row[0] += 1
                row[1] += prod(kept.shape)
        total = sum(parameters for _, parameters in counts.values())
        names = ("group", "role", "treatment", "tensors", "parameters", "share")
        return [dict(zip(names, (*key, n, size, size / total), strict=True)) for key, (n, size) in counts.items()]
