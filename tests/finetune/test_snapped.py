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

NAMES = ["nf4-b64", "nf4-b32-dq", "q4_0", "q4_1", "q2_k", "q3_k", "q4_k", "iq4_nl", "mxfp4", "w2-g32", "w4-g64"]
ROUNDERS: tuple[Rounder, ...] = (BNB4, GGML, GROUP)


def layer_of(name: str, rank: int = 0) -> tuple[SnappedLinear, Packed, torch.Tensor]:
    torch.manual_seed(1)
    rounder = next(r for r in ROUNDERS if name in r.formats)
    format: Format = rounder.formats[name]
    weight = torch.randn(64, 256) / 16
    packed = Packed.of(rounder.nearest(weight, format))
    return SnappedLinear(packed, rounder, weight, torch.randn(64), rank), packed, weight


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", NAMES)
def test_it_begins_and_ends_as_its_file(name: str, rank: int) -> None:
    layer, packed, _ = layer_of(name, rank)
    begun = layer.packed()
    assert torch.equal(unpacked(begun).decode(), unpacked(packed).decode())
    if name != "mxfp4":  # which has two zeros
        assert all(torch.equal(begun.tensors[part], tensor) for part, tensor in packed.tensors.items())
    x, wanted = torch.randn(200, 256), torch.randn(200, 64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    ended = layer.packed()
    assert unpacked(ended).decode() == pytest.approx(layer.weight.detach(), rel=1e-5, abs=1e-6)
    moved = (unpacked(ended).code != unpacked(packed).code).float().mean()  # type: ignore[attr-defined]
    assert moved > 0
    assert {part: tensor.shape for part, tensor in ended.tensors.items()} == {p: t.shape for p, t in packed.tensors.items()}


def test_calibrated_codes_are_where_it_begins() -> None:
    """Where calibration chose another level than the nearest, training begins at that level."""
    _, packed, weight = layer_of("q4_0")
    codes = unpacked(packed)
    other = GGML.recoded(codes, (codes.code.reshape(64, 256) + 1).clamp(max=15))  # type: ignore[attr-defined]
    begun = SnappedLinear(Packed.of(other), GGML, weight)
    assert torch.equal(unpacked(begun.packed()).decode(), other.decode())


def test_codebooks_are_refused() -> None:
    weight = torch.randn(2, 256)
    packed = Packed.of(IQ.nearest(weight, IQ.formats["iq2_xs"]))
    with pytest.raises(ValueError, match="no lattice"):
        SnappedLinear(packed, IQ, weight)
