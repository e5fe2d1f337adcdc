"""What has been seen of a unit's weights: second moments over the rounding fold, and the traffic of the scoring folds."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.measure.curvature import token_weights
from bitwright.measure.moments import SecondMoment, rows_may_share
from bitwright.measure.traffic import Traffic, narrowed
from bitwright.models.spec import Weight


class Collected:
    """Batch by batch. ``kept``: the type in which traffic waits for its job."""

    def __init__(self, kept: torch.dtype) -> None:
        self.moments = BlockMoments()
        self.scoring: dict[str, list[Traffic]] = {}
        self._kept = kept

    def add(self, traffic: dict[str, Traffic], rounding: bool) -> None:
        """The traffic of one batch, which is of the ``rounding`` fold or of a scoring one."""
        if rounding:
            self.moments.add(traffic)
            return
        for name, rows in narrowed(traffic, self._kept).items():
            self.scoring.setdefault(name, []).append(rows)

    def complete(self, weights: tuple[Weight, ...]) -> list[Weight]:
        """Those of ``weights`` that samples of both kinds passed; the widest last, when what the others needed is gone."""
        seen = [weight for weight in weights if weight.name in self.scoring and self.moments.knows(weight.name)]
        return sorted(seen, key=lambda weight: weight.n_cols)


class BlockMoments:
    """Second moments of a block's weights: of inputs, plain once per distinct input and weighted once per weight, and of output
    gradients, where rows may make up for each other."""

    def __init__(self) -> None:
        self.shared: dict[str, str] = {}  # weight -> first weight that is given the same input
        self.plain: dict[str, SecondMoment] = {}
        self.weighted: dict[str, SecondMoment] = {}
        self.outputs: dict[str, SecondMoment] = {}
        self.n_rows: dict[str, int] = {}  # that were added

    def knows(self, name: str) -> bool:
        return name in self.weighted

    def add(self, traffic: dict[str, Traffic]) -> None:
        first: dict[int, str] = {}
        for name, rows in traffic.items():
            owner = self.shared.setdefault(name, first.setdefault(rows.x.data_ptr(), name))
            if owner == name:
                self._sum(self.plain, name, rows.x).add(rows.x)
            self._sum(self.weighted, name, rows.x).add(rows.x, token_weights(rows.g))
            if rows_may_share(rows.g.shape[1], rows.x.shape[1]):
                self._sum(self.outputs, name, rows.g).add(rows.g, token_weights(rows.x))
            self.n_rows[name] = self.n_rows.get(name, 0) + len(rows.x)

    @staticmethod
    def _sum(sums: dict[str, SecondMoment], name: str, x: Tensor) -> SecondMoment:
        if name not in sums:
            sums[name] = SecondMoment(x.shape[-1], x.device)
        return sums[name]

    def take(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sums over tokens for ``name``: x x^T, plain and weighted, and g g^T; they are kept no longer than needed."""
        owner = self.shared.pop(name)
        plain = self.plain[owner] if owner in self.shared.values() else self.plain.pop(owner)
        outputs = self.outputs.pop(name).take() if name in self.outputs else None
        return plain.take(), self.weighted.pop(name).take(), outputs
