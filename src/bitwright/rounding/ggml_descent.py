"""Coordinate descent on the codes of llama.cpp's block formats; scales and minima stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bitwright.formats.ggml_codes import GgmlCodes
from bitwright.rounding.coordinate_descent import sweep_columns
from bitwright.rounding.ggml_feedback import grid_of


def ggml_descent(weight: Tensor, codes: GgmlCodes, moment: Tensor, sweeps: int = 1) -> GgmlCodes:
    """Codes with no larger tr(dW S dW^T) than ``codes`` have; weight [N, K], damped S = ``moment`` [K, K]."""
    n_rows, n_cols = weight.shape
    size, grid = codes.format.block, grid_of(codes.format, weight.device)
    unit = max(abs(level) for level in codes.format.written_levels)
    scale = codes.block_scales().reshape(n_rows, -1).t().contiguous() * unit  # [K / block, N]
    minima = codes.block_minima()
    minimum = None if minima is None else minima.reshape(n_rows, -1).t().contiguous()
    code = codes.code.reshape(n_rows, n_cols).t().contiguous()
    decoded = codes.decode()
    error = torch.sub(weight.float(), decoded, out=decoded).t().contiguous()  # [K, N]
    del decoded
    for _ in range(sweeps):
        for group in range(n_cols // size):
            block = slice(group * size, (group + 1) * size)
            target = weight[:, block].float().t().contiguous()
            if minimum is not None:
                target -= minimum[group]
            pull = moment[block] @ error
            code[block] = sweep_columns(grid, target, error[block], pull, moment[block, block], scale[group])
    return replace(codes, code=code.t().reshape(-1))
