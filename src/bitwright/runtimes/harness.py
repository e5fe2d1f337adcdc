"""A GGUF file in llama.cpp as a model of lm-evaluation-harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM

if TYPE_CHECKING:
    from bitwright.runtimes.llama_cpp import LlamaCpp


class GgufLM(TemplateLM):
    """A GGUF file in llama.cpp, as the harness wants to ask it: log-likelihoods of continuations."""

    def __init__(self, runtime: LlamaCpp, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.runtime, self.opening = runtime, runtime.tokenize("")  # [BOS] where the file asks for one

    @property
    def eot_token_id(self) -> int:
        return self.opening[0] if self.opening else 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.runtime.tokenize(string)
        return ids[len(self.opening) :] if add_special_tokens is False else ids

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return [self._one(context, continuation) for _, context, continuation in requests]

    def _one(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        ids = torch.tensor([*context, *continuation][-self.longest :])
        logits = self.runtime.last_logits(ids[:-1], len(continuation)).log_softmax(-1)
        wanted = ids[-len(continuation) :]
        return float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("rolling likelihoods of a GGUF file: --tasks takes multiple choice")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("text from a GGUF file: --tasks takes multiple choice")
