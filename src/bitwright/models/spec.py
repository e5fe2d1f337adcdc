"""What each tensor of a model means: its role, its block, whether it can be quantized (no torch)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod

LINEAR, EMBEDDING, HEAD, TIED = "linear", "embedding", "head", "tied"


@dataclass(frozen=True)
class Weight:
    """A matrix that can be stored in a quantized format: y = W x with W of N rows (outputs) and K columns (inputs)."""

    name: str  # parameter name, for example model.layers.3.mlp.down_proj.weight
    block: int  # for embedding and head the number of blocks
    n_rows: int
    n_cols: int
    transposed: bool  # the checkpoint stores [K, N] (GPT-2's Conv1D)
    nbytes: int  # as the source stores it
    kind: str = LINEAR  # of a block, or one whose rows are tokens: embedding, head, or both at once

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def role(self) -> str:
        return self.module.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Kept:
    """A tensor that stays as it is, and why."""

    name: str
    shape: tuple[int, ...]
    role: str  # embedding, head, norm, bias, outside
    nbytes: int
    tied_to: str | None = None  # shares its values with this tensor and is not stored


@dataclass(frozen=True)
class ModelSpec:
    """All parameters of a model, each exactly once."""

    architecture: str
    n_blocks: int
    weights: tuple[Weight, ...]
    kept: tuple[Kept, ...]

    @property
    def vocabulary(self) -> tuple[Weight, ...]:
        """The weights whose rows are tokens, where the container quantizes them."""
        return tuple(weight for weight in self.weights if weight.kind != LINEAR)

    @property
    def kept_nbytes(self) -> int:
        return sum(kept.nbytes for kept in self.kept if kept.tied_to is None)

    def coverage(self) -> list[dict[str, object]]:
        """One row per role: tensors, parameters, share of all parameters, and how the role is treated."""
        counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for weight in self.weights:
            row = counts[weight.role, "measured and allocated"]
            row[0] += 1
            row[1] += weight.n_rows * weight.n_cols
        for kept in self.kept:
            if kept.tied_to is None:
                row = counts[kept.role, "kept in 16 bit"]
                row[0] += 1
                row[1] += prod(kept.shape)
        total = sum(parameters for _, parameters in counts.values())
        return [
            {"role": role, "tensors": n, "parameters": parameters, "share": parameters / total, "treatment": treatment}
            for (role, treatment), (n, parameters) in counts.items()
        ]
