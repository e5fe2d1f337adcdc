"""A packed layer multiplies and differentiates as the decoded one does, in every format."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from bitwright.finetune import weights
from bitwright.finetune.model import frozen
from bitwright.finetune.quant_linear import QuantLinear
from bitwright.finetune.weights import PackedWeight, PlainWeight
from bitwright.formats.base import Format, Packed
from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.formats.families import CODES, unpacked
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.formats.group.format import GROUP_FORMATS
from bitwright.formats.iq.format import CODEBOOK_FORMATS
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.iq import IQ

ROUNDERS = {**dict.fromkeys(BLOCK_FORMATS, BNB4), **dict.fromkeys(GGML_FORMATS, GGML)}
ROUNDERS |= {**dict.fromkeys(GROUP_FORMATS, GROUP), **dict.fromkeys(CODEBOOK_FORMATS, IQ)}
FORMATS: dict[str, Format] = {**BLOCK_FORMATS, **GGML_FORMATS, **GROUP_FORMATS, **CODEBOOK_FORMATS}
N, K, RANK = 96, 512, 4


def packed_of(name: str, n_cols: int = K) -> Packed:
    torch.manual_seed(1)
    return Packed.of(ROUNDERS[name].nearest(torch.randn(N, n_cols) / 20, FORMATS[name]))


def decoded(packed: Packed, rank: int) -> tuple[nn.Linear, Tensor, Tensor]:
    """The same layer as stock torch has it: a linear of the decoded weight, and A and B."""
    layer = nn.Linear(packed.shape[1], packed.shape[0], bias=False)
    layer.weight = nn.Parameter(unpacked(packed).decode(torch.float32), requires_grad=False)
    a = nn.Parameter(torch.randn(rank, packed.shape[1]) / 10)
    return layer, a, nn.Parameter(torch.randn(packed.shape[0], rank) / 10)


def gradients(y: Tensor, *leaves: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    return [*torch.autograd.grad((y.float() * torch.randn(y.shape).to(y.device)).sum(), leaves)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_the_decoded_layer(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n_cols = 4096 if FORMATS[name].unavailable(K) else K
    packed = packed_of(name, n_cols)
    together = packed.format.rows_together(n_cols)
    monkeypatch.setattr(weights, "TILE_ENTRIES", n_cols * together)  # several tiles
    monkeypatch.setattr(CODES[type(packed.format)], "gpu_tile", n_cols * together)
    layer, a, b = (part.to(device) for part in decoded(packed, RANK))
    ours = QuantLinear(PackedWeight(packed), rank=RANK, alpha=8.0).to(device)
    assert ours.weight.rows_at_once() == together
    assert ours.lora_a is not None
    assert ours.lora_b is not None
    ours.lora_a.data, ours.lora_b.data = a.data.clone(), b.data.clone()
    x = torch.randn(2, 5, n_cols).to(device)
    given, again = (x.clone().requires_grad_() for _ in range(2))
    wanted = gradients(layer(given) + 2.0 * (given @ a.t()) @ b.t(), given, a, b)
    found = gradients(ours(again), again, ours.lora_a, ours.lora_b)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()
    narrow = x.bfloat16().requires_grad_()
    (by_x, *_) = gradients(ours(narrow), narrow, ours.lora_a, ours.lora_b)
    assert (by_x.float() - wanted[0]).norm() <= 2e-2 * wanted[0].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_plain_weight_is_multiplied_in_the_type_of_the_input(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "TILE_ENTRIES", 10 * K)
    value, x = torch.randn(N, K).to(dtype), torch.randn(7, K, requires_grad=True)
    layer = QuantLinear(PlainWeight(value), bias=torch.randn(N))
    y = layer(x)
    assert torch.allclose(y, x @ value.float().t() + layer.bias, atol=1e-4)
    (found,) = gradients(y, x)
    (wanted,) = gradients(x @ value.float().t(), x)
    assert (found - wanted).norm() <= 1e-6 * wanted.norm()


def test_an_evaluation_changes_nothing_and_a_new_change_is_none() -> None:
    packed = packed_of("nf4-b64-dq")
    layer = QuantLinear(PackedWeight(packed), rank=RANK)
    before = {name: tensor.clone() for name, tensor in (*layer.named_buffers(), *layer.named_parameters())}
    x = torch.randn(3, K, requires_grad=True)
    plain = x @ unpacked(packed).decode().t()
    with torch.no_grad():
        layer.eval()
        assert torch.allclose(layer(x), plain, atol=1e-5)
    layer.train()
    assert layer.lora_b is not None
    gradient = gradients(layer(x), layer.lora_b)[0]
    assert gradient.abs().sum() > 0  # bitsandbytes on a processor loses it after an evaluation
    for name, tensor in (*layer.named_buffers(), *layer.named_parameters()):
        assert torch.equal(tensor, before[name])
    assert layer.state_dict().keys() == {"lora_a", "lora_b"}


def test_only_codes_are_resident() -> None:
    layer = QuantLinear(PackedWeight(packed_of("nf4-b64-dq")))
    assert sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers()) < 0.55 * N * K


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    weight = PlainWeight(torch.zeros(4, 4))
    assert QuantLinear(weight, rank=16, alpha=32.0).scale == 2.0
    assert QuantLinear(weight, rank=16, alpha=32.0, rslora=True).scale == 8.0


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_codes_of_other_makers_are_read_as_their_library_reads_them(
    storage: torch.dtype, quant_type: str, nested: bool
) -> None:
    """Checkpoints for FSDP keep their codes as numbers of 16 or 32 bit."""
    torch.manual_seed(0)
    layer = Linear4bit(128, 96, bias=False, quant_type=quant_type, compress_statistics=nested, quant_storage=storage)
    layer.weight.data = torch.randn(96, 128)
    layer = layer.to("cpu")
    wanted = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    (_, found), *_ = frozen(layer).tiles(torch.float32)
    assert torch.equal(found, wanted.float())
