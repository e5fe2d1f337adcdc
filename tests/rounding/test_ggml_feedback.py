"""Calibrated rounding into llama.cpp's formats lowers the objective, decides with what is stored, and survives odd weights."""

import pytest
import torch

from bitwright.formats.ggml.codes import GgmlCodes
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.measure.curvature import energy
from bitwright.rounding.ggml import ggml_descent, ggml_feedback
from bitwright.rounding.kernels.affine_search import search_affine
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.ggml_nearest import nearest_ggml

# The largest share of nearest rounding's objective that is left on correlated inputs.
LEFT = {"mxfp4": 0.75, "q2_k": 0.55, "tq1_0": 0.25, "tq2_0": 0.25}


def moment_of(n_cols: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_cols, n_cols, generator=generator) * torch.linspace(0.02, 1, n_cols)
    x = torch.randn(4 * n_cols, n_cols, generator=generator) @ mixing
    return x.t() @ x / len(x)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_calibration_lowers_the_objective(name: str) -> None:
    w = torch.randn(48, 512, generator=torch.Generator().manual_seed(1)) * 0.02
    moment, format = moment_of(512), GGML_FORMATS[name]
    codes = ggml_feedback(w, Feedback.of(moment.clone()), format)
    ours = energy(codes.decode() - w, moment)
    plain = energy(nearest_ggml(w, format).decode() - w, moment)
    assert ours < LEFT.get(name, 0.7) * plain


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_the_file_decodes_to_what_was_rounded(name: str) -> None:
    w = torch.randn(8, 512, generator=torch.Generator().manual_seed(2)) * 0.02
    w[1], w[2, :256], w[3, 7], w[4] = 0.0, 0.01, 3.0, w[4].abs()
    codes = ggml_feedback(w, Feedback.of(moment_of(512)), GGML_FORMATS[name])
    again = GgmlCodes.from_tensors(codes.format, codes.shape, codes.tensors()).decode()
    assert torch.isfinite(again).all()
    assert torch.equal(again, codes.decode())
    assert (again[1] == 0).all(), "a row of zeros stays one"


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_weights_on_the_grid_stay_there(name: str) -> None:
    """Without correlation, a weight that the format holds exactly is found again."""
    if name == "mxfp4":
        w = nearest_ggml(torch.randn(8, 512, generator=torch.Generator().manual_seed(3)), GGML_FORMATS[name]).decode()
    else:
        w = ggml_feedback(
            torch.randn(8, 512, generator=torch.Generator().manual_seed(3)), Feedback.of(torch.eye(512)), GGML_FORMATS[name]
        ).decode()
    codes = ggml_feedback(w, Feedback.of(torch.eye(512)), GGML_FORMATS[name])
    assert (codes.decode() - w).norm() < 0.03 * w.norm()


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_descent_lowers_the_objective_and_nothing_but_codes(name: str) -> None:
    w = torch.randn(48, 512, generator=torch.Generator().manual_seed(6)) * 0.02
    feedback = Feedback.of(moment_of(512, 7))
    start = ggml_feedback(w, feedback, GGML_FORMATS[name])
    found = ggml_descent(w, start, feedback.moment)
    assert energy(found.decode() - w, feedback.moment) < energy(start.decode() - w, feedback.moment)
    assert torch.equal(found.scale, start.scale)
    assert int(found.code.max()) < len(GGML_FORMATS[name].written_levels)


def test_rows_that_are_no_whole_records_are_refused() -> None:
    with pytest.raises(ValueError, match="320 columns are not a multiple of 256"):
        ggml_feedback(torch.zeros(2, 320), Feedback.of(torch.eye(320)), GGML_FORMATS["q6_k"])


def test_affine_search_beats_the_range_of_the_block() -> None:
    w = torch.randn(32, 200, generator=torch.Generator().manual_seed(4))
    importance = torch.rand(32, 1, generator=torch.Generator().manual_seed(5))

    def as_it_is(s: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return s, m, s, m

    _, _, scale, minimum = search_affine(w, importance, 15, as_it_is)

    def cost(s: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        q = ((w - m) / s).round().clamp(0, 15)
        return (importance * (q * s + m - w).square()).sum(0)

    low, high = w.amin(0), w.amax(0)
    assert (cost(scale, minimum) <= cost((high - low) / 15, low) * 1.0001).all()
    assert cost(scale, minimum).sum() < 0.85 * cost((high - low) / 15, low).sum()
