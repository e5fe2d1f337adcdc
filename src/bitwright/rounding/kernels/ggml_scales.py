"""Scales and minima of llama.cpp's block formats, searched as they are stored while the columns pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bitwright.formats.ggml.codes import GgmlCodes, power_of_two
from bitwright.formats.ggml.format import GgmlFormat, Steps
from bitwright.rounding.kernels.affine_search import search_affine
from bitwright.rounding.kernels.ggml_nearest import fit_steps
from bitwright.rounding.kernels.grid import Grid, TableGrid, UniformGrid, reciprocal
from bitwright.rounding.kernels.scale_search import RATIOS, search_scale

# Trial scales by number of levels, as ratios to the scale at which the largest weight still fits: few levels clip early.
# Between powers of two there is nothing to choose: four trials hit each of those that can be best.
_POWER_RATIOS = (1.5, 1.06, 0.75, 0.53)
_RATIOS = {
    3: tuple(0.95 - 0.06 * i for i in range(13)),
    8: (1.06, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58),
    32: (1.03, 1.0, 0.97, 0.94, 0.91, 0.88),
    64: (1.01, 1.0, 0.98, 0.96, 0.94),
    256: (1.0,),
}


def grid_of(format: GgmlFormat, device: torch.device) -> Grid:
    """The levels of ``format`` divided by the one of largest magnitude."""
    levels, unit = format.written_levels, largest_level(format)
    if format.is_uniform:
        return UniformGrid(int(levels[0]), len(levels), unit)
    return TableGrid.of(tuple(level / unit for level in levels), device)


def largest_level(format: GgmlFormat) -> float:
    """The magnitude of the largest level that is written."""
    return max(abs(level) for level in format.written_levels)


def with_scales(codes: GgmlCodes, scale: Tensor, minimum: Tensor | None) -> GgmlCodes:
    """``codes`` with the storable scales and minima nearest to ``scale`` and ``minimum`` [N, G], under the units they have."""
    steps, flat = codes.format.steps, scale.reshape(-1)
    lowest = None if minimum is None else minimum.reshape(-1)
    if codes.format.has_power_scale:
        exponent = (flat.abs().clamp(min=1e-38).log2().round_() + 128).clamp_(0, 254)
        return replace(codes, scale=exponent.to(torch.uint8))
    if not steps:
        return replace(codes, scale=flat.half(), minimum=None if lowest is None else lowest.half())
    assert codes.scale_step is not None
    step = _steps(flat, codes.scale, steps)
    if lowest is None:
        return replace(codes, scale_step=step)
    assert codes.minimum is not None
    return replace(codes, scale_step=step, minimum_step=_steps(-lowest, codes.minimum, steps))


def _steps(wanted: Tensor, unit: Tensor, steps: Steps) -> Tensor:
    """Integers int8 [B] whose multiples of ``unit`` [R] come nearest to ``wanted`` [B]."""
    each = wanted.reshape(len(unit), -1) * reciprocal(unit.float())[:, None]
    return each.round_().clamp_(steps.lowest, steps.highest).to(torch.int8).reshape(-1)


def _blocks_as_columns(w: Tensor, importance: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Every block of w [K, N] as a column: [size, K / size * N], and the importance of its entries."""
    n_rows = w.shape[1]
    blocks = w.reshape(-1, size, n_rows).transpose(0, 1).reshape(size, -1)
    weights = importance.reshape(-1, size, 1).expand(-1, -1, n_rows).transpose(0, 1).reshape(size, -1)
    return blocks, weights


class Scaled:
    """The scales of a format without minimum while the columns pass. Tables are [K / block, N]."""

    def __init__(self, w: Tensor, format: GgmlFormat, importance: Tensor) -> None:
        self.w, self.format, self.importance = w, format, importance
        self.grid = grid_of(format, w.device)
        levels = format.written_levels
        self.unit = max(abs(level) for level in levels)
        self.ratios = _POWER_RATIOS if format.has_power_scale else _RATIOS.get(len(levels), RATIOS)
        shape = (len(w) // format.block, w.shape[1])
        self.value = torch.zeros(shape, device=w.device)
        self.stored = torch.zeros(shape, device=w.device)
        if format.steps:
            blocks, weights = _blocks_as_columns(w, importance, format.block)
            wanted = search_scale(blocks, weights, self.grid, lambda scale: (scale, scale), self.ratios)[1] / self.unit
            per_record = format.record // format.block
            grouped = wanted.reshape(-1, per_record, w.shape[1]).transpose(1, 2).reshape(-1, per_record)
            unit, _ = fit_steps(grouped, format.steps.lowest, format.steps.highest)
            self.record_unit = unit.reshape(-1, w.shape[1])  # float16 [K / record, N]

    def _snap(self, wanted: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Scales [N] of one block as they are stored and as they decode, the latter times the largest level."""
        wanted = wanted / self.unit
        if self.format.has_power_scale:
            exponent = (wanted.abs().clamp(min=1e-38).log2().round_() + 128).clamp_(0, 254)
            return exponent, power_of_two(exponent.to(torch.uint8)) * self.unit
        if not self.format.steps:
            stored = wanted.half().float()
            return stored, stored * self.unit
        unit = self.record_unit[group * self.format.block // self.format.record].float()
        step = (wanted * reciprocal(unit)).round_().clamp_(self.format.steps.lowest, self.format.steps.highest)
        return step, step * unit * self.unit

    def enter(self, start: int) -> tuple[Tensor, None]:
        group, offset = divmod(start, self.format.block)
        if offset == 0:
            block = slice(start, start + self.format.block)
            found = search_scale(
                self.w[block], self.importance[block], self.grid, lambda wanted: self._snap(wanted, group), self.ratios
            )
            self.stored[group], self.value[group] = found
        return self.value[group], None

    def codes(self, code: Tensor, shape: tuple[int, int]) -> GgmlCodes:
        stored = self.stored.t().reshape(-1)
        if self.format.has_power_scale:
            return GgmlCodes(self.format, shape, code, stored.to(torch.uint8))
        if not self.format.steps:
            return GgmlCodes(self.format, shape, code, stored.half())
        return GgmlCodes(self.format, shape, code, self.record_unit.t().reshape(-1), scale_step=stored.to(torch.int8))


class Affine:
    """Scales and minima of a format that has both. Tables are [K / block, N]."""

    def __init__(self, w: Tensor, format: GgmlFormat, importance: Tensor) -> None:
        self.w, self.format, self.importance = w, format, importance
        self.top = len(format.levels) - 1
        self.grid = UniformGrid(0, self.top + 1, 1.0)
        shape = (len(w) // format.block, w.shape[1])
        self.tables = [torch.zeros(shape, device=w.device) for _ in range(4)]  # stored scale and minimum, and their values
        if format.steps:
            blocks, weights = _blocks_as_columns(w, importance, format.block)
            _, _, scale, minimum = search_affine(blocks, weights, self.top, _as_wanted)
            self.scale_unit, self.minimum_unit = self._unit(scale), self._unit(-minimum)

    def _unit(self, wanted: Tensor) -> Tensor:
        """Float16 [K / record, N] whose integer multiples are to hold ``wanted``, one for each block."""
        assert self.format.steps
        per_record = self.format.record // self.format.block
        grouped = wanted.reshape(-1, per_record, self.w.shape[1]).amax(1)
        return (grouped / self.format.steps.highest).half()

    def _snap(self, scale: Tensor, minimum: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps = self.format.steps
        if not steps:
            scale, minimum = scale.half().float(), minimum.half().float()
            return scale, minimum, scale, minimum
        record = group * self.format.block // self.format.record
        units = self.scale_unit[record].float(), self.minimum_unit[record].float()
        step = (scale * reciprocal(units[0])).round_().clamp_(0, steps.highest)
        minimum_step = (-minimum * reciprocal(units[1])).round_().clamp_(0, steps.highest)
        return step, minimum_step, step * units[0], -(minimum_step * units[1])

    def enter(self, start: int) -> tuple[Tensor, Tensor]:
        group, offset = divmod(start, self.format.block)
        if offset == 0:
            block = slice(start, start + self.format.block)
            found = search_affine(self.w[block], self.importance[block], self.top, lambda s, m: self._snap(s, m, group))
            for table, values in zip(self.tables, found, strict=True):
                table[group] = values
        return self.tables[2][group], self.tables[3][group]

    def codes(self, code: Tensor, shape: tuple[int, int]) -> GgmlCodes:
        scale, minimum = (table.t().reshape(-1) for table in self.tables[:2])
        if not self.format.steps:
            return GgmlCodes(self.format, shape, code, scale.half(), minimum.half())
        units = self.scale_unit.t().reshape(-1), self.minimum_unit.t().reshape(-1)
        return GgmlCodes(self.format, shape, code, *units, scale.to(torch.int8), minimum.to(torch.int8))


def _as_wanted(scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Any scale of 0 or more and any minimum of 0 or less: what unsigned steps can express."""
    scale, minimum = scale.clamp(min=0), minimum.clamp(max=0)
    return scale, minimum, scale, minimum
