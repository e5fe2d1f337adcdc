"""Training in the format: a layer begins as its file, moves codes and scales, and ends as a file that decodes to it."""

from __future__ import annotations

import pytest
import torch

from bitwright.finetune.snapped import SnappedLinear
from bitwright.formats.base import Format, Packed
from bitwright.formats.families import unpacked
from bitwright.rounding.base import Rounder
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.iq import IQ

ROUNDERS: tuple[Rounder, ...] = (BNB4, GGML, GROUP, IQ)
COLUMNS = 256
NAMES = [name for r in ROUNDERS for name, format in r.formats.items() if not format.unavailable(COLUMNS)]
TWO_ZEROS = ("mxfp4", "fp4")  # which of them a file holds is not told by what it decodes to


def layer_of(name: str, rank: int = 0) -> tuple[SnappedLinear, Packed, torch.Tensor]:
    torch.manual_seed(1)
    rounder = next(r for r in ROUNDERS if name in r.formats)
    format: Format = rounder.formats[name]
    weight = torch.randn(64, COLUMNS) / 16
    packed = Packed.of(rounder.nearest(weight, format))
    return SnappedLinear(packed, rounder, weight, torch.randn(64), rank), packed, weight


def trained(layer: SnappedLinear, x: torch.Tensor, wanted: torch.Tensor, learning_rate: float) -> list[float]:
    """The losses of a dozen steps."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=learning_rate)
    losses = []
    for _ in range(12):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", NAMES)
def test_it_begins_and_ends_as_its_file(name: str, rank: int) -> None:
    layer, packed, _ = layer_of(name, rank)
    begun = layer.packed()
    assert torch.equal(unpacked(begun).decode(), unpacked(packed).decode())
    if not name.startswith(TWO_ZEROS):
        assert all(torch.equal(begun.tensors[part], tensor) for part, tensor in packed.tensors.items())
    x, wanted = torch.randn(200, COLUMNS), torch.randn(200, 64)
    losses = trained(layer, x, wanted, 0.02)
    assert losses[-1] < losses[0]
    ended = layer.packed()
    assert unpacked(ended).decode() == pytest.approx(layer.weight.detach(), rel=1e-5, abs=1e-6)
    part = "entry" if name in IQ.formats else "code"
    assert not torch.equal(getattr(unpacked(ended), part), getattr(unpacked(packed), part))
    assert {part: tensor.shape for part, tensor in ended.tensors.items()} == {p: t.shape for p, t in packed.tensors.items()}


def test_calibrated_codes_are_where_it_begins() -> None:
    """Where calibration chose another level than the nearest, training begins at that level."""
    _, packed, weight = layer_of("q4_0")
    codes = unpacked(packed)
    other = GGML.recoded(codes, {"code": (codes.code + 1).clamp(max=15)})  # type: ignore[attr-defined]
    begun = SnappedLinear(Packed.of(other), GGML, weight)
    assert torch.equal(unpacked(begun.packed()).decode(), other.decode())


@pytest.mark.parametrize("name", ["nf4-b64", "q4_k", "w2-g32", "iq2_xxs"])
def test_scales_alone(name: str) -> None:
    _, packed, weight = layer_of(name)
    rounder = next(r for r in ROUNDERS if name in r.formats)
    layer = SnappedLinear(packed, rounder, None)
    assert unpacked(layer.packed()).decode() == pytest.approx(unpacked(packed).decode(), rel=1e-5)
    x = torch.randn(200, COLUMNS)
    wanted = x @ (1.4 * weight).t()
    losses = trained(layer, x, wanted, 0.05)
    assert losses[-1] < 0.9 * losses[0]
    ended = layer.packed()
    assert unpacked(ended).decode() == pytest.approx(layer.weight.detach(), rel=1e-5, abs=1e-6)
    kept = {"code", "entry", "sign"} & set(vars(unpacked(packed)))
    assert all(torch.equal(getattr(unpacked(ended), part), getattr(unpacked(packed), part)) for part in kept)
