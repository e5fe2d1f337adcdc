"""Pictures of equal shapes in one forward pass."""

import pytest
import torch

from bitwright.data.samples import IDS, PATCH, Sample, alike, batches
from bitwright.runtimes.transformers import TransformersModel
from tests.vision import FAMILIES, built


@pytest.mark.parametrize("name", FAMILIES)
def test_together_each_is_answered_as_alone(name: str) -> None:
    family = FAMILIES[name]
    size = family.fixed or (4, 4)
    sizes = [[size], [], [size], [size, size][: family.n_images], [], [size], [size, size][: family.n_images]]
    samples = [family.sample(of, seed) for seed, of in enumerate(sizes)]
    assert len(alike(samples, 2048, seeing=True)) == (3 if family.n_images > 1 else 2)
    model = built(name).float().eval()
    with torch.no_grad():
        for sample, parts in zip(samples, TransformersModel(model, "cpu").logits(samples), strict=True):
            wanted = model(**sample.alone(torch.float32)).logits[0][sample.positions]
            assert torch.allclose(torch.cat(list(parts)), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_large_pictures_share_no_pass() -> None:
    samples = [Sample({IDS: torch.arange(8)}, None, {"pixel_values": torch.zeros(1, 3, 64, 64)}) for _ in range(3)]
    assert 16 * PATCH == 3 * 64 * 64, "each counts as sixteen tokens, and not as its eight"
    assert alike(samples, 47, seeing=True) == [(0, 1), (2,)]
    assert alike(samples, 48, seeing=True) == [(0, 1, 2)]
    assert len(batches(samples, 48)) == 3, "each is measured by itself"
