"""What passed through a weight: all that moments and damages are made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Samples that follow each other in the rows of a traffic, each with ``length`` rows."""

    samples: tuple[int, ...]
    start: int
    length: int

    def of(self, rows: Tensor) -> Tensor:
        """Their part of ``rows`` [M, D], as [R, length, D]."""
        stop = self.start + self.length * len(self.samples)
        return rows[self.start : stop].reshape(len(self.samples), self.length, -1)


@dataclass(frozen=True)
class Traffic:
    """Inputs and output gradients of one weight [N, K], row by row. A row is a token of a text, a patch of an image, or a token
    that was routed to one expert; rows of a sample lie together."""

    x: Tensor  # [M, K], inputs
    g: Tensor  # [M, N], gradients of -log p at the outputs
    sample: Tensor  # int64 [M], the number of the sample that each row belongs to

    @classmethod
    def join(cls, parts: list[Traffic]) -> Traffic:
        """The rows of several passes, one after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "g", "sample")))

    def runs(self) -> list[Run]:
        """The rows cut by sample, neighbours of equal length together."""
        samples, counts = torch.unique_consecutive(self.sample.cpu(), return_counts=True)
        found, at, start = [], 0, 0
        for length, group in groupby(counts.tolist()):
            members = tuple(samples[at : at + len(list(group))].tolist())
            found.append(Run(members, start, length))
            at, start = at + len(members), start + length * len(members)
        return found


def narrowed(traffic: dict[str, Traffic], dtype: torch.dtype) -> dict[str, Traffic]:
    """All with inputs and gradients in ``dtype``; weights that share their inputs share them still."""
    inputs: dict[int, Tensor] = {}
    found = {}
    for name, rows in traffic.items():
        at = rows.x.data_ptr()
        if at not in inputs:
            inputs[at] = rows.x.to(dtype)
        found[name] = Traffic(inputs[at], rows.g.to(dtype), rows.sample)
    return found
