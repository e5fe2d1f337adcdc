"""The plan: which weight is stored how, and why. Every later stage reads this file (no torch)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bitwright.errors import fail
from bitwright.host.texts import read_object, record

SCHEMA = "bitwright.plan/3"
KNOWN_BY = b'"bitwright.plan/'  # in every plan.json
DIGEST = "sha256"  # the key in plan.json of the digest of the rest
SIXTEEN = "16bit"  # the format of a weight that stays as it is
OF_PICTURES = "questions about pictures"  # a kind of calibration text that tells nothing about other texts
ELSEWHERE = (0.75, 1.75)  # what texts of other kinds lost, over what was predicted for the kinds of calibration (docs/LOG.md)
NOISE_FLOOR = "16-bit arithmetic"  # the line of a table that is the 16-bit model itself, as it is usually run


class Rounding(StrEnum):
    """How a weight came to its codes."""

    CALIBRATED = "calibrated"
    NEAREST = "nearest"
    NONE = "none"  # 16 bit, as the source has it


@dataclass(frozen=True)
class Choice:
    """How one weight is stored."""

    weight: str
    format: str
    rounding: Rounding
    nbytes: int
    damage_nats: float
    pinned: bool = False
    reason: str = ""  # plain words, for every weight that is not in the default format


@dataclass(frozen=True)
class FrontierPoint:
    """The least predicted damage that a number of bytes buys."""

    nbytes: int
    damage_nats: float


@dataclass(frozen=True, repr=False)
class Plan:
    """A choice for every weight within a budget, and what it is expected to cost."""

    source: str
    container: str
    default_format: str
    budget: str
    budget_nbytes: int | None  # None when the budget was a damage
    nbytes: int  # of all tensors in the written files
    kept_nbytes: int
    damage_nats: float  # predicted on the choosing fold
    check_nats: float  # predicted on a fold that no choice saw
    check_stderr: float
    gap: float | None  # relative distance from the solver's bound; None of a plan that was given, as is
    price_nats_per_mb: float | None  # damage that one more megabyte saves
    choices: tuple[Choice, ...]
    frontier: tuple[FrontierPoint, ...] = ()
    fused_groups: bool = True  # whether weights that a runtime fuses had to share what it asks of them
    fused_cost_nats: float = 0.0  # predicted, that this cost at the same bytes
    broken_groups: tuple[str, ...] = ()  # fused modules whose weights do not
    check_by_kind: tuple[tuple[str, float], ...] = ()  # check_nats of each kind of calibration text
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA

    def __repr__(self) -> str:
        return f"<Plan of {self.source} in {self.container}: {self.nbytes / 1e6:.1f} MB, predicted {self.check_nats:.4f} nats>"

    def choice(self, weight: str) -> Choice:
        return next(c for c in self.choices if c.weight == weight)

    @property
    def formats(self) -> tuple[str, ...]:
        """Every format that is used, each once."""
        return tuple(dict.fromkeys(choice.format for choice in self.choices))

    @property
    def elsewhere(self) -> tuple[float, float]:
        """Between which damages texts of other kinds are to be expected: as far around the kinds of calibration text as five
        kinds were on two models (gemma-3-270m, Qwen2.5-Coder-0.5B)."""
        known = [nats for kind, nats in self.check_by_kind if kind != OF_PICTURES] or [self.check_nats]
        return ELSEWHERE[0] * min(known), ELSEWHERE[1] * max(known)

    def bits_per_weight(self, n_parameters: int) -> float:
        """Bits of each quantizable weight, scales included."""
        return 8 * (self.nbytes - self.kept_nbytes) / n_parameters

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        data = dict(data)
        choices = tuple(record(Choice, {**c, "rounding": Rounding(c["rounding"])}) for c in data.pop("choices"))
        frontier = tuple(record(FrontierPoint, point) for point in data.pop("frontier"))
        broken = tuple(data.pop("broken_groups"))
        by_kind = tuple((str(kind), float(nats)) for kind, nats in data.pop("check_by_kind"))
        rest = {"choices": choices, "frontier": frontier, "broken_groups": broken, "check_by_kind": by_kind}
        return record(cls, {**data, **rest})

    def to_json(self) -> str:
        """What ``plan.json`` holds; its digest is in it, so that an edited one is known."""
        data = self.to_dict()
        return json.dumps({**data, DIGEST: digest(data)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read ``plan.json``; raises BitwrightError when it is not one."""
        try:
            data = read_object(Path(path))
            data.pop(DIGEST, None)
            if data.get("schema") != SCHEMA:
                raise ValueError(f"schema {data.get('schema')!r}")
            return cls.from_dict(data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise fail(
                "plan/file",
                path,
                saw=f"{type(error).__name__}: {error}",
                wanted=f"a file of schema {SCHEMA}",
                help="bitwright allocate sensitivity.json -o plan.json",
            ) from error


def digest(data: dict[str, Any]) -> str:
    """SHA-256 of what a plan says."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode()).hexdigest()
