"""Records of llama.cpp's block and codebook formats against the decoders and sizes of the gguf package."""

import gguf
import numpy as np
import pytest
import torch

from bitwright.formats.ggml.codes import GgmlCodes
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.formats.iq.codes import CodebookCodes
from bitwright.formats.iq.format import CODEBOOK_FORMATS

ROWS, RECORDS = 3, 40
FORMATS = GGML_FORMATS | CODEBOOK_FORMATS


def random_records(name: str) -> tuple[torch.Tensor, tuple[int, int]]:
    format = FORMATS[name]
    generator = torch.Generator().manual_seed(7)
    records = torch.randint(0, 256, (ROWS * RECORDS, format.record_nbytes), dtype=torch.uint8, generator=generator)
    return records, (ROWS, RECORDS * format.record)


def codes_of(name: str, shape: tuple[int, int], records: torch.Tensor) -> GgmlCodes | CodebookCodes:
    family = GgmlCodes if name in GGML_FORMATS else CodebookCodes
    return family.from_tensors(FORMATS[name], shape, {"records": records})


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_those_of_the_library(name: str) -> None:
    format = FORMATS[name]
    assert (format.record, format.record_nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert format.record % format.block == 0


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_decode_as_the_library_decodes_them(name: str) -> None:
    records, shape = random_records(name)
    with np.errstate(all="ignore"):  # random bytes hold infinite scales, too
        expected = gguf.dequantize(records.reshape(ROWS, -1).numpy(), gguf.GGMLQuantizationType[name.upper()])
    found = codes_of(name, shape, records).decode().numpy()
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_survive_the_way_through_codes(name: str) -> None:
    records, shape = random_records(name)
    codes = codes_of(name, shape, records)
    again = codes.tensors()["records"]
    if isinstance(codes, GgmlCodes) and name == "tq1_0":  # 243 of 256 bytes stand for five ternary digits
        read = codes_of(name, shape, again)
        assert isinstance(read, GgmlCodes)
        assert torch.equal(read.code, codes.code)
    else:
        assert torch.equal(again, records)


@pytest.mark.parametrize("name", ["q4_k", "iq2_s"])
def test_bytes_of_another_shape_are_refused(name: str) -> None:
    records, _ = random_records(name)
    with pytest.raises(ValueError, match=name):
        codes_of(name, (ROWS, 256), records)
