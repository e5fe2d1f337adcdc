"""report.json, the table on the screen, and the three sentences that matter (no torch)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bitwright.clock import Stage
from bitwright.evaluate.verify import NOISE_FLOOR, Entry, Verdict
from bitwright.plan import Plan

if TYPE_CHECKING:
    from bitwright.evaluate.divergence import Divergence

SCHEMA = "bitwright.report/1"


@dataclass(frozen=True)
class Report:
    """Everything that is known about one quantized model; the object behind report.json."""

    out: str
    plan: Plan
    verdict: Verdict
    check: Divergence  # of the result, on the predicting fold: the text that the prediction is about
    n_parameters: int
    reference_nbytes: int
    coverage: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]  # what the run substituted or had to work around
    stages: dict[str, Stage]
    provenance: dict[str, Any]

    @property
    def result(self) -> Entry:
        return self.verdict.entry(self.verdict.shipped)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def kl_ratio_to_stock(self) -> float:
        return self.result.divergence.kl / self.verdict.entry(self.verdict.stock).divergence.kl

    @property
    def predicted_over_measured(self) -> float:
        """Predicted over measured damage, both on the fold that no choice saw."""
        return self.plan.check_nats / max(self.check.kl, 1e-12)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "out": self.out,
            "sentences": list(sentences(self)),
            "kl_ratio_to_stock": self.kl_ratio_to_stock,
            "predicted_over_measured": self.predicted_over_measured,
            "verdict": asdict(self.verdict),
            "check": asdict(self.check),
            "plan": self.plan.to_dict(),
            "n_parameters": self.n_parameters,
            "reference_nbytes": self.reference_nbytes,
            "coverage": list(self.coverage),
            "notes": list(self.notes),
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
            "provenance": self.provenance,
        }


def sentences(report: Report) -> tuple[str, str, str]:
    """What was gained for what, what was done, and how far to trust it."""
    result, stock, plan = report.result, report.verdict.entry(report.verdict.stock), report.plan
    change = 100 * (result.nbytes / stock.nbytes - 1)
    factor = stock.divergence.kl / max(result.divergence.kl, 1e-12)
    size = f"{result.nbytes / 1e6:.1f} MB, {abs(change):.1f} % {'more' if change >= 0 else 'less'} than {stock.label} and "
    gained = f"{size}{100 * result.nbytes / report.reference_nbytes:.0f} % of the 16-bit model; its divergence from the 16-bit "
    gained += f"model is {factor:.1f} times smaller than that of {stock.label} ({result.divergence.kl:.4f} against "
    gained += f"{stock.divergence.kl:.4f} nats per token)."
    formats: dict[str, int] = {}
    for choice in plan.choices:
        formats[choice.format] = formats.get(choice.format, 0) + 1
    shares = ", ".join(f"{n} in {f}" for f, n in sorted(formats.items(), key=lambda item: -item[1]))
    done = (
        f"Of {len(plan.choices)} weights {shares}; the choice is within {100 * plan.gap:.2f} % of the best possible, and one "
    )
    done += f"more megabyte would save {plan.price_nats_per_mb:.1g} nats."
    trust = f"On calibration text that no choice saw, predicted {plan.check_nats:.4f} nats and measured {report.check.kl:.4f}; "
    trust += (
        f"on held-out text {result.divergence.kl:.4f} ({result.divergence.kl_low:.4f} to {result.divergence.kl_high:.4f}); "
    )
    trust += f"{report.verdict.gate}."
    return gained, done, trust


def table(entries: tuple[Entry, ...], stock_label: str = "") -> Table:
    """One line per contender: size, divergence, agreement, perplexity, and both against stock; below it its domains."""
    view = Table(box=None, header_style="bold", pad_edge=False)
    greedy = any(entry.divergence.greedy for entry in entries)
    bits = any(entry.bits_per_weight for entry in entries)
    titles = ["", "MB", "bits/weight" if bits else "vs stock", "KL nats", "95 % interval", "KL/stock", "KL 99 %", "KL max"]
    titles += ["top-1", "top-5", "perplexity"]
    for title in [*titles, "greedy"] if greedy else titles:
        view.add_column(title, justify="left" if not title else "right", no_wrap=True)
    stock = next((entry for entry in entries if entry.label == stock_label), None)
    for entry in entries:
        d = entry.divergence
        size = "" if stock is None or entry.label == NOISE_FLOOR else f"{100 * (entry.nbytes / stock.nbytes - 1):+.1f} %"
        if entry.bits_per_weight:
            size = f"{entry.bits_per_weight:.2f}"
        ratio = "" if stock is None else f"{d.kl / stock.divergence.kl:.3f}"
        continued = [f"{sum(d.greedy) / len(d.greedy):.1f}"] if d.greedy else []
        view.add_row(entry.label, f"{entry.nbytes / 1e6:.1f}", size, *_cells(d, ratio), *continued)
        for domain in d.domains:
            view.add_row(f"  {domain.label}", "", "", *_cells(domain, ""))
    return view


def _cells(d: Divergence, ratio: str) -> list[str]:
    return [
        f"{d.kl:.4f}", f"{d.kl_low:.4f}-{d.kl_high:.4f}", ratio, f"{d.kl_p99:.3f}", f"{d.kl_max:.2f}", f"{100 * d.top1:.1f} %",
        f"{100 * d.top5:.1f} %", f"{d.perplexity:.2f}",
    ]  # fmt: skip
