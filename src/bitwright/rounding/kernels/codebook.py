"""The entries of llama.cpp's codebook formats that are nearest to eight weights at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitwright.formats.iq.codes import table_of
from bitwright.formats.iq.format import DELTA, SIGNED, CodebookFormat

CHUNK_ENTRIES = 1 << 22  # distances computed at once


@dataclass
class Choice:
    """What eight columns were rounded to."""

    entry: Tensor  # int64 [8 / group, N]
    sign: Tensor  # bool [8, N]; of a format without signs [1, N], the shift's
    value: Tensor  # float32 [8, N], to be multiplied with the scale


class Codebook:
    """The published table of one format, with what the format says of signs and shifts."""

    def __init__(self, format: CodebookFormat, device: torch.device) -> None:
        self.format = format
        self.table = table_of(format).to(device)
        self.largest = float(self.table.abs().max()) + (DELTA if format.signs == "none" else 0.0)
        numbers = torch.cat([-self.table, self.table]).unique()
        self.spacing = float(numbers[-1] - numbers[0]) / (len(numbers) - 1)  # mean distance of neighbouring numbers

    @classmethod
    @cache
    def of(cls, format: CodebookFormat, device: torch.device) -> Codebook:
        """The codebook of ``format``, made once for each device."""
        return cls(format, device)

    def choose(self, x: Float[Tensor, "8 N"], importance: Float[Tensor, "8"], shift: Bool[Tensor, "N"] | None) -> Choice:
        """What is nearest to ``x``, in units of the scale, weighted by ``importance``. ``shift``: its sign, if given."""
        if self.format.signs == "none":
            if shift is not None:
                return self._shifted(x, importance, shift)
            both = [self._shifted(x, importance, torch.full_like(x[0], s, dtype=torch.bool)) for s in (False, True)]
            costs = [((x - c.value).square() * importance[:, None]).sum(0) for c in both]
            better, (plus, minus) = costs[1] < costs[0], both
            return Choice(*(torch.where(better, getattr(minus, f), getattr(plus, f)) for f in ("entry", "sign", "value")))
        sign = x < 0
        if self.format.signs == "even":
            odd = sign.sum(0) % 2 == 1
            cheapest = (x.abs() * importance[:, None]).argmin(0, keepdim=True)
            flipped = sign.scatter(0, cheapest, ~sign.gather(0, cheapest))
            sign = torch.where(odd, flipped, sign)
        factor = torch.where(sign, -1.0, 1.0)
        entry, value = self._nearest(x * factor, importance)
        return Choice(entry, sign, value * factor)

    def _shifted(self, x: Tensor, importance: Tensor, shift: Tensor) -> Choice:
        delta = torch.where(shift, -DELTA, DELTA)
        entry, value = self._nearest(x - delta, importance)
        return Choice(entry, shift[None], value + delta)

    def _nearest(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Entries int64 [8 / group, N] and their numbers [8, N] that are nearest to ``x`` [8, N]."""
        entries, values = [], []
        for first in range(0, SIGNED, self.format.group):
            part = slice(first, first + self.format.group)
            weights = importance[part]
            norms = self.table.square() @ weights
            rows = max(1, CHUNK_ENTRIES // len(self.table))
            chunks = [
                torch.addmm(norms, (chunk.t() * weights), self.table.t(), alpha=-2).argmin(1)
                for chunk in x[part].split(rows, 1)
            ]
            entries.append(torch.cat(chunks))
            values.append(self.table[entries[-1]].t())
        return torch.stack(entries), torch.cat(values)
