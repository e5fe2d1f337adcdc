"""The shapes that annotations name are checked while the tests run."""

import pytest
import torch

from bitwright.measure.curvature import blend_into, fisher_scores
from bitwright.measure.traffic import Traffic
from bitwright.rounding.kernels.inverse_factor import inverse_factor


def test_arrays_of_other_shapes_are_refused() -> None:
    with pytest.raises(Exception, match="Type-check"):
        blend_into(torch.eye(3), torch.eye(4), 0.1)
    with pytest.raises(Exception, match="Type-check"):
        inverse_factor(torch.eye(3, 4))
    with pytest.raises(Exception, match="Type-check"):
        traffic = Traffic(torch.ones(2, 3), torch.ones(2, 4), torch.zeros(2, dtype=torch.long))
        fisher_scores([torch.ones(3, 4)], traffic, 1)
