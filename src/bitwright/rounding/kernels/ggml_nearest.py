"""Round to nearest into llama.cpp's block formats, without calibration.

Where the gguf package has an encoder (q4_0, q4_1, q5_0, q5_1, q8_0, tq1_0, tq2_0, mxfp4) the bytes are the same as its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats.ggml.codes import GgmlCodes, power_of_two
from bitwright.formats.ggml.format import GgmlFormat
from bitwright.rounding.kernels.grid import reciprocal

_ABSMAX = {"q8_0": 127.0, "tq1_0": 1.0, "tq2_0": 1.0}  # formats that map the largest magnitude to this level


def nearest_ggml(weight: Tensor, format: GgmlFormat) -> GgmlCodes:
    """Codes of ``weight`` [N, K] with the scales that its largest entries ask for.

    Raises ValueError where rows are not whole records.
    """
    if reason := format.unavailable(weight.shape[-1]):
        raise ValueError(f"{format.name}: {reason}")
    blocks = weight.float().reshape(-1, format.block)
    if format.steps:
        return _with_steps(blocks, tuple(weight.shape), format)
    if format.has_power_scale:
        return _power_of_two_scales(blocks, tuple(weight.shape), format)
    minimum = None
    if format.has_minimum:
        minimum = blocks.amin(1)
        scale = (blocks.amax(1) - minimum) / (len(format.levels) - 1)
        code = ((blocks - minimum[:, None]) * reciprocal(scale)[:, None] + 0.5).trunc()
    elif format.name in _ABSMAX:
        top = _ABSMAX[format.name]
        scale = blocks.abs().amax(1) / top
        scaled = blocks * reciprocal(scale)[:, None]
        code = scaled.sign() * (scaled.abs() + 0.5).floor() - format.levels[0]
    elif not format.is_uniform:
        scale = largest(blocks) / format.levels[0]
        code = _nearest_level(blocks * reciprocal(scale)[:, None], format)
    else:
        scale = largest(blocks) / format.levels[0]
        code = (blocks * reciprocal(scale)[:, None] + (0.5 - format.levels[0])).trunc()
    code = code.clamp_(0, len(format.levels) - 1).to(torch.uint8)
    stored = None if minimum is None else minimum.half()
    return GgmlCodes(format, tuple(weight.shape), code.reshape(-1), scale.half(), stored)


def largest(blocks: Tensor) -> Tensor:
    """The entry of largest magnitude of each block [B, n], with its sign; the first of equals."""
    return blocks.gather(1, blocks.abs().argmax(1, keepdim=True))[:, 0]


def _power_of_two_scales(blocks: Tensor, shape: tuple[int, ...], format: GgmlFormat) -> GgmlCodes:
    absmax = blocks.abs().amax(1)
    exponent = torch.where(absmax > 0, absmax.clamp(min=1e-45).log2().floor() + 125, 0.0).clamp_(0, 255).to(torch.uint8)
    code = _nearest_level(blocks / power_of_two(exponent)[:, None], format)
    return GgmlCodes(format, shape, code.reshape(-1), exponent)


def _nearest_level(scaled: Tensor, format: GgmlFormat) -> Tensor:
    """Code of the nearest level; of two equally near the one with the lower code."""
    levels = torch.tensor(format.levels, dtype=torch.float32, device=scaled.device)
    best = torch.zeros_like(scaled, dtype=torch.uint8)
    least = (scaled - levels[0]).abs_()
    for code in range(1, len(levels)):
        distance = (scaled - levels[code]).abs_()
        better = distance < least
        least = torch.where(better, distance, least)
        best = torch.where(better, code, best)
    return best


def _with_steps(blocks: Tensor, shape: tuple[int, ...], format: GgmlFormat) -> GgmlCodes:
    """First the scale (and minimum) of each block, then the units of the record that let integer steps come near them."""
    assert format.steps
    per_record = format.record // format.block
    minimum = minimum_step = None
    if format.has_minimum:
        below = -blocks.amin(1).clamp(max=0)
        wanted = (blocks.amax(1) + below).clamp(min=0) / (len(format.levels) - 1)
        minimum, minimum_step = fit_steps(below.reshape(-1, per_record), 0, format.steps.highest)
    else:
        wanted = largest(blocks) / format.levels[0]
    scale, scale_step = fit_steps(wanted.reshape(-1, per_record), format.steps.lowest, format.steps.highest)
    empty = torch.zeros(len(blocks) * format.block, dtype=torch.uint8, device=blocks.device)
    codes = GgmlCodes(format, shape, empty, scale, minimum, scale_step, minimum_step)
    offset = codes.block_minima()
    shifted = blocks if offset is None else blocks - offset[:, None]
    scaled = shifted * reciprocal(codes.block_scales())[:, None]
    if not format.is_uniform:
        code = _nearest_level(scaled, format)
    else:
        code = (scaled - format.levels[0]).round_().clamp_(0, len(format.levels) - 1).to(torch.uint8)
    return GgmlCodes(format, shape, code.reshape(-1), scale, minimum, scale_step, minimum_step)


def fit_steps(wanted: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Units float16 [R] and integers int8 [R * n], ``lowest`` to ``highest``, with unit * integer near ``wanted`` [R, n].

    The largest magnitude takes the integer of largest magnitude: ``highest`` where none is negative, else ``lowest``.
    """
    end = float(lowest if lowest < 0 else highest)
    unit = (largest(wanted) / end).half()
    step = (wanted * reciprocal(unit.float())[:, None]).round_().clamp_(lowest, highest)
    return unit, step.to(torch.int8).reshape(-1)
