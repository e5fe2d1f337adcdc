"""Records of llama.cpp's codebook formats as bytes, from codes and back. Bits are moved, nothing is rounded."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bitwright.formats.iq.format import SIGNED, CodebookFormat

if TYPE_CHECKING:
    from bitwright.formats.iq.codes import CodebookCodes

Fields = tuple[Tensor, Tensor, Tensor, Tensor]  # entries, signs, steps and scales, as CodebookCodes holds them


class _Parts(NamedTuple):
    """What a record holds, int32 [R, ...] each; the scale as its two bytes uint8 [R, 2]."""

    entry: Tensor
    sign: Tensor
    step: Tensor
    scale: Tensor


def records_of(codes: CodebookCodes) -> Tensor:
    """The records of ``codes``, uint8 [R, record_nbytes]."""
    n_records = len(codes.scale)
    entry, sign, step = (part.int().reshape(n_records, -1) for part in (codes.entry, codes.sign, codes.step))
    scale = codes.scale.contiguous().view(torch.uint8).reshape(n_records, 2)
    return _LAYOUTS[codes.format.name].pack(_Parts(entry, sign, step, scale))


def fields_of(format: CodebookFormat, shape: tuple[int, ...], records: Tensor) -> Fields:
    """The fields of the codes that ``records`` uint8 [R, record_nbytes] hold for a weight of ``shape``.

    Raises ValueError when the bytes are not those of such a weight.
    """
    wanted = (prod(shape) // format.record, format.record_nbytes)
    if tuple(records.shape) != wanted or shape[-1] % format.record:
        raise ValueError(f"{format.name}: {tuple(records.shape)} bytes for shape {shape}, which takes {wanted}")
    entry, sign, step, scale = _LAYOUTS[format.name].unpack(records)
    scale = scale.contiguous().view(torch.float16).reshape(-1)
    return entry.reshape(-1).to(torch.int16), sign.reshape(-1).bool(), step.reshape(-1).to(torch.uint8), scale


class _Layout(NamedTuple):
    """How one format's parts lie in a record."""

    pack: Callable[[_Parts], Tensor]
    unpack: Callable[[Tensor], _Parts]


def _pack_iq2_xxs(parts: _Parts) -> Tensor:
    n_records = len(parts.entry)
    words = _words(_seven(parts.sign).reshape(n_records, 8, 4), parts.step)
    entry = parts.entry.to(torch.uint8).reshape(n_records, 8, 4)
    return torch.cat([parts.scale, torch.cat([entry, words], 2).reshape(n_records, -1)], 1)


def _unpack_iq2_xxs(records: Tensor) -> _Parts:
    parts = records[:, 2:].reshape(len(records), 8, 8)
    return _Parts(parts[:, :, :4].int(), *_unwords(parts[:, :, 4:]), records[:, :2])


def _pack_iq3_xxs(parts: _Parts) -> Tensor:
    words = _words(_seven(parts.sign).reshape(len(parts.entry), 8, 4), parts.step)
    return torch.cat([parts.scale, parts.entry.to(torch.uint8), words.flatten(1)], 1)


def _unpack_iq3_xxs(records: Tensor) -> _Parts:
    words = records[:, 66:].reshape(len(records), 8, 4)
    return _Parts(records[:, 2:66].int(), *_unwords(words), records[:, :2])


def _pack_iq2_xs(parts: _Parts) -> Tensor:
    return torch.cat([parts.scale, _little(parts.entry | _seven(parts.sign) << 9, 2), _nibbles(parts.step)], 1)


def _unpack_iq2_xs(records: Tensor) -> _Parts:
    pairs = _wide(records[:, 2:66], 2)
    return _Parts(pairs & 511, _even(pairs >> 9), _unnibbles(records[:, 66:]), records[:, :2])


def _pack_iq2_s(parts: _Parts) -> Tensor:
    high = _bits_of_width(_split(parts.entry >> 8, 4), 2)
    bytes_ = [_little(part, 1) for part in (parts.entry & 255, _eight(parts.sign), high)]
    return torch.cat([parts.scale, *bytes_, _nibbles(parts.step)], 1)


def _unpack_iq2_s(records: Tensor) -> _Parts:
    entry = records[:, 2:34].int() | _unbits(records[:, 66:74].int(), 2) << 8
    return _Parts(entry, _unbits(records[:, 34:66].int(), 1), _unnibbles(records[:, 74:]), records[:, :2])


def _pack_iq3_s(parts: _Parts) -> Tensor:
    high = _bits(_split(parts.entry >> 8, 8))
    bytes_ = [_little(part, 1) for part in (parts.entry & 255, high, _eight(parts.sign))]
    return torch.cat([parts.scale, *bytes_, _nibbles(parts.step)], 1)


def _unpack_iq3_s(records: Tensor) -> _Parts:
    entry = records[:, 2:66].int() | _unbits(records[:, 66:74].int(), 1) << 8
    return _Parts(entry, _unbits(records[:, 74:106].int(), 1), _unnibbles(records[:, 106:]), records[:, :2])


def _pack_iq1_s(parts: _Parts) -> Tensor:
    high = _bits_of_width(_split(parts.entry >> 8, 4), 3) | parts.step << 12 | parts.sign << 15
    return torch.cat([parts.scale, _little(parts.entry & 255, 1), _little(high, 2)], 1)


def _unpack_iq1_s(records: Tensor) -> _Parts:
    high = _wide(records[:, 34:], 2)
    entry = records[:, 2:34].int() | _unbits(high & 0xFFF, 3, 4) << 8
    return _Parts(entry, high >> 15, high >> 12 & 7, records[:, :2])


def _pack_iq1_m(parts: _Parts) -> Tensor:
    """The only format whose 16-bit scale is spread over its steps, four bits to each."""
    steps = _bits_of_width(_split(parts.step, 4), 3)
    scale = parts.scale.int()
    quarters = torch.stack([scale[:, 0] & 15, scale[:, 0] >> 4, scale[:, 1] & 15, scale[:, 1] >> 4], 1) << 12
    nibble = parts.entry >> 8 | parts.sign << 3
    return torch.cat([_little(parts.entry & 255, 1), _nibbles(nibble), _little(steps | quarters, 2)], 1)


def _unpack_iq1_m(records: Tensor) -> _Parts:
    words, nibble = _wide(records[:, 48:], 2), _unnibbles(records[:, 32:48])
    quarters = words >> 12
    scale = torch.stack([quarters[:, 0] | quarters[:, 1] << 4, quarters[:, 2] | quarters[:, 3] << 4], 1)
    entry = records[:, :32].int() | (nibble & 7) << 8
    return _Parts(entry, nibble >> 3, _unbits(words & 0xFFF, 3, 4), scale.to(torch.uint8))


_LAYOUTS = {
    "iq2_xxs": _Layout(_pack_iq2_xxs, _unpack_iq2_xxs),
    "iq2_xs": _Layout(_pack_iq2_xs, _unpack_iq2_xs),
    "iq2_s": _Layout(_pack_iq2_s, _unpack_iq2_s),
    "iq3_xxs": _Layout(_pack_iq3_xxs, _unpack_iq3_xxs),
    "iq3_s": _Layout(_pack_iq3_s, _unpack_iq3_s),
    "iq1_s": _Layout(_pack_iq1_s, _unpack_iq1_s),
    "iq1_m": _Layout(_pack_iq1_m, _unpack_iq1_m),
}


def _split(parts: Tensor, size: int) -> Tensor:
    """[R, n] as [R, n / size, size]."""
    return parts.reshape(len(parts), -1, size)


def _eight(sign: Tensor) -> Tensor:
    """The signs [R, n] of every eight weights as one number."""
    return _bits(_split(sign, SIGNED))


def _seven(sign: Tensor) -> Tensor:
    """The same without the last of eight, which follows from the others."""
    return _bits(_split(sign, SIGNED)[:, :, :7])


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
