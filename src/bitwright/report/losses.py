"""The losses of a training as a picture of its own, light or dark as its reader likes it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from bitwright.report.charts import ACCENT, MUTED, Spec, framed
from bitwright.report.draw import svgs

SMOOTHED = 20  # parts of a training over which the line of means is taken
END_OF_COLOURS = "* {"  # the rule that follows them in the style of the page


def loss_picture(losses: Sequence[tuple[int, float]]) -> str:
    """An SVG document of ``losses``, pairs of step and nats: each as a point, and their running mean as a line.

    Raises RuntimeError where it cannot be drawn.
    """
    (drawing,) = svgs([loss_chart(losses)])
    head, rest = drawing.split(">", 1)
    return f"{head}><style>{_colours()}</style>{rest}"


def _colours() -> str:
    """The colours of the report page, light and dark, for a picture that stands alone."""
    style = (files("bitwright.report") / "page.css").read_text(encoding="utf-8")
    return style[: style.index(END_OF_COLOURS)].replace(":root", "svg")


def loss_chart(losses: Sequence[tuple[int, float]]) -> Spec:
    """The same as a Vega-Lite specification."""
    window = max(1, len(losses) // SMOOTHED)
    recent = [[loss for _, loss in losses[max(0, at - window) : at]] for at in range(1, len(losses) + 1)]
    points = [
        {"step": step, "loss": loss, "mean": sum(some) / len(some)} for (step, loss), some in zip(losses, recent, strict=True)
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
