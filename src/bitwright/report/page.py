"""report.html: one page that stands by itself — no network, no script needed to read it, light, dark, paper and phone."""

from __future__ import annotations

import shlex
from collections import Counter
from html import escape
from importlib.resources import files
from pathlib import Path

from bitwright.evaluate.figures import Divergence
from bitwright.measure.sensitivity import Sensitivity
from bitwright.report import charts
from bitwright.report.draw import svg
from bitwright.report.report import Report, sentences

ROLE_ORDER = ("measured and allocated", "kept in 16 bit")


def page(report: Report, sensitivity: Sensitivity) -> str:
    """The whole page as HTML. ``sensitivity`` is the table that the plan of ``report`` was chosen from."""
    name = Path(report.out).name
    style, script = (files("bitwright.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    parts = [
        _verdict(report), _tiles(report), _contenders(report), _pictures(report, sensitivity), _reasons(report, sensitivity),
        _coverage(report), _provenance(report), _command(report),
    ]  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}: Bitwright report</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style></head>\n<body><main>\n<header><h1>{escape(name)}</h1>\n"
        f'<p class="quiet">{escape(report.plan.source)} in {escape(report.plan.container)}, budget '
        f"{escape(report.plan.budget)}</p></header>\n"
        + "\n".join(parts)
        + '\n</main>\n<div id="tip" role="tooltip" hidden></div>\n'
        f"<script>\n{script}</script></body></html>\n"
    )


def _verdict(report: Report) -> str:
    notes = "".join(f'<p class="quiet">Note: {escape(note)}</p>' for note in report.notes)
    return f'<section class="verdict">{"".join(f"<p>{escape(s)}</p>" for s in sentences(report))}{notes}</section>'


def _tiles(report: Report) -> str:
    result, stock = report.result, report.verdict.entry(report.verdict.stock)
    found, plain = result.divergence, stock.divergence
    tiles = [
        (f"{report.kl_ratio_to_stock:.3f}", f"of the divergence of {stock.label}"),
        (f"{result.nbytes / 1e6:.1f} MB", f"{stock.label} takes {stock.nbytes / 1e6:.1f}, 16 bit {report.reference_nbytes / 1e6:.1f}"),
        (f"{100 * found.top1:.1f} %", f"same next token as 16 bit; {stock.label} {100 * plain.top1:.1f} %"),
        (f"{found.perplexity:.2f}", f"perplexity; 16 bit {found.reference_perplexity:.2f}, {stock.label} {plain.perplexity:.2f}"),
    ]  # fmt: skip
    cells = "".join(
        f'<div class="tile{" lead" if i == 0 else ""}"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for i, (value, text) in enumerate(tiles)
    )
    return f'<div class="tiles">{cells}</div>'


def _contenders(report: Report) -> str:
    stock = report.verdict.entry(report.verdict.stock)
    titles = ["", "MB", "KL, nats/token", "95 % interval", "KL / stock", "KL 99 %", "KL max", "top-1", "top-5", "perplexity"]
    rows = []
    for entry in report.verdict.entries:
        ratio = f"{entry.divergence.kl / stock.divergence.kl:.3f}"
        kind = ' class="result"' if entry.label == report.verdict.shipped else ""
        rows.append(_row([entry.label, f"{entry.nbytes / 1e6:.1f}", *_cells(entry.divergence, ratio)], kind))
        rows += [_row([f"– {domain.label}", "", *_cells(domain, "")]) for domain in entry.divergence.domains]
    held_out = report.provenance["held_out"]
    text = (
        f"Measured in a fresh process on {held_out['source']}: {held_out['sequences']} sequences of {held_out['length']} tokens "
        "that neither rounding nor choosing saw. The interval is a bootstrap over sequences."
    )
    return f"<h2>Against everything else</h2>\n{_table(titles, rows)}\n<p class='quiet'>{escape(text)}</p>"


def _cells(d: Divergence, ratio: str) -> list[str]:
    return [
        f"{d.kl:.4f}", f"{d.kl_low:.4f}–{d.kl_high:.4f}", ratio, f"{d.kl_p99:.3f}", f"{d.kl_max:.2f}", f"{100 * d.top1:.1f} %",
        f"{100 * d.top5:.1f} %", f"{d.perplexity:.2f}",
    ]  # fmt: skip


def _pictures(report: Report, sensitivity: Sensitivity) -> str:
    usual = report.plan.default_format
    marked = "Marked weights are stored with more bits than that, or with fewer."
    pictures = [
        ("Size against damage", charts.frontier(report, sensitivity), "",
         "Dots with bars were written to disk and measured on held-out text. The dashed line is the least damage that each "
         "number of bytes can buy, as predicted on calibration text; diamonds are single formats for all weights. The dotted "
         "line is what 16-bit arithmetic alone does."),
        ("Weight error", charts.weight_errors(report, sensitivity), "",
         f"How far each weight moves in {usual}, relative to its size. {marked} This picture alone does not say what hurts."),
        ("Output error", charts.output_errors(report, sensitivity), "",
         f"How far each layer's output moves in {usual} on calibration text, relative to its size. {marked}"),
        ("Damage", charts.damages(report, sensitivity), "",
         f"What each weight in {usual} alone does to the model's predictions (Fisher estimate). This is what the budget was "
         f"spent by. {marked}"),
        ("What was chosen", charts.format_map(report, sensitivity), "", "One cell a weight, darker for more bits on a light page "
         "and lighter on a dark one."),
        ("Predicted against measured", charts.predictions(report), "small",
         "On the line the prediction was right. Predictions are about calibration text, so the point of the predicting fold is "
         "the fair one; held-out text may be easier or harder than that."),
    ]  # fmt: skip
    return "\n".join(
        f'<h2>{title}</h2>\n<figure><div class="scroll" tabindex="0">{_sized(svg(spec), kind)}</div>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for title, spec, kind, text in pictures
    )


def _sized(drawing: str, kind: str) -> str:
    return drawing.replace('class="marks"', f'class="marks {kind}"', 1) if kind else drawing


def _reasons(report: Report, sensitivity: Sensitivity) -> str:
    choices = report.plan.choices
    special = [choice for choice in choices if choice.reason]
    counts = ", ".join(f"{n} in {f}" for f, n in Counter(c.format for c in choices).most_common())
    rows = [
        f"<tr><td><code>{escape(c.weight.removesuffix('.weight'))}</code></td><td>{c.nbytes / 1e6:.2f}</td>"
        f'<td class="text">{escape(c.reason)}</td></tr>'
        for c in special
    ]
    every = [
        _row([c.weight.removesuffix(".weight"), c.format, c.rounding, f"{c.nbytes / 1e6:.2f}", f"{c.damage_nats:.2g}",
              f"{w.row(c.format, c.rounding).output_error:.3f}"])
        for c, w in zip(choices, sensitivity.weights, strict=True)
    ]  # fmt: skip
    exceptions = (
        f"<p>{len(special)} weights are not in the usual format, each for a reason.</p>"
        + _table(["weight", "MB", "reason"], rows)
        if special
        else "<p>Every weight is in the usual format.</p>"
    )
    whole = _table(["weight", "format", "rounding", "MB", "damage, nats", "output error"], every)
    return (
        f"<h2>Why</h2>\n{exceptions}\n<details><summary>All {len(choices)} weights: {escape(counts)}</summary>{whole}</details>"
    )


def _coverage(report: Report) -> str:
    rows = [
        _row([str(c["role"]), str(c["tensors"]), f"{c['parameters'] / 1e6:.2f}", f"{100 * c['share']:.1f} %", str(c["treatment"])])
        for c in sorted(report.coverage, key=lambda c: (ROLE_ORDER.index(c["treatment"]), -c["share"]))
    ]  # fmt: skip
    return "<h2>Coverage</h2>\n" + _table(["role", "tensors", "million parameters", "share", "treatment"], rows)


def _provenance(report: Report) -> str:
    known, stages = report.provenance, report.stages
    plan = report.plan
    facts = {
        "calibration": f"{known['calibration']}, {known['sequences']} sequences of {known['length']} tokens, seed {known['seed']}",
        "calibration hash": str(known["calibration_hash"]),
        "source hash": str(known["fingerprint"]),
        "arithmetic": f"{known['dtype']} on {known['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
        "choice": f"within {100 * plan.gap:.3f} % of the best possible; one more megabyte would save {plan.price_nats_per_mb:.2g} nats",
        "prediction": f"{plan.check_nats:.4f} ± {plan.check_stderr:.4f} nats, measured {report.check.kl:.4f} on the same text",
        "cost": "; ".join(
            f"{name} {s.seconds:.0f} s by the clock, {s.processor_seconds:.0f} s of processors, {s.peak_nbytes / 1e9:.2f} GB at most"
            for name, s in stages.items()
        ),
    }  # fmt: skip
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<h2>Calibration and provenance</h2>\n<dl>{items}</dl>"


def _command(report: Report) -> str:
    words = (Path(report.command[0]).name, *report.command[1:]) if report.command else ("bitwright",)
    return f"<h2>The command</h2>\n<pre>{escape(shlex.join(words))}</pre>"


def _table(titles: list[str], rows: list[str]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(cells: list[str], kind: str = "") -> str:
    return f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
