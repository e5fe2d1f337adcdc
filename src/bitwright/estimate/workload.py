"""What a model is to work on, and what that takes beside its weights (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.estimate.cache import cache_nbytes, longest_context
from bitwright.models.settings import Config, text_config

CHUNK_TOKENS = 512  # of a prompt that are worked on at once
CUDA_NBYTES = 500_000_000  # a CUDA context takes 0.3 to 0.5 GB, and PyTorch's allocator keeps some blocks half full


@dataclass(frozen=True)
class Workload:
    """Texts that the model of ``config`` reads at once, and the memory that there is for both."""

    config: Config
    context: int = 4096
    batch: int = 1
    cache_bits: float = 16
    overhead: int = 0  # bytes that the runtime takes beside the model
    memory: int | None = None

    @property
    def cache_nbytes(self) -> int:
        return cache_nbytes(self.config, self.context, self.batch, self.cache_bits)

    @property
    def workspace_nbytes(self) -> int:
        """What one forward pass needs beside weights and cache: activations of one chunk in 16 bit, logits in 32; and the
        overhead.

        Of a token the residual stream, its norm, queries, keys and values, and both inner vectors of the feed-forward layer
        are alive at once.
        """
        text = text_config(self.config)
        hidden, inner = int(text["hidden_size"]), int(text.get("intermediate_size") or 0)
        activations = 2 * self.batch * CHUNK_TOKENS * (6 * hidden + 3 * inner)
        return activations + 4 * self.batch * int(text["vocab_size"]) + self.overhead

    @property
    def beside_nbytes(self) -> int:
        """Everything but the weights."""
        return self.cache_nbytes + self.workspace_nbytes

    @property
    def room_nbytes(self) -> int | None:
        """What is left for weights, below 0 where nothing is; None where no memory was named."""
        return None if self.memory is None else self.memory - self.beside_nbytes

    def longest_context(self, weights_nbytes: int) -> int | None:
        """Tokens that fit beside such weights; None where no memory was named."""
        if self.memory is None:
            return None
        room = self.memory - weights_nbytes - self.workspace_nbytes
        return longest_context(self.config, room, self.batch, self.cache_bits) if room > 0 else 0
