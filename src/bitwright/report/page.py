"""report.html: one page that stands by itself — no network, no script needed to read it, light, dark, paper and phone."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from html import escape
from importlib.resources import files
from pathlib import Path

from bitwright.evaluate.figures import Divergence
from bitwright.plan import Choice
from bitwright.report import said
from bitwright.report.charts import roles_of, usual_row
from bitwright.report.pictures import pictures
from bitwright.report.report import Report, sentences
from bitwright.report.seen import as_html
from bitwright.report.words import KNOWN, TERMS, explained, like
from bitwright.sensitivity import Sensitivity

VERDICT = '<section class="verdict">'  # where it begins
KNOWN_BY = ": Bitwright report</title>"  # in every page
ROLE_ORDER = ("measured and allocated", "kept in 16 bit")


KNOWN_FILES = ", ".join(f"{name} lies at {least:g}" for least, name in reversed(KNOWN))


def page(report: Report, sensitivity: Sensitivity) -> str:
    """The whole page as HTML. ``sensitivity`` is the table that the plan of ``report`` was chosen from."""
    name = Path(report.out).name
    style, script = (files("bitwright.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    seen = set[str]()
    parts = [
        _verdict(report, seen),
        _tiles(report, seen),
        _contenders(report, seen),
        as_html(report.seen, report.shown_labels),
        said.as_html(report.said, report.verdict.entries, report.shown_labels),
        pictures(report, sensitivity),
        _reasons(report, sensitivity),
        _coverage(report),
        _provenance(report),
        _command(report),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}{KNOWN_BY}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style></head>\n<body><main>\n<header><h1>{escape(name)}</h1>\n"
        f'<p class="quiet">{escape(report.plan.source)} in {escape(report.plan.container)}, budget '
        f"{escape(report.plan.budget)}</p></header>\n"
        + "\n".join(parts)
        + '\n</main>\n<div id="tip" role="tooltip" hidden></div>\n'
        f"<script>\n{script}</script></body></html>\n"
    )


def _verdict(report: Report, seen: set[str]) -> str:
    notes = f'<p class="quiet">Notes: {escape("; ".join(report.notes))}.</p>' if report.notes else ""
    said = "".join(f"<p>{explained(escape(sentence), seen)}</p>" for sentence in sentences(report))
    return f"{VERDICT}{said}{notes}</section>"


def _tiles(report: Report, seen: set[str]) -> str:
    result, stock = report.result, report.verdict.entry(report.verdict.stock)
    found, plain = result.divergence, stock.divergence
    sizes = f"{stock.label} takes {stock.nbytes / 1e6:.1f}, 16 bit {report.reference_nbytes / 1e6:.1f}"
    perplexities = f"perplexity; 16 bit {found.reference_perplexity:.2f}, {stock.label} {plain.perplexity:.2f}"
    tiles = [
        (f"{100 * found.top1:.1f} %", f"same next token as 16 bit; {stock.label} {100 * plain.top1:.1f} %"),
        (f"{result.nbytes / 1e6:.1f} MB", sizes),
        (f"{report.kl_ratio_to_stock:.3f}", f"of the KL divergence of {stock.label}"),
        (f"{found.perplexity:.2f}", perplexities),
    ]
    cells = "".join(
        f'<div class="tile{" lead" if i == 0 else ""}"><b>{escape(value)}</b><span>{explained(escape(text), seen)}</span></div>'
        for i, (value, text) in enumerate(tiles)
    )
    return f'<div class="tiles">{cells}</div>'


def _contenders(report: Report, seen: set[str]) -> str:
    titles = ["", "MB", "KL", "95 % interval", "KL / stock", "KL 99 %", "KL max", "top-1", "top-5", "perplexity"]
    rows = []
    for entry in report.verdict.entries:
        ratio = f"{report.ratio_to_stock(entry.divergence):.3f}"
        kind = ' class="result"' if entry.label == report.verdict.shipped else ""
        rows.append(_row([entry.label, f"{entry.nbytes / 1e6:.1f}", *_cells(entry.divergence, ratio)], kind))
        ratios = {name: f"{share:.3f}" for name, share in report.domain_ratios(entry.divergence).items()}
        rows += [_row([f"– {one.label}", "", *_cells(one, ratios.get(one.label, ""))]) for one in entry.divergence.domains]
    held_out = report.provenance["held_out"]
    asked = f"{report.result.divergence.n_sequences} texts and questions about pictures"
    sequences = asked if report.seen else f"{held_out['sequences']} sequences of {held_out['length']} tokens"
    text = (
        f"Measured in a fresh process on {held_out['source']}: {sequences} that neither rounding nor choosing saw. "
        "KL divergence from the 16-bit model in nats per token; the interval is "
        "a bootstrap over sequences. "
        f"For comparison: of a model of 135 million parameters llama.cpp's {KNOWN_FILES} nats; "
        f"this result is {like(report.result.divergence.kl)}."
    )
    words = explained(escape(text), seen)
    table = _table(titles, rows, seen, "figures")
    return f"<h2>Against everything else</h2>\n{table}\n<p class='quiet'>{words}</p>"


def _cells(d: Divergence, ratio: str) -> list[str]:
    return [
        f"{d.kl:.4f}",
        f"{d.kl_low:.4f}–{d.kl_high:.4f}",
        ratio,
        f"{d.kl_p99:.3f}",
        f"{d.kl_max:.2f}",
        f"{100 * d.top1:.1f} %",
        f"{100 * d.top5:.1f} %",
        f"{d.perplexity:.2f}",
    ]


def _reasons(report: Report, sensitivity: Sensitivity) -> str:
    choices = report.plan.choices
    counts = ", ".join(f"{n} in {f}" for f, n in Counter(c.format for c in choices).most_common())
    n_special = sum(bool(choice.reason) for choice in choices)
    every = [
        _row(
            [
                c.weight.removesuffix(".weight"),
                c.format,
                c.rounding,
                f"{c.nbytes / 1e6:.2f}",
                f"{c.damage_nats:.2g}",
                f"{w.row(c.format, c.rounding).output_error:.3f}",
            ]
        )
        for c, w in zip(choices, sensitivity.weights, strict=True)
    ]
    exceptions = (
        f"<p>{n_special} weights are not in the usual format, each for a reason: what it saves or costs in nats per token, "
        "and what the same bytes would have bought elsewhere. The largest first.</p>"
        + _table(["weight", "MB", "reason"], _by_role(report, sensitivity), kind="reasons")
        if n_special
        else "<p>Every weight is in the usual format.</p>"
    )
    whole = _table(["weight", "format", "rounding", "MB", "damage, nats", "output error"], every)
    return (
        f"<h2>Why</h2>\n{exceptions}\n<details><summary>All {len(choices)} weights: {escape(counts)}</summary>{whole}</details>"
    )


def _by_role(report: Report, sensitivity: Sensitivity) -> list[str]:
    """Rows of the weights that have a reason, by role; roles and weights with the largest difference first."""
    roles, groups = roles_of(sensitivity), defaultdict[str, list[tuple[float, Choice]]](list)
    for weight, choice in zip(sensitivity.weights, report.plan.choices, strict=True):
        if choice.reason:
            usual = usual_row(weight, report.plan.default_format)
            groups[roles[weight.name]].append((abs(usual.damage_nats - choice.damage_nats) if usual else 0.0, choice))
    counts, rows = Counter(roles.values()), []
    for role, found in sorted(groups.items(), key=lambda group: -sum(saved for saved, _ in group[1])):
        nbytes = sum(choice.nbytes for _, choice in found)
        head = f"{escape(role)}: {len(found)} of {counts[role]}"
        rows.append(f'<tr class="group"><td>{head}</td><td>{nbytes / 1e6:.1f}</td><td class="text"></td></tr>')
        rows += [
            f"<tr><td><code>{escape(c.weight.removesuffix('.weight'))}</code></td><td>{c.nbytes / 1e6:.2f}</td>"
            f'<td class="text">{escape(c.reason)}</td></tr>'
            for _, c in sorted(found, key=lambda pair: -pair[0])
        ]
    return rows


def _coverage(report: Report) -> str:
    rows = [
        _row(
            [
                c["group"],
                c["role"],
                str(c["tensors"]),
                f"{c['parameters'] / 1e6:.2f}",
                f"{100 * c['share']:.1f} %",
                c["treatment"],
            ]
        )
        for c in sorted(report.coverage, key=lambda c: (ROLE_ORDER.index(c["treatment"]), -c["share"]))
    ]
    return "<h2>Coverage</h2>\n" + _table(
        ["part", "role", "tensors", "million parameters", "share", "treatment"], rows, kind="coverage"
    )


def _provenance(report: Report) -> str:
    known, plan = report.provenance, report.plan
    text = f"{known['calibration']}, {known['sequences']} sequences of {known['length']} tokens, seed {known['seed']}"
    gap = "given"
    if plan.gap is not None:
        gap = f"within {100 * plan.gap:.3f} % of the best possible; "
        gap += f"one more megabyte would save {plan.price_nats_per_mb:.2g} nats"
    costs = [
        f"{name} {s.seconds:.0f} s by the clock, {s.processor_seconds:.0f} s of processors, {s.peak_nbytes / 1e9:.2f} GB"
        for name, s in report.stages.items()
    ]
    facts = {
        "calibration": text,
        "calibration hash": str(known["calibration_hash"]),
        "source hash": str(known["fingerprint"]),
        "arithmetic": f"{known['dtype']} on {known['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
        "choice": gap,
        "prediction": f"{plan.check_nats:.4f} ± {plan.check_stderr:.4f} nats, measured {report.check.kl:.4f} on the same text",
        "cost, of this process": "; ".join(costs),
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<h2>Calibration and provenance</h2>\n<dl>{items}</dl>"


def _command(report: Report) -> str:
    words = (Path(report.command[0]).name, *report.command[1:]) if report.command else ("bitwright",)
    return f"<h2>The command</h2>\n<pre>{escape(shlex.join(words))}</pre>"


def _table(titles: list[str], rows: list[str], seen: set[str] | None = None, kind: str = "every") -> str:
    """``kind`` says in page.css which columns a phone leaves out."""
    kinds = {title: ' class="text"' if title in ("reason", "treatment") else "" for title in titles}
    known = set(TERMS) if seen is None else seen
    head = "".join(f'<th scope="col"{kinds[title]}>{explained(escape(title), known)}</th>' for title in titles)
    body = f"<table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="table">{body}</div>'


def _row(cells: list[str], kind: str = "") -> str:
    return f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
