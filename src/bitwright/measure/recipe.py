"""How weights are measured, and what is found for each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import Tensor

from bitwright.formats.format import Quantized
from bitwright.models.spec import Weight
from bitwright.rounding.error_feedback import DAMPING


@dataclass(frozen=True)
class Recipe:
    """How weights are measured and rounded. Each default is the winner of an experiment in docs/LOG.md."""

    formats: dict[str, tuple[Quantized, ...]]  # of each weight, rounded with calibration
    stock: dict[str, Quantized]  # of each weight that the container's own quantizer can store: rounded to nearest
    importance: dict[str, Tensor] = field(default_factory=dict)  # mean squared inputs [K] that replace those of the text
    plain_share: float = 0.1  # of the unweighted second moment in the blend
    damping: float = DAMPING
    batch_tokens: int = 2048
    seed: int = 0

    def stock_of(self, weight: Weight) -> list[Quantized]:
        """The stock format, or nothing where it cannot store ``weight``."""
        return [self.stock[weight.name]] if weight.name in self.stock else []

    def unmeasured(self, weight: Weight) -> Measured:
        """What will be found for ``weight``, with zeros for figures."""
        pairs = [(format.name, "nearest") for format in self.stock_of(weight)]
        pairs += [(format.name, "calibrated") for format in self.formats[weight.name]]
        return Measured(weight.name, self.damping, tuple(Candidate(*pair, *[0.0] * 7) for pair in pairs))

    def key(self) -> dict[str, object]:
        numbers = (self.plain_share, self.damping, self.batch_tokens, self.seed)
        formats = {name: [format.name for format in formats] for name, formats in self.formats.items()}
        stock = {name: format.name for name, format in self.stock.items()}
        digest = hashlib.sha256(b"".join(mean.numpy().tobytes() for mean in self.importance.values())).hexdigest()
        return {"formats": formats, "stock": stock, "numbers": numbers, "importance": digest if self.importance else None}


@dataclass(frozen=True)
class Candidate:
    """What was found for one weight in one format."""

    format: str
    rounding: str
    damage_nats: float
    damage_stderr: float
    check_nats: float
    check_stderr: float
    weight_error: float
    output_error: float
    moment_nats: float  # tr(dW S dW^T) / (2 N) with the moment that rounding used: damage if outputs were independent


@dataclass(frozen=True)
class Measured:
    """All candidates of one weight, and the damping that its second moment needed."""

    name: str
    damping: float
    candidates: tuple[Candidate, ...]
