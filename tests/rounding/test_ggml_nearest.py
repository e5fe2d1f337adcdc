"""Rounding to nearest into llama.cpp's formats: the gguf package's bytes where it has an encoder, small errors everywhere."""

import gguf
import numpy as np
import pytest
import torch

from bitwright.formats.ggml.codes import GgmlCodes
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.rounding.kernels.ggml_nearest import fit_steps, nearest_ggml

WITH_ENCODER = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4")
# Relative error on Gaussian weights: what uniform grids of these bits leave, with room for the coarser scales.
ERROR = {
    "q4_0": 0.11,
    "q4_1": 0.10,
    "q5_0": 0.06,
    "q5_1": 0.05,
    "q8_0": 0.007,
    "q2_k": 0.45,
    "q3_k": 0.25,
    "q4_k": 0.10,
    "q5_k": 0.05,
    "q6_k": 0.025,
    "iq4_nl": 0.10,
    "iq4_xs": 0.10,
    "tq1_0": 0.83,  # 0.805 to 0.812 on five draws (2026-11); one that leaves only the largest weight in 256 is at 0.98
    "tq2_0": 0.83,
    "mxfp4": 0.15,
}


def weights(seed: int = 0) -> torch.Tensor:
    """Gaussian rows with an all-zero record, a constant one, a one-sided one, outliers and tiny values."""
    w = torch.randn(24, 1024, generator=torch.Generator().manual_seed(seed)) * 0.03
    w[1, :256], w[2, :256], w[3, :256] = 0.0, 0.017, w[3, :256].abs()
    w[4, 5], w[5] = 7.0, w[5] * 1e-6
    return w


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_bytes_are_those_of_the_library(name: str) -> None:
    w = weights()
    expected = gguf.quantize(w.numpy(), gguf.GGMLQuantizationType[name.upper()])
    found = nearest_ggml(w, GGML_FORMATS[name]).tensors()["records"].numpy().reshape(expected.shape)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_error_is_that_of_the_grid(name: str) -> None:
    w = torch.randn(32, 1024, generator=torch.Generator().manual_seed(1))
    codes = nearest_ggml(w, GGML_FORMATS[name])
    assert (codes.decode() - w).norm() / w.norm() < ERROR[name]
    odd = nearest_ggml(weights(), GGML_FORMATS[name])
    assert torch.isfinite(odd.decode()).all()
    assert (odd.decode()[1, :256] == 0).all(), "an all-zero record stays zero"
    again = GgmlCodes.from_tensors(odd.format, odd.shape, odd.tensors())
    assert torch.equal(again.decode(), odd.decode()), "as the file will decode"


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_no_code_is_better_than_the_chosen_one(name: str) -> None:
    w, format = weights(2), GGML_FORMATS[name]
    w[5] = w[6]  # below float16 the stored scale is another one than that which chose the codes
    codes = nearest_ggml(w, format)
    chosen = (codes.decode() - w).abs()
    unit = codes.block_scales().abs().repeat_interleave(format.block).reshape(w.shape)
    for code in range(len(format.written_levels)):
        other = type(codes)(
            format,
            codes.shape,
            torch.full_like(codes.code, code),
            codes.scale,
            codes.minimum,
            codes.scale_step,
            codes.minimum_step,
        )
        slack = 0.13 * unit  # codes are chosen before the scale is rounded to 16 bits, as in llama.cpp
        assert (chosen <= (other.decode() - w).abs() + slack).all(), code


def test_rows_that_are_no_whole_records_are_refused() -> None:
    with pytest.raises(ValueError, match="576 columns are not a multiple of 256"):
        nearest_ggml(torch.zeros(2, 576), GGML_FORMATS["q4_k"])


def test_steps_reach_the_largest_scale() -> None:
    wanted = torch.tensor([[0.5, 0.1, 0.0], [-0.2, 0.3, 0.3]])
    unit, step = fit_steps(wanted, -32, 31)
    assert (unit.float()[:, None] * step.reshape(2, 3) - wanted).abs().max() < 0.5 * unit.float().abs().max() + 1e-3
    assert step.reshape(2, 3)[0, 0] == -32
