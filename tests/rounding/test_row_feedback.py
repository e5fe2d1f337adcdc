"""Rows that make good what earlier rows became: the algebra, every family, and when it is left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitwright.formats.base import Packed
from bitwright.formats.families import unpacked
from bitwright.rounding.base import Rounder
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.iq import IQ
from bitwright.rounding.kernels.damping import Unseen
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.row_feedback import PARTS, RowFeedback, interleaved

N, K = 76, 256  # no multiple of PARTS rows
FORMATS = [
    (BNB4, "nf4-b64-dq"),
    (BNB4, "nf4-b32"),
    (GROUP, "w4-g32"),
    (GROUP, "w2-g64"),
    (GGML, "q4_0"),
    (GGML, "q4_k"),
    (GGML, "q3_k"),
    (GGML, "mxfp4"),
    (IQ, "iq2_s"),
    (IQ, "iq3_xxs"),
    (IQ, "iq1_s"),
]


def rows(count: int, width: int, seed: int) -> Tensor:
    """Inputs or gradients with a few strong directions."""
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(width)) * torch.logspace(0, -2, width)
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) @ mixing.t()


def unseen() -> Unseen:
    return Unseen(rows(500, N, 9), torch.ones(500))


def outputs() -> Tensor:
    g = rows(4000, N, 1)
    return g.t() @ g


def made(moment: Callable[[], Tensor] = outputs) -> RowFeedback:
    found = RowFeedback.of(moment(), unseen())
    assert found is not None
    return found


def test_the_rows_behind_move_to_the_least_cost_that_is_left() -> None:
    """Against the minimum of tr(G dW S dW^T) over them, found by the normal equations."""
    torch.manual_seed(0)
    feedback = made()
    part, _ = feedback.parts[0]
    target = torch.randn(N, K)
    moved, decoded = target.clone(), target[part] + 0.1 * torch.randn(part.stop, K)
    feedback.absorb(moved, part, decoded)
    g = torch.linalg.inv(feedback.factor.double().t() @ feedback.factor.double())
    wanted = -torch.linalg.solve(g[part.stop :, part.stop :], g[part.stop :, part] @ (decoded - target[part]).double())
    assert torch.allclose((moved - target)[part.stop :].double(), wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(moved[part], target[part])


def test_each_row_is_in_one_part_and_neighbours_are_not_in_the_same() -> None:
    order = interleaved(N)
    assert sorted(order.tolist()) == list(range(N))
    feedback = made()
    assert [order[part].tolist() for part, _ in feedback.parts] == [list(range(N))[own] for _, own in feedback.parts]
    assert len(feedback.parts) == PARTS
    few = RowFeedback(interleaved(3), torch.eye(3))
    assert [part for part, _ in few.parts] == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize(("rounder", "name"), FORMATS, ids=[name for _, name in FORMATS])
def test_every_format_loses_less_and_its_files_hold_it(rounder: Rounder, name: str) -> None:
    """What is lost on gradients and inputs that nothing was made of, against rows that take no notice of each other."""
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(N, K, generator=generator) * 0.05, rows(4000, K, 2)
    feedback, format = Feedback.of(x.t() @ x), rounder.formats[name]
    (apart,) = rounder.calibrated(weight, feedback, [format])
    (together,) = rounder.calibrated(weight, Feedback(feedback.factor, feedback.moment, feedback.damping, made()), [format])
    seen, felt = rows(2000, K, 5), rows(2000, N, 6)

    def cost(decoded: Tensor) -> float:
        return float(((seen @ (decoded - weight).t()) * felt).sum(1).square().mean())

    assert cost(together.decode()) < 0.8 * cost(apart.decode())
    assert together.shape == (N, K)
    assert torch.equal(unpacked(Packed.of(together)).decode(), together.decode())


def test_rows_that_have_nothing_to_do_with_each_other_are_left_alone() -> None:
    g = torch.randn(4000, N, generator=torch.Generator().manual_seed(1))
    assert RowFeedback.of(g.t() @ g, Unseen(torch.randn(500, N), torch.ones(500))) is None
    assert RowFeedback.of(torch.zeros(N, N), Unseen(torch.zeros(500, N), torch.ones(500))) is None


def test_a_part_that_is_stored_as_it_is_moves_nothing() -> None:
    feedback = made()
    target = torch.randn(N, K)
    moved = target.clone()
    for part, _ in feedback.parts:
        feedback.absorb(moved, part, target[part])
    assert torch.equal(moved, target)
