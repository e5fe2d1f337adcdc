"""Rounding into symmetric integers with one scale a group of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.group.codes import GroupCodes
from bitwright.formats.group.format import GROUP_FORMATS, GroupFormat
from bitwright.rounding.base import SWEEPS, Rounder, side_by_side
from bitwright.rounding.kernels.blocks import descend_blocks, round_blocks
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.grid import UniformGrid, reciprocal
from bitwright.rounding.kernels.lattice import ScalarLattice
from bitwright.rounding.kernels.scale_search import RATIOS

# Trial scales by number of bits, as ratios to the scale at which the largest weight still fits: few levels clip early.
RATIOS_OF_BITS = {
    2: tuple(1.0 - 0.06 * i for i in range(13)),
    3: (1.06, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58),
    4: RATIOS,
    5: (1.03, 1.0, 0.97, 0.94, 0.91),
    6: (1.02, 1.0, 0.98, 0.96),
    8: (1.01, 1.0, 0.98),
}


class GroupRounder(Rounder):
    """Two to eight bits, groups of 32 to 128 columns."""

    formats: ClassVar[Mapping[str, GroupFormat]] = GROUP_FORMATS
    codes: ClassVar[type[Codes]] = GroupCodes

    def nearest(self, weight: Tensor, format: GroupFormat) -> GroupCodes:
        return nearest_group(weight, format)

    def calibrated(self, weight: Tensor, feedback: Feedback, formats: Sequence[GroupFormat]) -> list[Codes]:
        return list(round_groups(weight, feedback, formats))

    def descended(self, weight: Tensor, codes: GroupCodes, moment: Tensor) -> GroupCodes:
        table, grid, levels = GroupScales.of(codes), grid_of(codes.format), levels_of(codes.format, weight.device)
        code = codes.code.t().clone(memory_format=torch.contiguous_format)
        return table.codes(descend_blocks(weight, code, codes.decode(), grid, levels, table, moment, SWEEPS))

    def lattice(self, codes: GroupCodes) -> ScalarLattice:
        scale = codes.scale.float() * -codes.format.lowest
        return ScalarLattice(codes.format.group_size, scale, None, grid_of(codes.format))

    def rescaled(self, codes: GroupCodes, scale: Tensor, minimum: Tensor | None) -> GroupCodes:
        return replace(codes, scale=(scale / -codes.format.lowest).bfloat16())


GROUP = GroupRounder()


def nearest_group(weight: Tensor, format: GroupFormat) -> GroupCodes:
    """Codes of ``weight`` [N, K] as compressed-tensors sets them: scale = 2 max |w| / (2^bits - 1) of each group.

    Raises ValueError where rows are not whole groups.
    """
    groups = _groups(weight, format)
    scale = (groups.abs().amax(2) / ((format.highest - format.lowest) / 2)).bfloat16()
    code = (groups * reciprocal(scale.float())[:, :, None]).round_().clamp_(format.lowest, format.highest)
    return GroupCodes(format, tuple(weight.shape), (code - format.lowest).to(torch.uint8).reshape(weight.shape), scale)


def round_groups(weight: Tensor, feedback: Feedback, formats: Sequence[GroupFormat], sweeps: int = SWEEPS) -> list[GroupCodes]:
    """Calibrated codes of ``weight`` [N, K] in each of ``formats``, those of as many bits side by side.

    Raises ValueError for a format whose groups do not fill the rows.
    """
    done: dict[str, GroupCodes] = {}
    for same in side_by_side(weight, formats, lambda format: format.bits):
        first = same[0]
        grid, levels = grid_of(first), levels_of(first, weight.device)
        tables = [GroupScales(format, _groups(weight, format).abs().amax(2)) for format in same]
        found = round_blocks(weight, feedback, grid, levels, tables, RATIOS_OF_BITS[first.bits], sweeps)
        for table, code in zip(tables, found, strict=True):
            done[table.format.name] = table.codes(code)
    return [done[format.name] for format in formats]


def grid_of(format: GroupFormat) -> UniformGrid:
    """The integers of ``format``, the lowest of which is the level -1."""
    return UniformGrid(format.lowest, 1 << format.bits, float(-format.lowest))


def levels_of(format: GroupFormat, device: torch.device) -> Tensor:
    """The level of each code, float32."""
    return torch.arange(format.lowest, format.highest + 1, device=device) / -format.lowest


class GroupScales:
    """The scales of one weight, bfloat16 in storage; ``value`` is what the grid's level 1 decodes to: 2^(bits - 1) scales."""

    def __init__(self, format: GroupFormat, wanted: Tensor) -> None:
        """``wanted`` [N, G]: first values, on the scale of ``value``."""
        self.format, self.size = format, format.group_size
        self.stored, self.value = self.snap(wanted, 0)

    @classmethod
    def of(cls, codes: GroupCodes) -> GroupScales:
        """The scales of ``codes``, to be changed further."""
        return cls(codes.format, codes.scale.float() * -codes.format.lowest)

    def snap(self, wanted: Tensor, group: int) -> tuple[Tensor, Tensor]:
        stored = (wanted / -self.format.lowest).bfloat16()
        return stored, stored.float() * -self.format.lowest

    def put(self, group: int, stored: Tensor, value: Tensor) -> None:
        self.stored[:, group] = stored
        self.value[:, group] = value

    def rows(self, part: slice) -> GroupScales:
        """The scales of some rows: what is put there is put here."""
        view = copy(self)
        view.stored, view.value = self.stored[part], self.value[part]
        return view

    def codes(self, code: Tensor) -> GroupCodes:
        """``code`` [K, N] with the scales as they are now."""
        return GroupCodes(self.format, (code.shape[1], code.shape[0]), code.t().contiguous(), self.stored.clone())


def _groups(weight: Tensor, format: GroupFormat) -> Tensor:
    """``weight`` [N, K] as float32 [N, G, group_size]."""
    if reason := format.unavailable(weight.shape[1]):
        raise ValueError(f"{format.name}: {reason}")
    return weight.float().reshape(len(weight), -1, format.group_size)
