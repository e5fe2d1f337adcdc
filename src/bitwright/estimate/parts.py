"""What a model is made of: tensors of one shape and role, counted and never built (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

LINEAR = "linear"  # weight of a linear layer in a block, which every quantizer takes
EXPERT = "expert"  # matrices of a mixture of experts, which transformers 5 keeps in one stacked parameter
EMBEDDING, HEAD = "embedding", "head"
OTHER = "other"  # norms, biases, routers, convolutions
VISION_LINEAR, VISION = "vision linear", "vision"  # what sees, and joins sight to language


@dataclass(frozen=True)
class Part:
    """``count`` tensors of one shape. ``active`` of them take part in one token, where a router chooses."""

    role: str
    shape: tuple[int, ...]
    count: int = 1
    active: int | None = None
    name: str = ""  # as GGUF files call it, where it is one matrix of a dense model

    @property
    def n_parameters(self) -> int:
        return prod(self.shape) * self.count

    @property
    def n_active(self) -> int:
        return prod(self.shape) * (self.count if self.active is None else self.active)


Parts = Iterator[Part]


def linear(n_rows: int, n_cols: int, count: int = 1, bias: object = False, name: str = "") -> Parts:
    """``count`` linear layers in the blocks of the language model."""
    yield Part(LINEAR, (n_rows, n_cols), count, name=name)
    if bias:
        yield Part(OTHER, (n_rows,), count)


def sees(n_rows: int, n_cols: int, count: int = 1, bias: object = True) -> Parts:
    """``count`` linear layers of a vision tower or of what joins it to the language model."""
    yield Part(VISION_LINEAR, (n_rows, n_cols), count)
    if bias:
        yield Part(VISION, (n_rows,), count)


def by_role(parts: tuple[Part, ...]) -> dict[str, int]:
    """Role -> parameters."""
    found: dict[str, int] = {}
    for part in parts:
        found[part.role] = found.get(part.role, 0) + part.n_parameters
    return found
