"""What rounds a weight into the formats of one family: to nearest, and with calibration, the default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bitwright.formats.base import Codes, Format
from bitwright.host.logic import logic_hash
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.lattice import Lattice
from bitwright.rounding.kernels.row_feedback import RowFeedback

STACK_ENTRIES = 1 << 24  # weights of all formats that are rounded side by side: 64 MiB in float32
F = TypeVar("F", bound=Format)
SWEEPS = 1  # of coordinate descent; a second one moves the objective by less than a hundredth (docs/LOG.md)


class Rounder(ABC):
    """Rounds into one family of formats. Instances hold nothing, so that a job that carries one can go anywhere."""

    formats: ClassVar[Mapping[str, Format]]
    codes: ClassVar[type[Codes]]

    @abstractmethod
    def nearest(self, weight: Tensor, format: Any) -> Codes:
        """Codes of ``weight`` [N, K], each weight to the nearest level under the scale that the stock quantizer takes."""

    @abstractmethod
    def calibrated(self, weight: Tensor, feedback: Feedback, formats: Sequence[Any]) -> list[Codes]:
        """Codes of ``weight`` [N, K] in each of ``formats``, in their order, with little tr(G dW S dW^T); G is the identity
        where ``feedback`` has nothing for rows.

        Raises ValueError for a format that cannot store rows of K weights.
        """

    @abstractmethod
    def descended(self, weight: Tensor, codes: Any, moment: Tensor) -> Codes:
        """``codes`` of ``weight`` [N, K] after a sweep of coordinate descent under damped S = ``moment`` [K, K]: tr(dW S dW^T)
        is no larger."""

    @abstractmethod
    def lattice(self, codes: Any) -> Lattice:
        """The numbers that a weight with the scales of ``codes`` can be."""

    @abstractmethod
    def rescaled(self, codes: Any, scale: Tensor, minimum: Tensor | None) -> Codes:
        """``codes`` with the storable scales and minima nearest to ``scale`` and ``minimum`` [N, G], those of a lattice."""

    def recoded(self, codes: Any, parts: Mapping[str, Tensor]) -> Codes:
        """``codes`` with other levels: ``parts`` are what a lattice's ``codes_of`` gives."""
        found: Codes = replace(codes, **{name: part.reshape(getattr(codes, name).shape) for name, part in parts.items()})
        return found

    @property
    def version(self) -> str:
        """A hash that changes with what the rounding does, and its constants: kept pieces of another version are not used."""
        return logic_hash(type(self).__module__, within="bitwright.rounding")


def by_parts(weight: Tensor, rows: RowFeedback | None, calibrated: Callable[[Tensor], Codes]) -> Codes:
    """What ``calibrated`` makes of ``weight`` [N, K], part by part where there are ``rows``, later parts making good what
    earlier ones became. For families whose rows share nothing."""
    if rows is None:
        return calibrated(weight)
    target, parts = weight.float()[rows.order], []
    for part, _ in rows.parts:
        parts.append(calibrated(target[part]))
        rows.absorb(target, part, parts[-1].decode())
    return joined(parts, rows.order)


def joined(parts: Sequence[Codes], order: Tensor) -> Codes:
    """One weight from the codes of its rows, part by part; ``order`` [N] says which row of the weight each of theirs is."""
    first, back = parts[0], order.argsort()
    whole: dict[str, Any] = {"shape": (len(order), *first.shape[1:])}
    for name, value in vars(first).items():
        if isinstance(value, Tensor):
            rows = torch.cat([getattr(part, name).reshape(part.shape[0], -1) for part in parts])[back]
            whole[name] = rows if value.dim() > 1 else rows.reshape(-1)
    found: Codes = replace(first, **whole)  # type: ignore[type-var]
    return found


def side_by_side(weight: Tensor, formats: Sequence[F], alike: Callable[[F], object]) -> Iterator[list[F]]:
    """``formats`` that can be rounded together: those of which ``alike`` says the same, as many as STACK_ENTRIES allow."""
    at_once = max(1, STACK_ENTRIES // weight.numel())
    for kind in dict.fromkeys(alike(format) for format in formats):
        same = [format for format in formats if alike(format) == kind]
        for first in range(0, len(same), at_once):
            yield same[first : first + at_once]
