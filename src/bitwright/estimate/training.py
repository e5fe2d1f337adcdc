"""What training takes: weights, gradients, optimizer and activations (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bitwright.estimate.parts import EXPERT, LINEAR, Part
from bitwright.estimate.storage import PLAIN_4_BIT, SIXTEEN
from bitwright.models.settings import n_layers

MIXED, PURE_16, EIGHT_BIT = "AdamW, mixed precision", "AdamW, 16 bit", "AdamW, 8 bit"
OPTIMIZERS = {  # bytes a trained parameter: weight, gradient, both moments
    MIXED: 4 + 4 + 8,
    PURE_16: 2 + 2 + 4,
    EIGHT_BIT: 2 + 2 + 2,
}
LOGIT_NBYTES = 2 + 4 + 4 + 4 + 2  # a logit in 16 and in 32 bit, its logarithm, the gradients of both
FAKE_NBYTES = 2 + 1  # of a weight that quantization-aware training has rounded
CHECKPOINTED, KEPT = "recomputed", "kept"


@dataclass(frozen=True)
class TrainingLine:
    """One way to train."""

    method: str
    weights_nbytes: int  # what is not trained, as it is stored
    trained_nbytes: int  # weights, gradients and optimizer of what is
    activations_nbytes: int
    fits: bool | None

    @property
    def memory_nbytes(self) -> int:
        return self.weights_nbytes + self.trained_nbytes + self.activations_nbytes


def training(
    parts: tuple[Part, ...],
    text: dict[str, Any],
    stored: dict[str, int],
    *,
    n_tokens: int,
    batch: int,
    rank: int,
    optimizer: str,
    activations: str,
    memory: int | None,
) -> tuple[TrainingLine, ...]:
    """Full training, LoRA on 16 bit, QLoRA on NF4 and quantization-aware training, on ``batch`` texts of ``n_tokens``.

    QAT trains all weights, and keeps for the backward pass a quantized copy of each in 16 bit with a mask of what was not
    clipped, of one layer at a time where activations are recomputed. ``optimizer`` is one of OPTIMIZERS, ``activations``
    CHECKPOINTED or KEPT.
    """
    total, adapters = sum(part.n_parameters for part in parts), adapter_parameters(parts, rank)
    cost, work = OPTIMIZERS[optimizer], activation_nbytes(text, n_tokens, batch, activations)
    copies = FAKE_NBYTES * sum(part.n_parameters for part in parts if part.role in (LINEAR, EXPERT))
    copies = copies // n_layers(text) if activations == CHECKPOINTED else copies
    ways = {
        "full": (0, total * cost, work),
        f"LoRA, rank {rank}": (stored[SIXTEEN], adapters * cost, work),
        f"QLoRA, rank {rank}": (stored[PLAIN_4_BIT], adapters * cost, work),
        "QAT": (0, total * cost, work + copies),
    }
    return tuple(
        TrainingLine(name, *sizes, fits=None if memory is None else sum(sizes) <= memory) for name, sizes in ways.items()
    )


def adapter_parameters(parts: tuple[Part, ...], rank: int) -> int:
    """LoRA's two factors for every matrix of the blocks (arXiv 2106.09685): rank x (rows + columns)."""
    return sum(part.count * rank * (part.shape[0] + part.shape[1]) for part in parts if part.role == LINEAR)


def activation_nbytes(text: dict[str, Any], n_tokens: int, batch: int, activations: str) -> int:
    """Activations that the backward pass needs, in 16 bit, and what transformers' loss keeps of the logits.

    A layer keeps 34 s b h bytes where attention's own matrices are never stored (Korthikanti et al., arXiv 2205.05198,
    equation 2 without its second term); with recomputation every layer keeps its input, 2 s b h, and one at a time all of it.
    """
    hidden, layers = int(text["hidden_size"]), n_layers(text)
    one = n_tokens * batch * hidden
    of_layers = {KEPT: 34 * one * layers, CHECKPOINTED: 2 * one * layers + 34 * one}[activations]
    return of_layers + LOGIT_NBYTES * n_tokens * batch * int(text["vocab_size"])
