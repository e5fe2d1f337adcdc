"""Tokens drawn from distributions over a vocabulary come as often as the distribution says."""

import pytest
import torch

from bitwright.data.draw import draw, drawn_at


@pytest.mark.parametrize("n_entries", [5, 256, 700])
def test_draws_follow_the_softmax(n_entries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, n_entries, generator=generator) * 2
    logits[0, 3] = -torch.inf
    n_draws = 200_000
    even = torch.arange(n_draws).add(0.5).div(n_draws)  # every quantile once: the counts are the distribution itself
    drawn = torch.cat([draw(logits.expand(len(u), -1), u[:, None])[:, 0] for u in even.split(4000)])
    counts = drawn.bincount(minlength=n_entries)
    expected = logits.double().softmax(-1)[0] * n_draws
    assert (counts - expected).abs().max() <= 3
    assert counts[3] == 0
    edges = draw(logits.expand(2, -1), torch.tensor([[0.0], [1.0]]))
    assert ((edges >= 0) & (edges < n_entries)).all()


@pytest.mark.parametrize("n_entries", [7, 256, 1000])
def test_several_points_of_one_distribution(n_entries: int) -> None:
    mass = torch.rand(5, n_entries, generator=torch.Generator().manual_seed(3))
    mass[:, ::3] = 0
    shares = torch.tensor([[1e-6, 0.1, 0.5, 0.9, 1.0]]).expand(5, -1)
    found = drawn_at(mass, shares)
    upto = mass.double().cumsum(-1)
    for row in range(5):
        assert bool((mass[row, found[row]] > 0).all()), "nothing without mass is drawn"
        for share, at in zip(shares[row].double() * upto[row, -1], found[row].tolist(), strict=True):
            assert upto[row, at] >= share * (1 - 1e-6)
            assert at == 0 or upto[row, at - 1] <= share * (1 + 1e-6)


def test_nothing_without_mass_is_drawn_where_a_share_falls_between_runs() -> None:
    """Sums of runs are rounded otherwise than sums within them."""
    mass = torch.rand(64, 40 * 256, generator=torch.Generator().manual_seed(1)) ** 8
    mass.view(64, 40, 256)[:, :, :100] = 0
    mass[:, : 3 * 256] = 0
    upto = mass.view(64, 40, 256).sum(-1).double().cumsum(-1)
    borders = upto[:, 2:-1] / upto[:, -1:]
    shares = torch.cat([torch.zeros(64, 1), borders.float(), borders.float().nextafter(torch.ones(()))], 1)
    assert bool((mass.gather(1, drawn_at(mass, shares)) > 0).all())
