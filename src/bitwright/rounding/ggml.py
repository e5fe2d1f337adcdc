"""Rounding into llama.cpp's block formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.ggml.codes import GgmlCodes
from bitwright.formats.ggml.format import GGML_FORMATS, GgmlFormat
from bitwright.rounding.base import SWEEPS, Rounder, by_parts
from bitwright.rounding.kernels.coordinate_descent import pulls, sweep_columns
from bitwright.rounding.kernels.error_feedback import STEP, Feedback, feed_back
from bitwright.rounding.kernels.ggml_nearest import nearest_ggml
from bitwright.rounding.kernels.ggml_scales import Affine, Scaled, grid_of, largest_level, with_scales
from bitwright.rounding.kernels.lattice import ScalarLattice

FINE_LEVELS = 256  # from here on what calibration gains is below the arithmetic noise of every runtime


class GgmlRounder(Rounder):
    """Records with one scale a block, with or without a minimum."""

    formats: ClassVar[Mapping[str, GgmlFormat]] = GGML_FORMATS
    codes: ClassVar[type[Codes]] = GgmlCodes

    def nearest(self, weight: Tensor, format: GgmlFormat) -> GgmlCodes:
        return nearest_ggml(weight, format)

    def calibrated(self, weight: Tensor, feedback: Feedback, formats: Sequence[GgmlFormat]) -> list[Codes]:
        """Error feedback, then a sweep of coordinate descent over the codes; formats of many levels to nearest."""

        def of(format: GgmlFormat, rows: Tensor) -> Codes:
            return self.descended(rows, ggml_feedback(rows, feedback, format), feedback.moment)

        return [
            nearest_ggml(weight, format)
            if len(format.levels) >= FINE_LEVELS
            else by_parts(weight, feedback.rows, partial(of, format))
            for format in formats
        ]

    def descended(self, weight: Tensor, codes: GgmlCodes, moment: Tensor) -> GgmlCodes:
        """The scales stay as they are, and formats of many levels altogether."""
        return codes if len(codes.format.levels) >= FINE_LEVELS else ggml_descent(weight, codes, moment, SWEEPS)

    def lattice(self, codes: GgmlCodes) -> ScalarLattice:
        format, n_rows = codes.format, codes.shape[0]
        minima = codes.block_minima()
        scale = codes.block_scales().reshape(n_rows, -1) * largest_level(format)
        grid = grid_of(format, scale.device)
        return ScalarLattice(format.block, scale, None if minima is None else minima.reshape(n_rows, -1), grid)

    def rescaled(self, codes: GgmlCodes, scale: Tensor, minimum: Tensor | None) -> GgmlCodes:
        return with_scales(codes, scale / largest_level(codes.format), minimum)


GGML = GgmlRounder()


def ggml_feedback(weight: Tensor, feedback: Feedback, format: GgmlFormat) -> GgmlCodes:
    """Codes of ``weight`` [N, K] in ``format``, lowering tr(dW S dW^T) column by column.

    The unit of each record is fixed first, from scales searched on the weights as they are; the integer steps of its
    blocks are searched when their columns are reached, on the weights as corrected so far. Raises ValueError where rows
    are not whole records.
    """
    if reason := format.unavailable(weight.shape[-1]):
        raise ValueError(f"{format.name}: {reason}")
    importance = feedback.factor.diagonal().pow(-2)[:, None]
    w = weight.float().t().contiguous()
    scales = (Affine if format.has_minimum else Scaled)(w, format, importance)
    code = feed_back(w, feedback.factor, scales.grid, min(STEP, format.block), scales.enter)
    return scales.codes(code.t().reshape(-1), (weight.shape[0], weight.shape[1]))


def ggml_descent(weight: Tensor, codes: GgmlCodes, moment: Tensor, sweeps: int = 1) -> GgmlCodes:
    """Codes with no larger tr(dW S dW^T) than ``codes`` have; weight [N, K], damped S = ``moment`` [K, K]."""
    n_rows, n_cols = weight.shape
    size, grid = codes.format.block, grid_of(codes.format, weight.device)
    unit = largest_level(codes.format)
    scale = codes.block_scales().reshape(n_rows, -1).t().contiguous() * unit  # [K / block, N]
    minima = codes.block_minima()
    minimum = None if minima is None else minima.reshape(n_rows, -1).t().contiguous()
    code = codes.code.reshape(n_rows, n_cols).t().clone(memory_format=torch.contiguous_format)
    decoded = codes.decode()
    error = torch.sub(weight.float(), decoded, out=decoded).t().contiguous()  # [K, N]
    del decoded
    for _ in range(sweeps):
        for group, (block, pull) in enumerate(pulls(moment, error, size)):
            target = weight[:, block].float().t().contiguous()
            if minimum is not None:
                target -= minimum[group]
            code[block] = sweep_columns(grid, target, error[block], pull, moment[block, block], scale[group])
    return replace(codes, code=code.t().reshape(-1))
