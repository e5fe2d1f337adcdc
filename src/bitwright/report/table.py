"""The table on the screen: what was gained for what (no torch)."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from bitwright.errors import printable
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.verdict import Entry
from bitwright.plan import NOISE_FLOOR
from bitwright.report.report import domain_ratios, ratio

WIDE = 120  # columns of a terminal that shows all figures
FOR_WIDE = ("KL 99 %", "KL max", "top-5", "perplexity", "greedy")


def table(entries: tuple[Entry, ...], stock_label: str = "", width: int = WIDE) -> Table:
    """One line per contender: size, divergence, agreement, perplexity, and both against stock; below it its domains.

    A terminal of fewer than WIDE columns gets the figures that it can show whole.
    """
    view = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1 if width < WIDE else 2, 0, 0))
    greedy = any(entry.divergence.greedy for entry in entries)
    bits = any(entry.bits_per_weight for entry in entries)
    titles = ["", "MB", "bits/parameter" if bits else "vs stock", "KL nats", "95 % interval", "KL/stock", "KL 99 %", "KL max"]
    titles += ["top-1", "top-5", "perplexity"]
    titles += ["greedy"] if greedy else []
    shown = [i for i, title in enumerate(titles) if width >= WIDE or title not in FOR_WIDE]
    for i in shown:
        view.add_column(titles[i], justify="right" if i else "left", no_wrap=i > 0, overflow="fold")

    def add(*cells: str) -> None:
        view.add_row(*(cells[i] for i in shown if i < len(cells)))

    stock = next((entry for entry in entries if entry.label == stock_label), None)
    for entry in entries:
        d = entry.divergence
        size = "" if stock is None or entry.label == NOISE_FLOOR else f"{100 * (entry.nbytes / stock.nbytes - 1):+.1f} %"
        if entry.bits_per_weight:
            size = f"{entry.bits_per_weight:.2f}"
        own = "" if stock is None else f"{ratio(d, stock.divergence):.3f}"
        ratios = {} if stock is None else domain_ratios(d, stock.divergence)
        continued = [f"{sum(d.greedy) / len(d.greedy):.1f}"] if d.greedy else []
        add(_shown(entry.label), f"{entry.nbytes / 1e6:.1f}", size, *_cells(d, own), *continued)
        for domain in d.domains:
            share = f"{ratios[domain.label]:.3f}" if domain.label in ratios else ""
            add(f"  {_shown(domain.label)}", "", "", *_cells(domain, share))
    return view


def _shown(name: str) -> str:
    """A name from a file or a command, as text and nothing else."""
    return escape(printable(name))


def _cells(d: Divergence, ratio: str) -> list[str]:
    return [
        f"{d.kl:.4f}",
        f"{d.kl_low:.4f}-{d.kl_high:.4f}",
        ratio,
        f"{d.kl_p99:.3f}",
        f"{d.kl_max:.2f}",
        f"{100 * d.top1:.1f} %",
        f"{100 * d.top5:.1f} %",
        f"{d.perplexity:.2f}",
    ]


def task_table(entries: tuple[Entry, ...]) -> Table:
    """One line per model and task: right answers, and the paired difference from the first model."""
    view = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "task", "metric", "right", "+-", "difference", "+-", "questions"):
        view.add_column(title, justify="left" if title in ("", "task", "metric") else "right", no_wrap=True)
    for entry in entries:
        for s in entry.tasks:
            apart = ["", ""] if entry is entries[0] else [f"{100 * s.difference:+.1f} %", f"{100 * s.difference_stderr:.1f}"]
            view.add_row(
                _shown(entry.label),
                _shown(s.task),
                s.metric,
                f"{100 * s.value:.1f} %",
                f"{100 * s.stderr:.1f}",
                *apart,
                str(s.n_questions),
            )
    return view
