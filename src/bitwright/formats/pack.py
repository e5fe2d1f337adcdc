"""Codes as named tensors for the work directory, as small as in a checkpoint, and back."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from bitwright.formats.codebook import CodebookFormat
from bitwright.formats.codebook_bytes import codebook_from_bytes, codebook_to_bytes
from bitwright.formats.codebook_codes import CodebookCodes
from bitwright.formats.codes import Codes, NestedScales, PlainScales
from bitwright.formats.format import Quantized
from bitwright.formats.ggml import GgmlFormat
from bitwright.formats.ggml_bytes import from_bytes, to_bytes
from bitwright.formats.ggml_codes import GgmlCodes

AnyCodes = Codes | GgmlCodes | CodebookCodes


def pack_nibbles(code: Tensor) -> Tensor:
    """Bytes [ceil(n / 2)] from 4-bit codes [n]: the first of each pair in the high half, as bitsandbytes does."""
    padded = torch.nn.functional.pad(code, (0, code.numel() % 2))
    return (padded[::2] << 4) | padded[1::2]


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The ``count`` 4-bit codes in ``packed``."""
    return torch.stack([packed >> 4, packed & 0xF], 1).reshape(-1)[:count]


def records_of(codes: GgmlCodes | CodebookCodes) -> Tensor:
    """The records that a GGUF file holds for ``codes``, uint8 [R, record_nbytes]."""
    return codebook_to_bytes(codes) if isinstance(codes, CodebookCodes) else to_bytes(codes)


def codes_to_tensors(codes: AnyCodes) -> dict[str, Tensor]:
    if not isinstance(codes, Codes):
        return {"records": records_of(codes)}
    scales = codes.scales
    tensors = {"code": pack_nibbles(codes.code)}
    if isinstance(scales, PlainScales):
        return tensors | {"scale": scales.scale}
    offset = torch.tensor([scales.offset], dtype=torch.float64)
    return tensors | {"scale_code": scales.code, "nested_scale": scales.nested_scale, "offset": offset}


def codes_from_tensors(format: Quantized, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> AnyCodes:
    if isinstance(format, CodebookFormat):
        return codebook_from_bytes(format, shape, tensors["records"])
    if isinstance(format, GgmlFormat):
        return from_bytes(format, shape, tensors["records"])
    code = unpack_nibbles(tensors["code"], prod(shape))
    if "scale" in tensors:
        return Codes(format, shape, code, PlainScales(tensors["scale"]))
    scales = NestedScales(tensors["scale_code"], tensors["nested_scale"], float(tensors["offset"]))
    return Codes(format, shape, code, scales)
