"""What training takes: weights, gradients, optimizer and activations (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bitwright.estimate.parts import LINEAR, Part
from bitwright.estimate.storage import PLAIN_4_BIT, SIXTEEN

MIXED, PURE_16, EIGHT_BIT = "AdamW, mixed precision", "AdamW, 16 bit", "AdamW, 8 bit"
OPTIMIZERS = {  # bytes a trained parameter: weight, gradient, both moments
    MIXED: 4 + 4 + 8,
    PURE_16: 2 + 2 + 4,
    EIGHT_BIT: 2 + 2 + 2,
}
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
    parts: tuple[Part, ...], text: dict[str, Any], stored: dict[str, int], *, n_tokens: int, batch: int, rank: int,
    optimizer: str, activations: str, memory: int | None,
) -> tuple[TrainingLine, ...]:  # fmt: skip
    """Full training, LoRA on 16 bit, QLoRA on NF4 and quantization-aware training, on ``batch`` texts of ``n_tokens``.

    QAT trains all weights; its quantized copies of one block at a time are small beside that. ``optimizer`` is one of
    OPTIMIZERS, ``activations`` CHECKPOINTED or KEPT.
    """
    total, adapters = sum(part.n_parameters for part in parts), adapter_parameters(parts, rank)
    cost, work = OPTIMIZERS[optimizer], activation_nbytes(text, n_tokens, batch, activations)
    ways = {
        "full": (0, total * cost),
        f"LoRA, rank {rank}": (stored[SIXTEEN], adapters * cost),
        f"QLoRA, rank {rank}": (stored[PLAIN_4_BIT], adapters * cost),
        "QAT": (0, total * cost),
    }
    lines = []
    for name, (weights, trained) in ways.items():
        line = TrainingLine(name, weights, trained, work, None)
        fits = None if memory is None else line.memory_nbytes <= memory
        lines.append(TrainingLine(name, weights, trained, work, fits))
    return tuple(lines)


def adapter_parameters(parts: tuple[Part, ...], rank: int) -> int:
    """LoRA's two factors for every matrix of the blocks (arXiv 2106.09685): rank x (rows + columns)."""
    return sum(part.count * rank * (part.shape[0] + part.shape[1]) for part in parts if part.role == LINEAR)


def activation_nbytes(text: dict[str, Any], n_tokens: int, batch: int, activations: str) -> int:
    """Activations that the backward pass needs, in 16 bit, and the logits with their gradient in 32.

    A layer keeps 34 s b h bytes where attention's own matrices are never stored (Korthikanti et al., arXiv 2205.05198,
    equation 2 without its second term); with recomputation every layer keeps its input, 2 s b h, and one at a time all of it.
    """
    hidden, layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
    one = n_tokens * batch * hidden
    of_layers = {KEPT: 34 * one * layers, CHECKPOINTED: 2 * one * layers + 34 * one}[activations]
    return of_layers + 8 * n_tokens * batch * int(text["vocab_size"])
