"""What every weight loses in every format: the table that the allocator reads (no torch)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bitwright.errors import fail
from bitwright.host.texts import read_object, record
from bitwright.plan import SIXTEEN, Rounding

LARGEST = 1e9  # nats per token, more than any change costs
SCHEMA = "bitwright.sensitivity/4"


class Shares(StrEnum):
    """What the weights of a group have in common."""

    FORMAT = "format"  # one format for all
    SIXTEEN_BIT = "16bit"  # all in 16 bit or none


@dataclass(frozen=True)
class Group:
    """Weights that a runtime multiplies as one matrix, and what it asks of them for that."""

    name: str  # of the fused module
    weights: tuple[str, ...]
    shares: Shares


@dataclass(frozen=True)
class Row:
    """One weight in one format. Damage is in nats per token, KL from the 16-bit model; bytes are the container's."""

    format: str
    rounding: Rounding
    nbytes: int
    damage_nats: float  # on the choosing fold, shrunk (measure/shrink.py)
    damage_stderr: float
    fisher_nats: float  # on the choosing fold, as estimated from this weight alone
    check_nats: float  # mean on the predicting fold, which no choice sees
    check_stderr: float
    weight_error: float  # |dW| / |W|
    output_error: float  # sqrt(tr(dW S dW^T) / tr(W S W^T))
    check_by_kind: tuple[float, ...] = ()  # check_nats of each kind of text in that fold, in the order of provenance["kinds"]


@dataclass(frozen=True)
class WeightRows:
    """All candidate formats of one weight."""

    name: str
    block: int
    role: str
    n_rows: int
    n_cols: int
    rows: tuple[Row, ...]
    stock: str  # the format that the container's own quantizer stores it in
    damping: float  # share of the mean diagonal that the second moment needed to be factored
    unavailable: tuple[tuple[str, str], ...] = ()  # (format, why it cannot store this weight)
    stack: str = "text"
    group: str = "text"  # part of the model: a stack, projector, vocabulary
    ceiling_nats: float | None = None  # what it cannot cost more than, where a large damage was measured directly

    def row(self, format: str, rounding: Rounding) -> Row:
        return next(r for r in self.rows if r.format == format and r.rounding == rounding)

    def row_or_16bit(self, format: str, rounding: Rounding) -> Row:
        """The row of a format that may be unable to store this weight; 16 bit always can."""
        found = [r for r in self.rows if r.format == format and r.rounding == rounding]
        return found[0] if found else self.row(SIXTEEN, Rounding.NONE)


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """Every weight's candidates, and the facts that the plan must carry along."""

    source: str
    container: str
    stock: str  # what people get without us, the zero of "+10%"
    kept_nbytes: int  # what lies outside the choice: norms, file headers, and embeddings where the container keeps them
    weights: tuple[WeightRows, ...]
    provenance: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of well-known recipes applied to this model
    groups: tuple[Group, ...] = ()  # of weights that a runtime fuses
    serves: tuple[str, ...] = ()  # the runtimes that do
    schema: str = SCHEMA

    def __repr__(self) -> str:
        formats = sorted({row.format for weight in self.weights for row in weight.rows})
        return f"<Sensitivity of {self.source}: {len(self.weights)} weights in {', '.join(formats)}>"

    @property
    def n_parameters(self) -> int:
        return sum(w.n_rows * w.n_cols for w in self.weights)

    def stock_nbytes(self) -> int:
        """Bytes of the whole when every weight is stored as the container's own quantizer does, where its runtime can."""
        return self.kept_nbytes + sum(w.row_or_16bit(w.stock, Rounding.NEAREST).nbytes for w in self.weights)

    def sixteen_bit_nbytes(self) -> int:
        """Bytes of all tensors of the 16-bit model."""
        return self.kept_nbytes + sum(w.row(SIXTEEN, Rounding.NONE).nbytes for w in self.weights)

    def _require_whole(self) -> None:
        """Raise ValueError unless every weight has its 16-bit and its stock row, and figures for all kinds of text or none."""
        kinds = self.provenance.get("kinds", [])
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError("kinds of text are no list of names")
        if not self.weights:
            raise ValueError("no weights")
        for weight in self.weights:
            formats = {row.format for row in weight.rows}
            if SIXTEEN not in formats or weight.stock not in formats:
                raise ValueError(f"{weight.name[:80]} lacks a row")
            if any(len(row.check_by_kind) not in (0, len(kinds)) for row in weight.rows):
                raise ValueError(f"{weight.name[:80]} has figures of other kinds of text")
            nats = [n for row in weight.rows for n in (row.damage_nats, row.damage_stderr, row.check_nats, row.check_stderr)]
            if weight.ceiling_nats is not None and weight.ceiling_nats < 0:
                raise ValueError(f"{weight.name[:80]} costs less than nothing")
            if any(row.nbytes < 0 for row in weight.rows) or not all(0 <= n < LARGEST for n in nats):
                raise ValueError(f"{weight.name[:80]} has a size or a damage that no weight has")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Sensitivity:
        """Read ``sensitivity.json``; raises BitwrightError when it is not one."""
        try:
            data = read_object(Path(path))
            if data.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            weights = []
            for weight in data.pop("weights"):
                rows = tuple(_row(row) for row in weight.pop("rows"))
                unavailable = tuple((f, why) for f, why in weight.pop("unavailable"))
                weights.append(record(WeightRows, {**weight, "rows": rows, "unavailable": unavailable}))
            groups = tuple(Group(g["name"], tuple(g["weights"]), Shares(g["shares"])) for g in data.pop("groups"))
            serves = tuple(data.pop("serves"))
            table = record(cls, {**data, "weights": tuple(weights), "groups": groups, "serves": serves})
            table._require_whole()
            return table
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise fail(
                "sensitivity/file",
                path,
                saw=f"{type(error).__name__}: {error}",
                wanted=f"a file of schema {SCHEMA}",
                help="bitwright measure SOURCE -o sensitivity.json",
            ) from error


def _row(data: dict[str, Any]) -> Row:
    by_kind = tuple(float(nats) for nats in data["check_by_kind"])
    return record(Row, {**data, "rounding": Rounding(data["rounding"]), "check_by_kind": by_kind})
