"""The table of a measurement: figures of every weight and format, with the container's bytes (no model)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitwright.containers.base import Container
from bitwright.formats.base import SIXTEEN_BIT
from bitwright.host.places import without_place
from bitwright.measure.method import Method
from bitwright.measure.scores import WeightScores
from bitwright.measure.shrink import Observation, shrink
from bitwright.models.source import Source
from bitwright.plan import Rounding
from bitwright.sensitivity import Row, Sensitivity, WeightRows


def table_of(
    name: str, container: Container, method: Method, source: Source, found: Sequence[WeightScores], provenance: dict[str, Any]
) -> Sensitivity:
    """``found`` as the table that the allocator reads, weights in the order of the model."""
    weights = source.spec.weights
    by_name = {scores.name: scores for scores in found}
    in_order = [by_name[weight.name] for weight in weights]
    roles = [weight.role for weight in weights]
    shrunk = {kind: _shrunk(in_order, roles, kind) for kind in (Rounding.NEAREST, Rounding.CALIBRATED)}
    wanted = {format.name: format for formats in method.formats.values() for format in formats}
    rows = []
    for i, (weight, scores) in enumerate(zip(weights, in_order, strict=True)):
        figures = []
        for f in scores.formats:
            damage, stderr = shrunk[f.rounding][i][f.format]
            size = container.nbytes(weight, container.format(f.format), source)
            nats = (damage, stderr, f.damage_nats, f.check_nats, f.check_stderr)
            figures.append(Row(f.format, f.rounding, size, *nats, f.weight_error, f.output_error, f.check_by_kind))
        sixteen = container.nbytes(weight, SIXTEEN_BIT, source)
        reasons = {format: container.accepts(weight, wanted[format]) for format in wanted}
        rows.append(
            WeightRows(
                name=weight.name,
                block=weight.at.index,
                role=weight.role,
                n_rows=weight.n_rows,
                n_cols=weight.n_cols,
                rows=(*figures, Row(SIXTEEN_BIT.name, Rounding.NONE, sixteen, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
                stock=method.stock[weight.name].name if weight.name in method.stock and scores.formats else SIXTEEN_BIT.name,
                damping=scores.damping,
                unavailable=tuple((format, why) for format, why in reasons.items() if why),
                stack=weight.at.stack,
                group=weight.group,
            )
        )
    return Sensitivity(
        source=without_place(name),
        container=container.name,
        stock=container.stock_name,
        kept_nbytes=container.kept_nbytes(source),
        weights=tuple(rows),
        provenance=provenance,
        sizes=container.sizes(source),
        groups=container.groups(source.spec),
        serves=container.serves,
    )


def _shrunk(found: Sequence[WeightScores], roles: Sequence[str], kind: Rounding) -> list[dict[str, tuple[float, float]]]:
    """Format -> (damage, standard error) for each weight, over the formats of one kind of rounding."""
    chosen = [[f for f in scores.formats if f.rounding == kind] for scores in found]
    seen = [[Observation(f.damage_nats, f.damage_stderr, f.moment_nats) for f in formats] for formats in chosen]
    return [
        {f.format: pair for f, pair in zip(formats, pairs, strict=True)}
        for formats, pairs in zip(chosen, shrink(seen, roles), strict=True)
    ]
