"""Error feedback and coordinate descent for formats with one scale a block of a row's columns, whatever stores that scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from bitwright.rounding.kernels.coordinate_descent import pulls, sweep_columns
from bitwright.rounding.kernels.error_feedback import STEP, Feedback, feed_back
from bitwright.rounding.kernels.grid import Grid
from bitwright.rounding.kernels.scale_search import RATIOS, search_scale


@runtime_checkable
class Scales(Protocol):
    """The scales of one weight as storage holds them: every scale that is set comes back as it will decode."""

    size: int  # columns of a block
    stored: Tensor  # [N, G]
    value: Tensor  # float32 [N, G], what they decode to

    def snap(self, wanted: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """The storable scale nearest to each of ``wanted`` [N] in ``group``: (what is stored, what it decodes to)."""

    def put(self, group: int, stored: Tensor, value: Tensor) -> None:
        """Set the scales [N] of one group."""

    def rows(self, part: slice) -> Scales:
        """The scales of some rows: what is put there is put here."""


class BlockSearch:
    """Several formats of one grid side by side while the columns of a weight pass: what ``feed_back`` asks for their scales.

    The scale of a block is searched when its first column is reached, on the weights as corrected so far, weighting column j
    with 1 / U_jj^2, its share of the objective.
    """

    def __init__(
        self,
        weights: Sequence[Float[Tensor, "N K"]],
        factor: Float32[Tensor, "K K"],
        grid: Grid,
        tables: Sequence[Scales],
        ratios: tuple[float, ...] = RATIOS,
    ) -> None:
        self.grid, self.tables, self.ratios, self.n_rows = grid, tables, ratios, len(weights[0])
        self.importance = factor.diagonal().pow(-2)[:, None]  # [K, 1]
        self.w = torch.cat([weight.float().t() for weight in weights], dim=1)  # [K, tables * N]
        self.step = min(STEP, *(table.size for table in tables))

    def enter(self, start: int) -> tuple[Tensor, None]:
        """The scales [tables * N] of the columns from ``start`` on."""
        values = []
        for i, table in enumerate(self.tables):
            group, offset = divmod(start, table.size)
            if offset == 0:
                block = slice(start, start + table.size)
                part = self.w[block, i * self.n_rows : (i + 1) * self.n_rows]
                snap = partial(_snap, table, group)
                table.put(group, *search_scale(part, self.importance[block], self.grid, snap, self.ratios))
            values.append(table.value[:, group])
        return torch.cat(values), None

    def split(self, codes: UInt8[Tensor, "K R"]) -> list[UInt8[Tensor, "K N"]]:
        """``codes`` of all formats as those of each."""
        return list(torch.split(codes, self.n_rows, dim=1))


def round_blocks(
    weight: Float[Tensor, "N K"],
    feedback: Feedback,
    grid: Grid,
    levels: Float32[Tensor, " L"],
    tables: Sequence[Scales],
    ratios: tuple[float, ...] = RATIOS,
    sweeps: int = 1,
) -> list[UInt8[Tensor, "K N"]]:
    """Codes [K, N] of ``weight`` for each of ``tables``, whose scales follow; ``levels`` by code.

    Where ``feedback`` has something for rows, part by part, later parts making good what earlier ones became. Scales may be
    multiples of something common, so all parts share their tables.
    """
    rows = feedback.rows
    if rows is None:
        return _round([weight.float()] * len(tables), feedback, grid, levels, tables, ratios, sweeps)
    targets = [weight.float()[rows.order] for _ in tables]
    codes = [torch.empty(weight.shape[::-1], dtype=torch.uint8, device=weight.device) for _ in tables]
    for part, own in rows.parts:
        views = [table.rows(own) for table in tables]
        found = _round([target[part] for target in targets], feedback, grid, levels, views, ratios, sweeps)
        for target, code, view, whole in zip(targets, found, views, codes, strict=True):
            rows.absorb(target, part, _decoded(code, levels, view))
            whole[:, own] = code
    return codes


def _round(
    weights: Sequence[Tensor],
    feedback: Feedback,
    grid: Grid,
    levels: Tensor,
    tables: Sequence[Scales],
    ratios: tuple[float, ...],
    sweeps: int,
) -> list[Tensor]:
    """Codes [K, N] of ``weights``, one for each of ``tables``: error feedback side by side, then coordinate descent."""
    search = BlockSearch(weights, feedback.factor, grid, tables, ratios)
    started = search.split(feed_back(search.w, feedback.factor, grid, search.step, search.enter))
    return [
        descend_blocks(weight, code.contiguous(), _decoded(code, levels, table), grid, levels, table, feedback.moment, sweeps)
        for weight, code, table in zip(weights, started, tables, strict=True)
    ]


def _decoded(code: Tensor, levels: Tensor, table: Scales) -> Tensor:
    """Weights [N, K] of ``code`` [K, N] under the scales as they are."""
    level = levels[code.int()].t()
    return (level.reshape(*table.value.shape, -1) * table.value[:, :, None]).reshape(level.shape)


def _snap(table: Scales, group: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
    return table.snap(wanted, group)


def descend_blocks(
    weight: Float[Tensor, "N K"],
    code: UInt8[Tensor, "K N"],
    decoded: Float32[Tensor, "N K"],
    grid: Grid,
    levels: Float32[Tensor, " L"],
    table: Scales,
    moment: Float32[Tensor, "K K"],
    sweeps: int,
) -> UInt8[Tensor, "K N"]:
    """Codes [K, N] with no larger tr(dW S dW^T) than ``code`` [K, N] has; scales in ``table`` follow.

    weight [N, K], what it decodes to now [N, K] (overwritten), ``levels`` by code, damped S = ``moment`` [K, K]. Block by
    block. The scale first: with the codes c of a block fixed, the best change of its scale is c^T (S e) / c^T S c, where
    e = w - q is the error of the row; it is snapped to what storage holds and taken if it helps. Then each column j of the
    block: the best value is w_j + sum_{k != j} e_k S_kj / S_jj, snapped to the grid.
    """
    size = table.size
    error = torch.sub(weight.float(), decoded, out=decoded).t().contiguous()  # [K, N]
    for _ in range(sweeps):
        for block, pull in pulls(moment, error, size):
            inner = moment[block, block]
            target = weight[:, block].float().t().contiguous()
            level = levels[code[block].int()]
            scale = _refit(table, block.start // size, level, inner, pull, error[block])
            code[block] = sweep_columns(grid, target, error[block], pull, inner, scale)
    return code


def _refit(table: Scales, group: int, level: Tensor, inner: Tensor, pull: Tensor, error: Tensor) -> Tensor:
    """The best storable scale [N] of one block given its levels [B, N]; ``error`` and ``pull`` follow in place."""
    old = table.value[:, group]
    image = inner @ level  # S c
    slope, bend = (level * pull).sum(0), (level * image).sum(0)
    wanted = old + torch.where(bend > 0, slope / bend.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    stored, value = table.snap(wanted, group)
    change = value - old
    better = change * (change * bend - 2 * slope) < 0
    change = torch.where(better, change, 0.0)
    table.put(group, torch.where(better, stored, table.stored[:, group]), torch.where(better, value, old))
    error -= level * change
    pull -= image * change
    return table.value[:, group]
