"""Records of llama.cpp's block formats as bytes, from codes and back. Bits are moved, nothing is rounded."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.formats.ggml.format import GgmlFormat, Plane

if TYPE_CHECKING:
    from bitwright.formats.ggml.codes import GgmlCodes

Fields = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]  # in the order of GgmlCodes, from code on

_POWERS = (81, 27, 9, 3, 1)  # of the ternary digits in a byte, first code first
_TERNARY_RUNS = ((0, 160, 5, 32), (160, 240, 5, 16), (240, 256, 4, 4))  # codes from, to, digits to a byte, run


def records_of(codes: GgmlCodes) -> Tensor:
    """The records of ``codes``, uint8 [R, record_nbytes]."""
    format = codes.format
    code = codes.code.reshape(-1, format.record)
    parts = []
    for name, size in format.fields:
        if name in ("d", "e", "m"):
            value = codes.minimum if name == "m" else codes.scale
            assert value is not None
            parts.append(value.contiguous().view(torch.uint8).reshape(len(code), size))
        elif name == "steps":
            parts.append(_steps_to_bytes(codes, len(code)))
        elif name == "ternary":
            parts.append(_ternary_to_bytes(code))
        elif name == "high":
            assert format.high
            assert format.low
            parts.append(_pack(code >> format.low.bits, format.high))
        else:
            assert format.low
            parts.append(_pack(code ^ _flip(format), format.low))
    return torch.cat(parts, 1)


def fields_of(format: GgmlFormat, shape: tuple[int, ...], records: Tensor) -> Fields:
    """The fields of the codes that ``records`` uint8 [R, record_nbytes] hold for a weight of ``shape``.

    Raises ValueError when the bytes are not those of such a weight.
    """
    wanted = (prod(shape) // format.record, format.record_nbytes)
    if tuple(records.shape) != wanted or shape[-1] % format.record:
        raise ValueError(f"{format.name}: {tuple(records.shape)} bytes for shape {shape}, which takes {wanted}")
    found, at = {}, 0
    for name, size in format.fields:
        found[name], at = records[:, at : at + size], at + size
    half = {name: found[name].contiguous().view(torch.float16).reshape(-1) for name in ("d", "m") if name in found}
    if "ternary" in found:
        code = _ternary_from_bytes(found["ternary"])
    else:
        assert format.low
        code = _unpack(found["low"], format.low) ^ _flip(format)
        if format.high:
            code = code | _unpack(found["high"], format.high) << format.low.bits
    scale_step, minimum_step = _steps_from_bytes(format, found["steps"]) if "steps" in found else (None, None)
    scale = half["d"] if "d" in half else found["e"].reshape(-1)
    return code.reshape(-1), scale, half.get("m"), scale_step, minimum_step


def _flip(format: GgmlFormat) -> int:
    """Eight-bit codes are stored as two's complement: the sign bit is the only one that differs from code = value + 128."""
    return 0x80 if format.low and format.low.bits == 8 else 0


def _shifts(plane: Plane, device: torch.device) -> Tensor:
    return torch.arange(0, 8, plane.bits, dtype=torch.uint8, device=device)[:, None]


def _pack(code: Tensor, plane: Plane) -> Tensor:
    runs = code.reshape(len(code), -1, 8 // plane.bits, plane.run) & (1 << plane.bits) - 1
    return (runs << _shifts(plane, code.device)).sum(2, dtype=torch.int32).to(torch.uint8).reshape(len(code), -1)


def _unpack(packed: Tensor, plane: Plane) -> Tensor:
    runs = packed.reshape(len(packed), -1, 1, plane.run) >> _shifts(plane, packed.device)
    return (runs & (1 << plane.bits) - 1).reshape(len(packed), -1)


def _ternary_to_bytes(code: Tensor) -> Tensor:
    """Base 3, as the fraction of 256 whose leading ternary digits are the codes, so that a product with 3^i shows digit i."""
    parts = []
    for start, stop, digits, run in _TERNARY_RUNS:
        groups = code[:, start:stop].int().reshape(len(code), -1, digits, run)
        powers = torch.tensor(_POWERS[:digits], dtype=torch.int32, device=code.device)[:, None]
        parts.append((groups * powers).sum(2).reshape(len(code), -1))
    return ((torch.cat(parts, 1) * 256 + 242) // 243).to(torch.uint8)


def _ternary_from_bytes(packed: Tensor) -> Tensor:
    parts, at = [], 0
    for start, stop, digits, run in _TERNARY_RUNS:
        size = (stop - start) // digits
        groups = packed[:, at : at + size].int().reshape(len(packed), -1, 1, run)
        powers = torch.tensor([3**i for i in range(digits)], dtype=torch.int32, device=packed.device)[:, None]
        parts.append((((groups * powers) & 0xFF) * 3 >> 8).reshape(len(packed), -1))
        at += size
    return torch.cat(parts, 1).to(torch.uint8)


def _steps_to_bytes(codes: GgmlCodes, n_records: int) -> Tensor:
    steps = codes.format.steps
    assert steps
    assert codes.scale_step is not None
    scale = codes.scale_step.reshape(n_records, -1)
    if steps.layout == "int8":
        return scale.view(torch.uint8)
    scale = (scale - steps.lowest).to(torch.uint8)
    if steps.layout == "nibble_pairs":
        return scale | _minimum_step(codes, n_records) << 4
    low, high = scale & 0xF, scale >> 4
    if steps.layout == "six_bit":
        return torch.cat([_pack(low, Plane(4, 8)), _pack(high, Plane(2, 4))], 1)
    if steps.layout == "six_bit_split":
        return torch.cat([_pack(high, Plane(2, 1)), _pack(low, Plane(4, 1))], 1)
    minimum = _minimum_step(codes, n_records)
    first = scale[:, :4] | high[:, 4:] << 6
    second = minimum[:, :4] | minimum[:, 4:] >> 4 << 6
    return torch.cat([first, second, low[:, 4:] | (minimum[:, 4:] & 0xF) << 4], 1)


def _minimum_step(codes: GgmlCodes, n_records: int) -> Tensor:
    assert codes.minimum_step is not None
    return codes.minimum_step.reshape(n_records, -1).to(torch.uint8)


def _steps_from_bytes(format: GgmlFormat, packed: Tensor) -> tuple[Tensor, Tensor | None]:
    """Integer scales and minima [B] of the blocks."""
    steps = format.steps
    assert steps
    minimum = None
    if steps.layout == "int8":
        return packed.contiguous().view(torch.int8).reshape(-1), None
    if steps.layout == "nibble_pairs":
        scale, minimum = packed & 0xF, packed >> 4
    elif steps.layout == "six_bit":
        scale = _unpack(packed[:, :8], Plane(4, 8)) | _unpack(packed[:, 8:], Plane(2, 4)) << 4
    elif steps.layout == "six_bit_split":
        scale = _unpack(packed[:, 2:], Plane(4, 1)) | _unpack(packed[:, :2], Plane(2, 1)) << 4
    else:
        first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
        scale = torch.cat([first & 0x3F, rest & 0xF | first >> 6 << 4], 1)
        minimum = torch.cat([second & 0x3F, rest >> 4 | second >> 6 << 4], 1).reshape(-1)
    return (scale.to(torch.int8) + steps.lowest).reshape(-1), None if minimum is None else minimum.reshape(-1).to(torch.int8)
