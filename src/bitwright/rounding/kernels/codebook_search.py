"""Rounding into llama.cpp's codebook formats: entries chosen by weighted distance, errors fed forward group by group.

Eight columns are rounded at once, since their entries and the parity of their signs belong together; the columns that follow
absorb the error of all eight (vector quantization under GPTQ's feedback: GPTVQ, arXiv 2402.15319). A sweep of coordinate
descent then offers every eight columns another choice, which is taken where the objective falls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats.iq.codes import CodebookCodes
from bitwright.formats.iq.format import SIGNED, CodebookFormat
from bitwright.rounding.kernels.codebook import Choice, Codebook
from bitwright.rounding.kernels.coordinate_descent import pulls
from bitwright.rounding.kernels.grid import reciprocal

RATIOS = (0.55, 0.65, 0.75, 0.85, 0.95, 1.05)  # trial scales, to the one at which the largest weight is the largest number
STEPS_BESIDE = 1  # integer steps on either side of the wanted one that are tried for a block


class Chosen:
    """The entries, signs and scales of one weight in a codebook format; tables are [K / what each is for, N]."""

    def __init__(self, format: CodebookFormat, entry: Tensor, sign: Tensor, step: Tensor) -> None:
        self.format, self.entry, self.sign, self.step = format, entry, sign, step
        self.codebook = Codebook.of(format, entry.device)
        self.unit: Tensor  # float16 [K / record, N], of the steps

    @classmethod
    def of(cls, codes: CodebookCodes) -> Chosen:
        """What ``codes`` hold, to be changed further."""
        entry, sign, step, unit = (
            part.reshape(codes.shape[0], -1).t().clone(memory_format=torch.contiguous_format)
            for part in (codes.entry, codes.sign, codes.step, codes.scale)
        )
        chosen = cls(codes.format, entry, sign, step)
        chosen.unit = unit
        return chosen

    def _choose(self, target: Tensor, importance: Tensor, scale: Tensor, shift: Tensor | None) -> Choice:
        """The entries nearest to eight columns ``target`` [8, N], weighted by ``importance`` [8], under ``scale`` [N]."""
        return self.codebook.choose(target * reciprocal(scale), importance, shift)

    def _put(self, first: int, found: Choice, where: Tensor | None = None) -> None:
        """Store the choice for the eight columns from ``first`` on, for rows ``where`` [N] or all."""
        for table, width, new in (
            (self.entry, self.format.group, found.entry),
            (self.sign, self.format.shifted or 1, found.sign),
        ):
            if width == self.format.block and self.format.signs == "none" and table is self.sign:
                part = slice(first // width, first // width + 1)
            else:
                part = slice(first // width, (first + SIGNED) // width)
            new = new.to(table.dtype)
            table[part] = new if where is None else torch.where(where, new, table[part])

    def descend(self, weight: Tensor, moment: Tensor) -> None:
        """One sweep over all columns, eight at a time, each at a better choice given all others. weight is [K, N]."""
        decoded = self.codes((weight.shape[1], weight.shape[0])).decode().t()
        error = (weight - decoded).contiguous()
        format = self.format
        for group, pull in pulls(moment, error, SIGNED):
            inner, scale = moment[group, group], self._scale(group.start)
            wish = weight[group] - error[group] + torch.linalg.solve(inner, pull)
            shift = self.sign[group.start // format.shifted] if format.shifted == format.block else None
            found = self._choose(wish, inner.diagonal(), scale, shift)
            new = weight[group] - found.value * scale
            change = new - error[group]
            gain = (change * (2 * pull + inner @ change)).sum(0)
            better = gain < 0
            self._put(group.start, found, better)
            error[group] = torch.where(better, new, error[group])

    def _scale(self, column: int) -> Tensor:
        """Of the block of ``column`` [N]."""
        unit = self.unit[column // self.format.record].float() * self.format.gain
        return (self.step[column // self.format.block].float() + 0.5) * unit

    def codes(self, shape: tuple[int, int]) -> CodebookCodes:
        """What was chosen, row-major."""
        parts = (table.t().reshape(-1) for table in (self.entry, self.sign, self.step, self.unit))
        return CodebookCodes(self.format, shape, *parts)


class Search(Chosen):
    """The state of one weight while its columns pass. w is [K, N], tables are [K / block, N]."""

    def __init__(self, w: Tensor, importance: Tensor, format: CodebookFormat) -> None:
        n_cols, n_rows = w.shape
        kinds = ((format.group, torch.int16), (format.shifted or 1, torch.bool), (format.block, torch.uint8))
        empty = (torch.zeros(n_cols // width, n_rows, dtype=kind, device=w.device) for width, kind in kinds)
        super().__init__(format, *empty)
        self.w, self.importance = w, importance
        self.unit = self._record_scales()

    def _record_scales(self) -> Tensor:
        """The 16-bit scale of every record, of which the largest wanted scale of a block is the largest multiple."""
        size = self.format.block
        wanted = []
        for start in range(0, len(self.w), size):
            block = slice(start, start + size)
            top = self.w[block].abs().amax(0) / self.codebook.largest
            trials = torch.stack([top * ratio for ratio in RATIOS])
            costs = torch.stack([self._block_cost(block, scale)[0] for scale in trials])
            wanted.append(trials.gather(0, costs.argmin(0, keepdim=True))[0])
        per_record = self.format.record // size
        highest = torch.stack(wanted).reshape(-1, per_record, self.w.shape[1]).amax(1)
        self.wanted = torch.stack(wanted)
        return (highest / (self.format.gain * (self.format.n_steps - 0.5))).half()

    def feed_back(self, factor: Tensor) -> None:
        """Round all columns in order; those that follow absorb each group's error."""
        size = self.format.block
        for start in range(0, len(self.w), size):
            block = slice(start, start + size)
            scale, shift = self._enter(start)
            for first in range(start, start + size, SIGNED):
                group = slice(first, first + SIGNED)
                found = self._choose(self.w[group], self.importance[group], scale, shift)
                self._put(first, found)
                self._absorb(group, found.value * scale, factor, block.stop)
            done = self.w[block].mul(factor.diagonal()[block].reciprocal()[:, None])
            self.w[block.stop :].addmm_(factor[block, block.stop :].t(), done, alpha=-1)

    def _absorb(self, group: slice, value: Tensor, factor: Tensor, stop: int) -> None:
        """Turn the columns of ``group`` into their errors, and move what follows inside the block up to ``stop``."""
        for offset in range(SIGNED):
            column = group.start + offset
            self.w[column] -= value[offset]
            follow = factor[column, column + 1 : stop] / factor[column, column]
            self.w[column + 1 : stop].addr_(follow, self.w[column], alpha=-1)

    def _enter(self, start: int) -> tuple[Tensor, Tensor | None]:
        """Scale [N] of the block from ``start`` on, by its integer step, and the sign of its shift where the block has one."""
        size, format = self.format.block, self.format
        index, block = start // size, slice(start, start + size)
        unit = self.unit[start // format.record].float() * format.gain
        near = (self.wanted[index] * reciprocal(unit) - 0.5).round()
        steps = [(near + offset).clamp(0, format.n_steps - 1) for offset in range(-STEPS_BESIDE, STEPS_BESIDE + 1)]
        costs, shifts = zip(*(self._block_cost(block, (step + 0.5) * unit) for step in steps), strict=True)
        best = torch.stack(costs).argmin(0, keepdim=True)
        step, shift = (torch.stack(tables).gather(0, best)[0] for tables in (steps, shifts))
        self.step[index] = step.to(torch.uint8)
        return (step + 0.5) * unit, shift if format.shifted == format.block else None

    def _block_cost(self, block: slice, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted squared error [N] of a block under ``scale`` [N], and the better sign of one shift for all of it."""
        w, importance = self.w[block], self.importance[block]
        if self.format.shifted == self.format.block:
            plus, minus = (self._cost(w, importance, scale, torch.full_like(scale, s, dtype=torch.bool)) for s in (False, True))
            return torch.minimum(plus, minus), minus < plus
        return self._cost(w, importance, scale, None), torch.zeros_like(scale, dtype=torch.bool)

    def _cost(self, w: Tensor, importance: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        total = torch.zeros_like(scale)
        for first in range(0, len(w), SIGNED):
            part, weights = w[first : first + SIGNED], importance[first : first + SIGNED]
            value = self._choose(part, weights, scale, shift).value * scale
            total += ((part - value).square_() * weights[:, None]).sum(0)
        return total
