"""Records of llama.cpp's block formats against the decoders and encoders of the gguf package."""

import gguf
import numpy as np
import pytest
import torch

from bitwright.formats.ggml import GGML_FORMATS
from bitwright.formats.ggml_bytes import from_bytes, to_bytes

ROWS, RECORDS = 3, 40


def random_records(name: str) -> tuple[torch.Tensor, tuple[int, int]]:
    format = GGML_FORMATS[name]
    generator = torch.Generator().manual_seed(7)
    records = torch.randint(0, 256, (ROWS * RECORDS, format.record_nbytes), dtype=torch.uint8, generator=generator)
    return records, (ROWS, RECORDS * format.record)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_sizes_are_those_of_the_library(name: str) -> None:
    format = GGML_FORMATS[name]
    assert (format.record, format.record_nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert format.record % format.block == 0


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_any_bytes_decode_as_the_library_decodes_them(name: str) -> None:
    records, shape = random_records(name)
    with np.errstate(all="ignore"):  # random bytes hold infinite scales, too
        expected = gguf.dequantize(records.reshape(ROWS, -1).numpy(), gguf.GGMLQuantizationType[name.upper()])
    found = from_bytes(GGML_FORMATS[name], shape, records).decode().numpy()
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_bytes_survive_the_way_through_codes(name: str) -> None:
    records, shape = random_records(name)
    codes = from_bytes(GGML_FORMATS[name], shape, records)
    again = to_bytes(codes)
    if name == "tq1_0":  # 243 of 256 bytes stand for five ternary digits; the others are read as one of those
        assert torch.equal(from_bytes(GGML_FORMATS[name], shape, again).code, codes.code)
    else:
        assert torch.equal(again, records)


def test_bytes_of_another_shape_are_refused() -> None:
    records, _ = random_records("q4_k")
    with pytest.raises(ValueError, match="q4_k"):
        from_bytes(GGML_FORMATS["q4_k"], (ROWS, 256), records)
