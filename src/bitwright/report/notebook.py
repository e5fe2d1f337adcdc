"""What a notebook shows of a report: the sentences, the table, and a map of what was chosen (no torch)."""

from __future__ import annotations

import re
from collections import Counter
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitwright.report.report import Report

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")  # Tol's bright scheme
TITLES = ("", "MB", "KL, nats", "95 % interval", "KL / stock", "same next word", "perplexity")
BLOCK = re.compile(r"^(.*?)\.(\d+)\.(.+?)(?:\.weight)?$")


def as_html(report: Report) -> str:
    """``report`` as a fragment of HTML that needs no style sheet and no script."""
    from bitwright.report.report import sentences

    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(report))
    return f"<div>{said}{_table(report)}{_map(report)}</div>"


def _table(report: Report) -> str:
    rows = []
    for entry in report.verdict.entries:
        d = entry.divergence
        cells = (
            entry.label,
            f"{entry.nbytes / 1e6:.1f}",
            f"{d.kl:.4f}",
            f"{d.kl_low:.4f}–{d.kl_high:.4f}",
            f"{report.ratio_to_stock(d):.3f}",
            f"{100 * d.top1:.1f} %",
            f"{d.perplexity:.2f}",
        )
        weight = "bold" if entry.label == report.verdict.shipped else "normal"
        rows.append("".join(f'<td style="font-weight:{weight}">{escape(cell)}</td>' for cell in cells))
    head = "".join(f"<th>{escape(title)}</th>" for title in TITLES)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _map(report: Report) -> str:
    """One cell a weight, blocks from left to right, coloured by format."""
    counts = Counter(choice.format for choice in report.plan.choices)
    colours = {name: COLOURS[i % len(COLOURS)] for i, (name, _) in enumerate(counts.most_common())}
    rows: dict[str, list[str]] = {}
    for choice in report.plan.choices:
        place = BLOCK.match(choice.weight)
        if place is None:
            continue
        title = escape(f"{choice.weight}: {choice.format}")
        cell = f'<td title="{title}" style="background:{colours[choice.format]};width:9px;height:12px;padding:0"></td>'
        rows.setdefault(place[3].rsplit(".", 1)[-1], []).append(cell)
    drawn = "".join(f"<tr><td>{escape(role)}</td>{''.join(cells)}</tr>" for role, cells in rows.items())
    legend = " ".join(
        f'<span style="color:{colour}">■</span> {escape(name)} ({counts[name]})' for name, colour in colours.items()
    )
    return f"<table>{drawn}</table><p>{legend}</p>"
