"""The report's pictures with what they say."""

from __future__ import annotations

from html import escape

from bitwright.plan import SIXTEEN
from bitwright.report import charts
from bitwright.report.draw import svgs
from bitwright.report.report import Report
from bitwright.sensitivity import Sensitivity


def pictures(report: Report, sensitivity: Sensitivity) -> str:
    """All charts, each under its heading and above its caption, as HTML."""
    usual = report.plan.default_format
    if usual == SIXTEEN:
        usual = "its smallest format"
    marked = "Triangles mark what is stored with more bits than that (up) or fewer (down)."
    frontier = (
        "Dots with bars were written to disk and measured on held-out text. The dashed line is the least damage that each "
        "number of bytes can buy, as predicted on calibration text; diamonds are single formats for all weights. The dotted "
        "line is what 16-bit arithmetic alone does."
    )
    weight = f"How far each weight moves in {usual}, relative to its size. {marked} This alone does not say what hurts."
    output = f"How far each layer's output moves in {usual} on calibration text, relative to its size. {marked}"
    damage = (
        f"What each weight in {usual} alone does to the model's predictions, by the Fisher estimate that the budget was spent "
        f"by. {marked}"
    )
    chosen = "One cell a weight; the legend goes from few bits to many."
    predicted = (
        "On the dashed line a prediction was right. Predictions are about calibration text, so the predicting fold is the fair "
        "point; held-out text may be easier or harder than that."
    )
    charted = (
        ("Size against damage", charts.frontier(report, sensitivity), frontier, ""),
        ("Weight error", charts.weight_errors(report, sensitivity), weight, ""),
        ("Output error", charts.output_errors(report, sensitivity), output, ""),
        ("Damage", charts.damages(report, sensitivity), damage, ""),
        ("What was chosen", charts.format_map(report, sensitivity), chosen, ""),
        ("Predicted against measured", charts.predictions(report), predicted, "small"),
    )
    drawings = svgs([spec for _, spec, _, _ in charted])
    return "\n".join(
        _picture(title, drawing, caption, kind) for (title, _, caption, kind), drawing in zip(charted, drawings, strict=True)
    )


def _picture(title: str, drawing: str, caption: str, kind: str) -> str:
    drawing = drawing.replace('class="marks"', f'class="marks {kind}" aria-label="{escape(title)}"', 1)
    frame = f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(title)}">{drawing}</div>'
    return f"<h2>{escape(title)}</h2>\n<figure>{frame}<figcaption>{escape(caption)}</figcaption></figure>"
