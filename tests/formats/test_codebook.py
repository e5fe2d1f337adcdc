"""Records of llama.cpp's codebook formats against the decoders of the gguf package."""

import gguf
import numpy as np
import pytest
import torch

from bitwright.formats.codebook import CODEBOOK_FORMATS
from bitwright.formats.codebook_bytes import codebook_from_bytes, codebook_to_bytes

ROWS, RECORDS = 3, 40


def random_records(name: str) -> tuple[torch.Tensor, tuple[int, int]]:
    format = CODEBOOK_FORMATS[name]
    generator = torch.Generator().manual_seed(7)
    records = torch.randint(0, 256, (ROWS * RECORDS, format.record_nbytes), dtype=torch.uint8, generator=generator)
    return records, (ROWS, RECORDS * format.record)


@pytest.mark.parametrize("name", CODEBOOK_FORMATS)
def test_sizes_are_those_of_the_library(name: str) -> None:
    format = CODEBOOK_FORMATS[name]
    assert (format.record, format.record_nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]


@pytest.mark.parametrize("name", CODEBOOK_FORMATS)
def test_any_bytes_decode_as_the_library_decodes_them(name: str) -> None:
    records, shape = random_records(name)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(records.reshape(ROWS, -1).numpy(), gguf.GGMLQuantizationType[name.upper()])
    found = codebook_from_bytes(CODEBOOK_FORMATS[name], shape, records).decode().numpy()
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("name", CODEBOOK_FORMATS)
def test_bytes_survive_the_way_through_codes(name: str) -> None:
    records, shape = random_records(name)
    assert torch.equal(codebook_to_bytes(codebook_from_bytes(CODEBOOK_FORMATS[name], shape, records)), records)


def test_bytes_of_another_shape_are_refused() -> None:
    records, _ = random_records("iq2_s")
    with pytest.raises(ValueError, match="iq2_s"):
        codebook_from_bytes(CODEBOOK_FORMATS["iq2_s"], (ROWS, 256), records)
