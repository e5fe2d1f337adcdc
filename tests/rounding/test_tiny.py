"""Weights so small that one over their scale is not finite: decayed, pruned or never trained."""

import pytest
import torch

from bitwright.rounding.base import Rounder
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.iq import IQ
from bitwright.rounding.kernels.error_feedback import Feedback

WIDTH = 512
FORMATS = [
    pytest.param(rounder, name, id=name)
    for rounder in (BNB4, GROUP, GGML, IQ)
    for name, format in rounder.formats.items()
    if getattr(format, "block_size", 1) <= WIDTH
]


@pytest.mark.parametrize(("rounder", "name"), FORMATS)
def test_tiny_weights_are_finite_and_spoil_nothing(rounder: Rounder, name: str) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(16, WIDTH), torch.randn(600, WIDTH)
    weight[3:9] *= 3e-40
    weight[3:9, ::7] = 0.0
    weight[12, 256:] = 0.0
    weight[12, 300] = 1e-40
    feedback = Feedback.of(x.t() @ x / 600)
    (codes,) = rounder.calibrated(weight, feedback, (rounder.formats[name],))
    decoded = codes.decode()
    assert decoded.isfinite().all()
    assert (decoded[3:9].abs() <= 1e-3).all()
    big = [0, 1, 2, 9, 10, 11, 13, 14, 15]
    assert ((decoded - weight)[big].norm() / weight[big].norm()) < 1
