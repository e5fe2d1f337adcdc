"""Records of llama.cpp's codebook formats as bytes, from codes and back. Bits are moved, nothing is rounded."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from bitwright.formats.codebook import SIGNED, CodebookFormat
from bitwright.formats.codebook_codes import CodebookCodes


def codebook_to_bytes(codes: CodebookCodes) -> Tensor:
    """The records of ``codes``, uint8 [R, record_nbytes]."""
    format, n_records = codes.format, len(codes.scale)
    entry = codes.entry.int().reshape(n_records, -1)
    sign = codes.sign.int().reshape(n_records, -1)
    step = codes.step.int().reshape(n_records, -1)
    scale = codes.scale.contiguous().view(torch.uint8).reshape(n_records, 2)
    if format.name == "iq2_xxs":
        words = _words(_bits(sign.reshape(n_records, -1, SIGNED)[:, :, :7]).reshape(n_records, 8, 4), step)
        return torch.cat(
            [scale, torch.cat([entry.to(torch.uint8).reshape(n_records, 8, 4), words], 2).reshape(n_records, -1)], 1
        )
    if format.name == "iq3_xxs":
        words = _words(_bits(sign.reshape(n_records, -1, SIGNED)[:, :, :7]).reshape(n_records, 8, 4), step)
        return torch.cat([scale, entry.to(torch.uint8), words.reshape(n_records, -1)], 1)
    if format.name == "iq2_xs":
        pairs = entry | _bits(sign.reshape(n_records, -1, SIGNED)[:, :, :7]) << 9
        return torch.cat([scale, _little(pairs, 2), _nibbles(step)], 1)
    if format.name == "iq2_s":
        high = _bits_of_width((entry >> 8).reshape(n_records, -1, 4), 2)
        signs = _bits(sign.reshape(n_records, -1, SIGNED))
        return torch.cat([scale, *(_little(part, 1) for part in (entry & 255, signs, high)), _nibbles(step)], 1)
    if format.name == "iq3_s":
        high = _bits((entry >> 8).reshape(n_records, -1, 8))
        signs = _bits(sign.reshape(n_records, -1, SIGNED))
        return torch.cat([scale, *(_little(part, 1) for part in (entry & 255, high, signs)), _nibbles(step)], 1)
    if format.name == "iq1_s":
        high = _bits_of_width((entry >> 8).reshape(n_records, -1, 4), 3) | step << 12 | sign << 15
        return torch.cat([scale, _little(entry & 255, 1), _little(high, 2)], 1)
    nibble = entry >> 8 | sign << 3
    steps = _bits_of_width(step.reshape(n_records, 4, 4), 3)
    raw = codes.scale.view(torch.int16).int()[:, None] & 0xFFFF
    parts = (raw >> torch.tensor([0, 4, 8, 12], dtype=torch.int32, device=raw.device) & 15) << 12
    return torch.cat([_little(entry & 255, 1), _nibbles(nibble), _little(steps | parts, 2)], 1)


def codebook_from_bytes(format: CodebookFormat, shape: tuple[int, ...], records: Tensor) -> CodebookCodes:
    """The codes that ``records`` uint8 [R, record_nbytes] hold for a weight of ``shape``.

    Raises ValueError when the bytes are not those of such a weight.
    """
    wanted = (prod(shape) // format.record, format.record_nbytes)
    if tuple(records.shape) != wanted or shape[-1] % format.record:
        raise ValueError(f"{format.name}: {tuple(records.shape)} bytes for shape {shape}, which takes {wanted}")
    n_records = len(records)
    if format.name == "iq1_m":
        return _iq1_m_from_bytes(format, shape, records)
    scale, rest = records[:, :2].contiguous().view(torch.float16).reshape(-1), records[:, 2:]
    if format.name == "iq2_xxs":
        parts = rest.reshape(n_records, 8, 8)
        entry, (sign, step) = parts[:, :, :4].int(), _unwords(parts[:, :, 4:])
    elif format.name == "iq3_xxs":
        entry, (sign, step) = rest[:, :64].int(), _unwords(rest[:, 64:].reshape(n_records, 8, 4))
    elif format.name == "iq2_xs":
        pairs = _wide(rest[:, :64], 2)
        entry, sign, step = pairs & 511, _even(pairs >> 9), _unnibbles(rest[:, 64:])
    elif format.name == "iq2_s":
        entry = rest[:, :32].int() | _unbits(rest[:, 64:72].int(), 2) << 8
        sign, step = _unbits(rest[:, 32:64].int(), 1), _unnibbles(rest[:, 72:])
    elif format.name == "iq3_s":
        entry = rest[:, :64].int() | _unbits(rest[:, 64:72].int(), 1) << 8
        sign, step = _unbits(rest[:, 72:104].int(), 1), _unnibbles(rest[:, 104:])
    else:
        high = _wide(rest[:, 32:], 2)
        entry = rest[:, :32].int() | _unbits(high & 0xFFF, 3, 4) << 8
        sign, step = high >> 15, high >> 12 & 7
    return _codes(format, shape, entry, sign, step, scale)


def _iq1_m_from_bytes(format: CodebookFormat, shape: tuple[int, ...], records: Tensor) -> CodebookCodes:
    """The only format whose 16-bit scale is spread over its steps, four bits to each."""
    words = _wide(records[:, 48:], 2)
    parts = (words >> 12) << torch.tensor([0, 4, 8, 12], dtype=torch.int32, device=records.device)
    scale = parts.sum(1, dtype=torch.int32).to(torch.int16).view(torch.float16)
    nibble = _unnibbles(records[:, 32:48])
    entry = records[:, :32].int() | (nibble & 7) << 8
    return _codes(format, shape, entry, nibble >> 3, _unbits(words & 0xFFF, 3, 4), scale)


def _codes(
    format: CodebookFormat, shape: tuple[int, ...], entry: Tensor, sign: Tensor, step: Tensor, scale: Tensor
) -> CodebookCodes:
    return CodebookCodes(
        format, shape, entry.reshape(-1).to(torch.int16), sign.reshape(-1).bool(), step.reshape(-1).to(torch.uint8), scale
    )


def _bits_of_width(parts: Tensor, width: int) -> Tensor:
    """The last dimension joined into one number, its first entry in the lowest ``width`` bits."""
    shifts = width * torch.arange(parts.shape[-1], dtype=torch.int32, device=parts.device)
    return (parts << shifts).sum(-1, dtype=torch.int32)


def _bits(parts: Tensor) -> Tensor:
    return _bits_of_width(parts, 1)


def _unbits(numbers: Tensor, width: int, count: int = 0) -> Tensor:
    """[R, n] numbers -> [R, n * count] parts of ``width`` bits, the lowest first."""
    shifts = width * torch.arange(count or 8 // width, dtype=torch.int32, device=numbers.device)
    return (numbers[..., None] >> shifts & (1 << width) - 1).flatten(-2)


def _even(seven: Tensor) -> Tensor:
    """Signs of eight weights [R, 8 n] from seven bits [R, n] each: the last makes the number of negative ones even."""
    signs = _unbits(seven, 1, 7).reshape(*seven.shape, 7)
    return torch.cat([signs, signs.sum(-1, keepdim=True) & 1], -1).flatten(1)


def _words(seven: Tensor, step: Tensor) -> Tensor:
    """Four times seven sign bits [R, 8, 4] and a step [R, 8] of four bits, as four bytes each: uint8 [R, 8, 4]."""
    low = _bits_of_width(seven.long(), 7) | step.long() << 28
    return torch.stack([(low >> 8 * i & 255) for i in range(4)], -1).to(torch.uint8)


def _unwords(packed: Tensor) -> tuple[Tensor, Tensor]:
    word = _bits_of_width_long(packed)
    seven = (word[..., None] >> torch.tensor([0, 7, 14, 21], device=packed.device) & 127).int().flatten(1)
    return _even(seven), (word >> 28).int()


def _bits_of_width_long(packed: Tensor) -> Tensor:
    return (packed.long() << 8 * torch.arange(packed.shape[-1], device=packed.device)).sum(-1)


def _little(numbers: Tensor, n_bytes: int) -> Tensor:
    """Numbers [R, n] as little-endian bytes uint8 [R, n * n_bytes]."""
    return torch.stack([numbers >> 8 * i & 255 for i in range(n_bytes)], -1).to(torch.uint8).flatten(1)


def _wide(packed: Tensor, n_bytes: int) -> Tensor:
    return _bits_of_width(packed.reshape(len(packed), -1, n_bytes).int(), 8)


def _nibbles(numbers: Tensor) -> Tensor:
    return (numbers[:, ::2] | numbers[:, 1::2] << 4).to(torch.uint8)


def _unnibbles(packed: Tensor) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1).int()
