"""Calibrated rounding into codebook formats: the objective falls, the bytes hold what was chosen, any input is borne."""

import pytest
import torch

from bitwright.formats.iq.codes import CodebookCodes
from bitwright.formats.iq.format import CODEBOOK_FORMATS
from bitwright.measure.curvature import energy
from bitwright.rounding.iq import codebook_feedback, nearest_codebook
from bitwright.rounding.kernels.error_feedback import Feedback


def case(n_rows: int = 24, n_cols: int = 512) -> tuple[torch.Tensor, Feedback]:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(n_cols, n_cols, generator=generator) * torch.rand(n_cols, generator=generator)
    x = torch.randn(600, n_cols, generator=generator) @ (torch.eye(n_cols) + 0.1 * mixing)
    return torch.randn(n_rows, n_cols, generator=generator), Feedback.of(x.t() @ x / len(x))


@pytest.mark.parametrize("name", CODEBOOK_FORMATS)
def test_feedback_and_descent_lower_the_objective(name: str) -> None:
    weight, feedback = case()
    format = CODEBOOK_FORMATS[name]
    found = [
        energy(codes.decode() - weight, feedback.moment)
        for codes in (
            nearest_codebook(weight, format),
            codebook_feedback(weight, feedback, format, sweeps=0),
            codebook_feedback(weight, feedback, format),
        )
    ]
    assert found[2] <= found[1] < 0.8 * found[0]


@pytest.mark.parametrize("name", CODEBOOK_FORMATS)
def test_the_bytes_hold_what_was_chosen(name: str) -> None:
    """Formats that store seven of eight signs lose nothing: the choice has an even number of negative ones."""
    weight, feedback = case(8)
    codes = codebook_feedback(weight, feedback, CODEBOOK_FORMATS[name])
    again = CodebookCodes.from_tensors(codes.format, codes.shape, codes.tensors())
    assert torch.equal(again.decode(), codes.decode())


@pytest.mark.parametrize("name", ["iq2_xxs", "iq3_s", "iq1_m"])
def test_zeros_and_outliers(name: str) -> None:
    weight, feedback = case(6)
    weight[0] = 0
    weight[1, 3] = 1e4
    decoded = codebook_feedback(weight, feedback, CODEBOOK_FORMATS[name]).decode()
    assert bool(torch.isfinite(decoded).all())
    assert float(decoded[0].abs().max()) == 0
    assert 4e3 < float(decoded[1, 3]) < 1.2e4  # a smaller scale serves the other weights of its block


def test_rows_that_are_no_whole_records_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        nearest_codebook(torch.randn(4, 320), CODEBOOK_FORMATS["iq2_s"])
