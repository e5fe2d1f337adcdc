"""Calibrated rounding into llama.cpp's formats lowers the objective, decides with what is stored, and survives odd weights."""

import gguf
import pytest
import torch

from bitwright.formats.ggml.codes import GgmlCodes
from bitwright.formats.ggml.format import GGML_FORMATS, GgmlFormat
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


def drawn_codes(format: GgmlFormat, n_rows: int, n_cols: int) -> GgmlCodes:
    """Codes that no rounder chose; every block has both ends of the grid, every record both ends of its steps."""
    generator = torch.Generator().manual_seed(3)
    n_records, per_record = n_rows * n_cols // format.record, format.record // format.block
    levels = torch.tensor(format.written_levels)
    code = torch.randint(0, len(levels), (n_records * per_record, format.block), generator=generator)
    code[:, 0], code[:, -1] = levels.argmin(), levels.argmax()

    def unit() -> torch.Tensor:
        return (0.01 + 0.01 * torch.rand(n_records, generator=generator)).half()

    def steps(lowest: int, highest: int) -> torch.Tensor:
        step = torch.randint(1, highest + 1, (n_records, per_record), generator=generator)
        step[:, 0] = lowest if lowest < 0 else highest
        return step.to(torch.int8).reshape(-1)

    powers = torch.randint(110, 130, (n_records,), generator=generator, dtype=torch.uint8)
    scale = powers if format.has_power_scale else unit()
    minimum = (unit() if format.steps else -unit()) if format.has_minimum else None  # with steps its negative is stored
    scale_step = steps(format.steps.lowest, format.steps.highest) if format.steps else None
    minimum_step = steps(0, format.steps.highest) if format.steps and format.has_minimum else None
    return GgmlCodes(format, (n_rows, n_cols), code.to(torch.uint8).reshape(-1), scale, minimum, scale_step, minimum_step)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_weights_on_the_grid_stay_there(name: str) -> None:
    """Without correlation, a weight that the format holds exactly, as the gguf package decodes it, is found again."""
    records = drawn_codes(GGML_FORMATS[name], 8, 512).tensors()["records"]
    w = torch.from_numpy(gguf.dequantize(records.reshape(8, -1).numpy(), gguf.GGMLQuantizationType[name.upper()]))
    codes = ggml_feedback(w, Feedback.of(torch.eye(512)), GGML_FORMATS[name])
    assert torch.equal(codes.decode(), w)


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
