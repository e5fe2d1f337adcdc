"""Training through the step to a lattice: what is trained is what a file decodes to, for every family with scales."""

from itertools import product

import pytest
import torch

from bitwright.formats.base import Codes, Format, Packed
from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.formats.families import unpacked
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.formats.group.format import GROUP_FORMATS
from bitwright.formats.iq.codes import table_of
from bitwright.formats.iq.format import CODEBOOK_FORMATS, DELTA
from bitwright.rounding.base import Rounder
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.iq import IQ
from bitwright.rounding.kernels.lattice import Lattice, ScalarLattice, snap

CASES = [(BNB4, f) for f in BLOCK_FORMATS.values()] + [(GGML, f) for f in GGML_FORMATS.values() if f.name != "tq1_0"]
CASES += [(GROUP, f) for f in GROUP_FORMATS.values()]
CASES += [(IQ, f) for f in CODEBOOK_FORMATS.values()]


def made(rounder: Rounder, format: Format) -> tuple[torch.Tensor, Codes, Lattice]:
    torch.manual_seed(0)
    weight = 0.05 * torch.randn(8, 4096 if format.unavailable(512) else 512)
    codes = rounder.nearest(weight, format)
    return weight, codes, rounder.lattice(codes)


@pytest.mark.parametrize(("rounder", "format"), CASES, ids=lambda part: getattr(part, "name", ""))
def test_it_begins_with_the_codes_that_are_there(rounder: Rounder, format: Format) -> None:
    weight, codes, lattice = made(rounder, format)
    steps = lattice.begun(weight, codes)
    begun = snap(lattice, steps, lattice.scale, lattice.minimum)
    assert torch.allclose(begun, codes.decode(), rtol=1e-5, atol=1e-7)
    again = rounder.recoded(codes, lattice.codes_of(steps))
    assert torch.equal(again.decode(), codes.decode())


@pytest.mark.parametrize(("rounder", "format"), CASES, ids=lambda part: getattr(part, "name", ""))
def test_what_is_trained_is_what_is_stored(rounder: Rounder, format: Format) -> None:
    weight, codes, lattice = made(rounder, format)
    scale = lattice.scale * (1 + 0.2 * torch.randn(lattice.scale.shape))
    minimum = None if lattice.minimum is None else lattice.minimum * (1 + 0.2 * torch.randn(lattice.minimum.shape))
    moved = rounder.rescaled(codes, scale, minimum)
    now = rounder.lattice(moved)
    assert not torch.equal(now.scale, lattice.scale)
    steps = now.steps_of(weight + 0.02 * torch.randn(weight.shape))
    trained = snap(now, steps, now.scale, now.minimum)
    stored = Packed.of(rounder.recoded(moved, now.codes_of(steps)))
    assert torch.allclose(unpacked(stored).decode(), trained, rtol=1e-5, atol=1e-7)


def test_gradients_pass_the_step_and_end_beyond_the_last_level() -> None:
    weight, _, lattice = made(GGML, GGML_FORMATS["q4_1"])
    steps = lattice.steps_of(weight).requires_grad_(True)
    with torch.no_grad():
        steps[0, 0] = 40.0  # far above the highest level
    scale, minimum = lattice.scale.clone().requires_grad_(True), lattice.minimum.clone().requires_grad_(True)  # type: ignore[union-attr]
    g = torch.randn(weight.shape)
    (snap(lattice, steps, scale, minimum) * g).sum().backward()
    assert steps.grad is not None
    assert scale.grad is not None
    assert minimum.grad is not None
    assert steps.grad[0, 0] == 0
    wanted = (g * (lattice.scale * lattice.spacing).repeat_interleave(lattice.size, 1))[0, 1:]
    assert torch.allclose(steps.grad[0, 1:], wanted)
    assert torch.allclose(minimum.grad, g.reshape(8, -1, lattice.size).sum(2), atol=1e-5)
    with torch.no_grad():  # along the scale the weights are linear
        step = 1e-3 * torch.randn(scale.shape)
        change = ((snap(lattice, steps, scale + step, minimum) - snap(lattice, steps, scale, minimum)) * g).sum()
    assert float(change) == pytest.approx(float((scale.grad * step).sum()), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["nf4-b64", "iq4_nl", "mxfp4"])
def test_between_levels_that_lie_far_apart_gradients_pass_too(name: str) -> None:
    rounder = next(r for r in (BNB4, GGML) if name in r.formats)
    _, _, lattice = made(rounder, rounder.formats[name])
    assert isinstance(lattice, ScalarLattice)
    levels = lattice.levels_by_code(torch.device("cpu")).unique()
    middles = (levels[1:] + levels[:-1]) / 2 / lattice.spacing
    steps = torch.zeros(8, 512)
    steps[0, : len(middles)] = middles
    steps[1, :2] = torch.tensor([levels[0] / lattice.spacing - 0.6, levels[-1] / lattice.spacing + 0.6])
    steps.requires_grad_(True)
    snap(lattice, steps, torch.ones_like(lattice.scale), None).sum().backward()
    assert steps.grad is not None
    assert (steps.grad[0] > 0).all()
    assert (steps.grad[1, :2] == 0).all()


@pytest.mark.parametrize("name", ["iq2_s", "iq3_s", "iq1_m"])
def test_no_entry_of_a_codebook_is_nearer(name: str) -> None:
    format = IQ.formats[name]
    weight, _, lattice = made(IQ, format)
    steps = lattice.steps_of(weight)
    size, n = format.group, 4
    found = lattice.levels(steps).reshape(-1, size)[:n]
    table = table_of(format)
    if format.signs == "free":
        signs = torch.tensor(list(product((-1.0, 1.0), repeat=size)))
        every = (table[:, None] * signs).reshape(-1, size)
    else:
        every = torch.cat([table + DELTA, table - DELTA])
    wanted = every[torch.cdist(steps.reshape(-1, size)[:n] * lattice.spacing, every).argmin(1)]
    assert torch.equal(found, wanted)
