"""What a runtime promises: a checkpoint loaded as its users load it, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from bitwright.data.samples import Sample


class Loaded(ABC):
    """A model in its stock runtime."""

    @abstractmethod
    def widen(self) -> None:
        """Compute in float32 from now on, with the same weights, where the runtime leaves that open."""

    @abstractmethod
    def logits(self, samples: Sequence[Sample]) -> Iterator[Iterable[Tensor]]:
        """Logits of each sample at its positions, in parts [t, V] that are small enough to be worked on in float32.

        Take a sample's parts before the next sample's.
        """

    @abstractmethod
    def greedy(self, prompts: Tensor, count: int) -> Tensor:
        """The ``count`` likeliest ids [P, count] that follow ``prompts`` [P, T], one after the other."""

    @abstractmethod
    def answer(
        self, prompt: Sample, count: int, tell: Callable[[int], None] | None = None, temperature: float = 0.0
    ) -> list[int]:
        """The likeliest ids that follow ``prompt``, one after the other, until the model ends or there are ``count``.

        ``tell`` is called with each as soon as it is known. With a ``temperature`` they are drawn, from the global generator.
        """

    @abstractmethod
    def for_harness(self, tokenizer: Any, longest: int, batch: int) -> Any:
        """The same as a model of lm-evaluation-harness, for texts of up to ``longest`` tokens."""
