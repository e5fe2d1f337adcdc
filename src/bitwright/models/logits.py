"""What classes make of the products of their output head before they are logits: a factor, a cap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon H1
DIVISORS = ("logits_scaling",)  # Granite
MULTIPLIES = ("hyperclovax",)  # classes that multiply with what others divide by


@dataclass(frozen=True)
class LogitRule:
    """logits = cap tanh(factor z / cap), z = W x + b being what the output head returns; a cap of 0 is none.

    >>> import torch
    >>> LogitRule(factor=0.5).logits(torch.tensor([4.0]))
    tensor([2.])
    """

    factor: float = 1.0
    cap: float = 0.0

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """That of the class of a transformers configuration, as it states it."""
        text, factor = config.get_text_config(), 1.0
        for name in (*FACTORS, *DIVISORS):
            value = float(getattr(text, name, None) or 1.0)
            divides = name in DIVISORS and text.model_type not in MULTIPLIES
            factor *= 1 / value if divides else value
        return cls(factor, float(getattr(text, "final_logit_softcapping", None) or 0.0))

    def logits(self, products: Tensor) -> Tensor:
        """Logits of ``products`` z, in their place."""
        scaled = products.mul_(self.factor) if self.factor != 1 else products
        return scaled.div_(self.cap).tanh_().mul_(self.cap) if self.cap else scaled

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d z where they are ``logits``."""
        if not self.cap:
            return self.factor
        return (logits / self.cap).square_().neg_().add_(1).mul_(self.factor)


PLAIN = LogitRule()  # logits are what the head returns
