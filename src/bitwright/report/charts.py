"""The report's charts as Vega-Lite specifications: data in, a dictionary out (no torch).

Colours are CSS variables, which the page defines for light, dark and print. The ``description`` of a mark becomes its label for
screen readers, and the page shows it where the pointer is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, inf, log, log10
from typing import Any

from bitwright.allocate.allocate import uniform
from bitwright.plan import NOISE_FLOOR, Choice, Rounding
from bitwright.report.labels import Named, place
from bitwright.report.report import Report
from bitwright.sensitivity import Row, Sensitivity, WeightRows

Spec = dict[str, Any]
WIDTH, HEIGHT = 700, 300
FACET_COLUMNS, FACET_HEIGHT = 4, 110
MORE, LESS, USUAL = "more bits", "fewer bits", "usual format"
DIVERGENCE = "KL divergence, nats per token"
WIDER, MARGIN = 1.25, 1.3  # how far the axes go beyond what was measured
FEWEST_TICKS = 3
HALO = {"color": "var(--panel)", "stroke": "var(--panel)", "strokeWidth": 5, "strokeJoin": "round"}  # behind a label
INK, MUTED, ACCENT, SECOND = "var(--ink)", "var(--muted)", "var(--accent)", "var(--second)"


def frontier(report: Report, sensitivity: Sensitivity) -> Spec:
    """Bytes against damage: what is predicted for every budget and every single format, and what was measured."""
    entries = [entry for entry in report.verdict.entries if _shows(entry.divergence.kl, entry.divergence.kl_high)]
    contenders = [entry for entry in entries if entry.label != NOISE_FLOOR]
    largest = WIDER * max((entry.nbytes for entry in contenders), default=report.plan.nbytes)
    line: list[Spec] = [
        {"mb": p.nbytes / 1e6, "nats": p.damage_nats} for p in report.plan.frontier if p.damage_nats > 0 and p.nbytes <= largest
    ]
    formats = sorted({row.format for w in sensitivity.weights for row in w.rows if row.rounding == Rounding.CALIBRATED})
    singles = [(name, uniform(sensitivity, name, Rounding.CALIBRATED)) for name in formats]
    single: list[Spec] = [
        {
            "mb": p.nbytes / 1e6,
            "nats": p.damage_nats,
            "name": name,
            "text": f"all in {name}: {p.nbytes / 1e6:.1f} MB, predicted {p.damage_nats:.4f} nats",
        }
        for name, p in singles
        if p.damage_nats > 0
    ]
    measured: list[Spec] = [
        {
            "mb": e.nbytes / 1e6,
            "nats": e.divergence.kl,
            "low": max(e.divergence.kl_low, e.divergence.kl / 10),
            "high": e.divergence.kl_high,
            "name": e.label,
            "kind": "result" if e.label == report.verdict.shipped else "other",
            "text": f"{e.label}: {e.nbytes / 1e6:.1f} MB, measured {e.divergence.kl:.4f} nats",
        }
        for e in sorted(contenders, key=lambda e: e.nbytes)
    ]
    noise: list[Spec] = [
        {"nats": e.divergence.kl, "text": f"noise floor: the 16-bit model in 16-bit arithmetic, {e.divergence.kl:.4f} nats"}
        for e in entries
        if e.label == NOISE_FLOOR
    ]
    nats = [point["nats"] for point in (*line, *single, *measured, *noise)]
    nats += [point[end] for point in measured for end in ("low", "high")]
    sizes = [point["mb"] for point in (*line, *single, *measured)]
    low, high = min(sizes, default=0.0), max(sizes, default=1.0)
    beside = 0.04 * (high - low) or 1.0
    x, y = _linear("mb", "megabytes", (low - beside, high + beside)), _log("nats", DIVERGENCE, nats)
    across = _Axis("mb", tuple(x["scale"]["domain"]), WIDTH)
    _put_names(measured, across, _Axis("nats", tuple(y["scale"]["domain"]), HEIGHT, log=True, upward=True), single)
    label = {"field": "text", "type": "nominal"}
    colour = {"condition": {"test": "datum.kind == 'result'", "value": ACCENT}, "value": INK}
    layers: list[Spec] = [
        {
            "data": {"values": line},
            "mark": {"type": "line", "color": MUTED, "strokeDash": [5, 4]},
            "encoding": {"x": x, "y": y, "description": {"value": "predicted frontier"}},
        },
        {
            "data": {"values": single},
            "mark": {"type": "point", "shape": "diamond", "size": 55, "color": MUTED, "filled": False},
            "encoding": {"x": x, "y": y, "description": label},
        },
        {
            "data": {"values": noise},
            "mark": {"type": "rule", "color": SECOND, "strokeDash": [2, 3]},
            "encoding": {"y": y, "description": label},
        },
        {
            "data": {"values": measured},
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        *[
            {
                "data": {"values": measured},
                "mark": {"type": "tick", "orient": "horizontal", "size": 11, "thickness": 2},
                "encoding": {"x": x, "y": {**y, "field": end}, "color": colour},
            }
            for end in ("low", "high")
        ],
        {
            "data": {"values": measured},
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "description": label},
        },
        *[
            {
                "data": {"values": measured},
                "mark": {"type": "text", "align": "left", "baseline": "middle", "fontSize": 12} | halo,
                "encoding": {"x": {**x, "field": "name_x"}, "y": {**y, "field": "name_y"}, "text": {"field": "name"}}
                | ({} if halo else {"color": colour}),
            }
            for halo in (HALO, {})
        ],
    ]
    return framed({"layer": [layer for layer in layers if layer["data"]["values"]], "width": WIDTH, "height": HEIGHT})


@dataclass(frozen=True)
class _Axis:
    """How values of a field lie along ``pixels``; ``upward`` where they count from the bottom."""

    field: str
    domain: tuple[float, float]
    pixels: float
    log: bool = False
    upward: bool = False

    def at(self, value: float) -> float:
        low, high, value = (log(v) if self.log else v for v in (*self.domain, value))
        share = (value - low) / (high - low)
        return self.pixels * (1 - share if self.upward else share)

    def value(self, at: float) -> float:
        low, high = (log(v) if self.log else v for v in self.domain)
        share = 1 - at / self.pixels if self.upward else at / self.pixels
        found = low + share * (high - low)
        return exp(found) if self.log else found


def _put_names(points: list[Spec], x: _Axis, y: _Axis, others: Sequence[Spec] = ()) -> None:
    """Give each of ``points`` the place of its name, ``name_x`` and ``name_y``, in the units of the axes."""
    named = []
    for p in points:
        top, bottom = (y.at(p[end] if end in p else p[y.field]) for end in ("high", "low"))
        named.append(Named(x.at(p[x.field]), y.at(p[y.field]), top, bottom, p["name"]))
    beside = [(x.at(point[x.field]), y.at(point[y.field])) for point in others]
    for point, (left, middle) in zip(points, place(named, x.pixels, y.pixels, beside), strict=True):
        point["name_x"], point["name_y"] = x.value(left), y.value(middle)


def weight_errors(report: Report, sensitivity: Sensitivity) -> Spec:
    """|dW| / |W| of every weight in the usual format, by role and block; what was stored otherwise is marked."""
    return _by_role(report, sensitivity, "weight_error", "|dW| / |W|")


def output_errors(report: Report, sensitivity: Sensitivity) -> Spec:
    """The relative error of every layer's output on calibration text, in the same way."""
    return _by_role(report, sensitivity, "output_error", "|dW x| / |W x|")


def damages(report: Report, sensitivity: Sensitivity) -> Spec:
    """Fisher damage in nats per token of every weight in the usual format."""
    return _by_role(report, sensitivity, "damage_nats", "nats per token")


def format_map(report: Report, sensitivity: Sensitivity) -> Spec:
    """Which format each weight got: roles by blocks."""
    bits, names = _bits_of(sensitivity), roles_of(sensitivity)
    order = sorted({choice.format for choice in report.plan.choices}, key=lambda name: (bits[name], name))
    cells = [
        {
            "block": w.block,
            "role": names[w.name],
            "format": c.format,
            "text": f"{w.name.removesuffix('.weight')}: {c.format}, {c.nbytes / 1e6:.2f} MB",
        }
        for w, c in _pairs(report, sensitivity)
    ]
    colours = [_between(i / max(1, len(order) - 1)) for i in range(len(order))]
    roles = list(dict.fromkeys(names.values()))
    n_blocks = max(w.block for w in sensitivity.weights) + 1
    return framed(
        {
            "data": {"values": cells},
            "width": WIDTH,
            "height": 22 * len(roles),
            "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1},
            "encoding": {
                "x": {
                    "field": "block",
                    "type": "ordinal",
                    "title": "block",
                    "axis": {"labelAngle": 0, "values": list(range(0, n_blocks, max(1, n_blocks // 15)))},
                },
                "y": {"field": "role", "type": "nominal", "sort": roles, "title": None},
                "color": {
                    "field": "format",
                    "type": "nominal",
                    "sort": order,
                    "scale": {"domain": order, "range": colours},
                    "legend": {"title": None, "orient": "top"},
                },
                "description": {"field": "text", "type": "nominal"},
            },
        }
    )


def predictions(report: Report) -> Spec:
    """Predicted against measured divergence of everything that was written, with the line of equality."""
    points: list[Spec] = [
        {
            "predicted": e.predicted_nats,
            "measured": e.divergence.kl,
            "name": e.label,
            "text": "held-out",
            "label": f"{e.label}: predicted {e.predicted_nats:.4f}, measured {e.divergence.kl:.4f} nats on held-out text",
        }
        for e in report.verdict.entries
        if e.predicted_nats is not None and e.label != report.verdict.shipped
    ]
    for text, name, measured in (
        ("held-out", "", report.result.divergence.kl),
        ("predicting fold", f"{report.verdict.shipped}, predicting fold", report.check.kl),
    ):
        words = f"result: predicted {report.plan.check_nats:.4f}, measured {measured:.4f} nats on {text} text"
        points.append({"predicted": report.plan.check_nats, "measured": measured, "name": name, "text": text, "label": words})
    points = [point for point in points if _shows(point["predicted"], point["measured"])]
    values = [float(point[key]) for point in points for key in ("predicted", "measured")]
    low, high = span = _around(values)
    side = 360
    _put_names(points, _Axis("predicted", span, side, log=True), _Axis("measured", span, side, log=True, upward=True))
    x, y = _log("predicted", "predicted, nats per token", values), _log("measured", "measured, nats per token", values)
    colour = {"condition": {"test": "datum.text == 'predicting fold'", "value": ACCENT}, "value": INK}
    return framed(
        {
            "width": side,
            "height": side,
            "layer": [
                {
                    "data": {"values": [{"predicted": low, "measured": low}, {"predicted": high, "measured": high}]},
                    "mark": {"type": "line", "color": MUTED, "strokeDash": [5, 4]},
                    "encoding": {"x": x, "y": y},
                },
                {
                    "data": {"values": points},
                    "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                    "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "label", "type": "nominal"}},
                },
                *[
                    {
                        "data": {"values": points},
                        "mark": {"type": "text", "align": "left", "baseline": "middle", "fontSize": 12} | halo,
                        "encoding": {
                            "x": {**x, "field": "name_x"},
                            "y": {**y, "field": "name_y"},
                            "text": {"field": "name"},
                            **({} if halo else {"color": colour}),
                        },
                    }
                    for halo in (HALO, {})
                ],
            ],
        }
    )


def _by_role(report: Report, sensitivity: Sensitivity, figure: str, title: str) -> Spec:
    """Small multiples: one panel a role, blocks along, the figure up, in the plan's usual format."""
    usual, bits = report.plan.default_format, _bits_of(sensitivity)
    names = roles_of(sensitivity)
    points: list[Spec] = []
    for weight, choice in _pairs(report, sensitivity):
        row = usual_row(weight, usual)
        value = getattr(row, figure) if row else 0
        if row and _shows(value):
            kept = _compared(choice, row, bits)
            text = f"{weight.name.removesuffix('.weight')} in {row.format}: {value:.3g}; stored in {choice.format}"
            points.append({"block": weight.block, "role": names[weight.name], "value": value, "kept": kept, "text": text})
    roles = list(dict.fromkeys(point["role"] for point in points))
    kinds = [kind for kind in (USUAL, MORE, LESS) if any(point["kept"] == kind for point in points)]
    looks = {USUAL: (MUTED, "circle", 22), MORE: (ACCENT, "triangle-up", 62), LESS: (SECOND, "triangle-down", 62)}
    columns = min(FACET_COLUMNS, max(1, len(roles)))
    y = _log("value", title, [point["value"] for point in points])
    return framed(
        {
            "data": {"values": points},
            "facet": {
                "field": "role",
                "type": "nominal",
                "sort": roles,
                "title": None,
                "header": {"labelFontSize": 12, "labelFontWeight": "bold", "labelColor": INK},
            },
            "columns": columns,
            "spacing": {"row": 26, "column": 18},
            "spec": {
                "width": (WIDTH + 20) // columns - 30,
                "height": FACET_HEIGHT,
                "mark": {"type": "point", "filled": True, "opacity": 1},
                "encoding": {
                    "x": {"field": "block", "type": "quantitative", "title": "block", "axis": {"tickCount": 4, "grid": False}},
                    "y": y,
                    "color": _kept_scale(kinds, [looks[kind][0] for kind in kinds]),
                    "shape": _kept_scale(kinds, [looks[kind][1] for kind in kinds]),
                    "size": {
                        "field": "kept",
                        "type": "nominal",
                        "legend": None,
                        "scale": {"domain": kinds, "range": [looks[kind][2] for kind in kinds]},
                    },
                    "description": {"field": "text", "type": "nominal"},
                },
            },
        }
    )


def _kept_scale(kinds: list[str], values: list[str]) -> Spec:
    legend = {"title": None, "orient": "top"} if len(kinds) > 1 else None
    return {"field": "kept", "type": "nominal", "scale": {"domain": kinds, "range": values}, "legend": legend}


def _pairs(report: Report, sensitivity: Sensitivity) -> list[tuple[WeightRows, Choice]]:
    choices = {choice.weight: choice for choice in report.plan.choices}
    return [(weight, choices[weight.name]) for weight in sensitivity.weights]


def usual_row(weight: WeightRows, usual: str) -> Row | None:
    """The plan's usual format, or where it cannot store this weight the smallest calibrated one."""
    rows = [row for row in weight.rows if row.rounding == Rounding.CALIBRATED]
    return next((row for row in rows if row.format == usual), min(rows, key=lambda row: row.nbytes, default=None))


def _bits_of(sensitivity: Sensitivity) -> dict[str, float]:
    """Bits a weight in each format, from the first weight that was measured in it."""
    bits: dict[str, float] = {}
    for weight in sensitivity.weights:
        for row in weight.rows:
            bits.setdefault(row.format, 8 * row.nbytes / (weight.n_rows * weight.n_cols))
    return bits


def _compared(choice: Choice, row: Row, bits: dict[str, float]) -> str:
    if choice.format == row.format:
        return USUAL
    return MORE if bits.get(choice.format, inf) > bits[row.format] else LESS


def _between(share: float) -> str:
    """A colour from that of few bits (0) to that of many (1); the page has both ends and the middle."""
    low, high, part = ("few", "some", 2 * share) if share < 0.5 else ("some", "many", 2 * share - 1)
    return f"color-mix(in oklab, var(--{high}) {100 * part:.0f}%, var(--{low}))"


def roles_of(sensitivity: Sensitivity) -> dict[str, str]:
    """Weight -> role; where two weights of a block share one, with the module before it (GPT-2's attn.c_proj, mlp.c_proj)."""
    counts = Counter((weight.block, weight.role) for weight in sensitivity.weights)
    shared = {role for (_, role), count in counts.items() if count > 1}
    names = {}
    for weight in sensitivity.weights:
        path = weight.name.removesuffix(".weight").split(".")
        names[weight.name] = ".".join(path[-2:]) if weight.role in shared else weight.role
    return names


def _linear(field: str, title: str, domain: tuple[float, float]) -> Spec:
    scale = {"zero": False, "nice": False, "domain": list(domain)}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"tickCount": 8}}


def _log(field: str, title: str, values: list[float]) -> Spec:
    """A logarithmic axis around ``values`` with few round numbers on it."""
    low, high = _around(values)
    scale = {"type": "log", "nice": False, "domain": [low, high]}
    short = "datum.value < 0.001 ? format(datum.value, '.0e') : format(datum.value, '~g')"
    axis = {"labelExpr": short, "values": round_numbers(low, high)}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _shows(*values: float) -> bool:
    """Whether a logarithmic axis has a place for ``values``."""
    return all(0 < value < inf for value in values)


def _around(values: list[float]) -> tuple[float, float]:
    """The span of ``values`` and a little more; of none, one nat and a thousandth."""
    return (min(values) / MARGIN, max(values) * MARGIN) if values else (0.001, 1.0)


def round_numbers(low: float, high: float) -> list[float]:
    """Between ``low`` and ``high`` the powers of ten, or where those are few with 2 and 5 times them.

    >>> round_numbers(0.003, 7), round_numbers(0.03, 0.6)
    ([0.01, 0.1, 1.0], [0.05, 0.1, 0.2, 0.5])
    """
    first, last = floor(log10(low)), ceil(log10(high))
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [float(f"{step * 10.0**power:.3g}") for power in range(first, last + 1) for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) >= FEWEST_TICKS:
            return found
    return found


def framed(spec: Spec) -> Spec:
    """What all charts share."""
    text = {"labelColor": MUTED, "titleColor": MUTED, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"gridColor": "var(--grid)", "domainColor": "var(--grid)", "tickColor": "var(--grid)"}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": None,
        "padding": {
            "left": 16,
            "right": 6,
            "top": 4,
            "bottom": 4,
        },  # a browser's letters may be wider than those it was drawn with
        **spec,
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {**text, **lines},
            "legend": {"labelColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 0},
            "text": {"color": INK},
        },
    }
