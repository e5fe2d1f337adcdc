"""The losses of a training as a picture of its own, light or dark as its reader likes it."""

from __future__ import annotations

from collections.abc import Sequence

from bitwright.report.charts import ACCENT, MUTED, Spec, framed
from bitwright.report.draw import svgs

SMOOTHED = 20  # parts of a training over which the line of means is taken
COLOURS = (
    "<style>svg{--ink:#1c1d1f;--muted:#6d7076;--grid:#dfddd6;--accent:#c2410c;--second:#2563a8}"
    "@media (prefers-color-scheme:dark){svg{--ink:#ecebe7;--muted:#9a9da3;--grid:#33373d;--accent:#fb923c;--second:#7cb3ee}}"
    "</style>"
)


def loss_picture(losses: Sequence[tuple[int, float]]) -> str:
    """An SVG document of ``losses``, pairs of step and nats: each as a point, and their running mean as a line.

    Raises RuntimeError where it cannot be drawn.
    """
    (drawing,) = svgs([loss_chart(losses)])
    head, rest = drawing.split(">", 1)
    return f"{head}>{COLOURS}{rest}"


def loss_chart(losses: Sequence[tuple[int, float]]) -> Spec:
    """The same as a Vega-Lite specification."""
    window = max(1, len(losses) // SMOOTHED)
    points = [
        {
            "step": step,
            "loss": loss,
            "mean": sum(one for _, one in losses[max(0, at + 1 - window) : at + 1]) / min(window, at + 1),
        }
        for at, (step, loss) in enumerate(losses)
    ]
    x = {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickMinStep": 1}}

    def y(field: str) -> Spec:
        return {"field": field, "type": "quantitative", "title": "loss, nats", "scale": {"zero": False}}

    layers = [
        {
            "mark": {"type": "point", "filled": True, "size": 18, "color": MUTED, "opacity": 0.5},
            "encoding": {"x": x, "y": y("loss")},
        },
        {"mark": {"type": "line", "color": ACCENT, "strokeWidth": 2}, "encoding": {"x": x, "y": y("mean")}},
    ]
    return framed({"data": {"values": points}, "width": 640, "height": 220, "layer": layers})
