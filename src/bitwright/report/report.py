"""report.json and the three sentences that matter (no torch)."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitwright.checkpoint.workdir import finite
from bitwright.errors import fail
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.verdict import Entry, Verdict
from bitwright.host.clock import Stage
from bitwright.host.texts import read_object
from bitwright.plan import NOISE_FLOOR, Plan
from bitwright.report.said import Said
from bitwright.report.seen import Seen

SCHEMA = "bitwright.report/2"
LEAST_NATS = 1e-12  # ratios of less than that mean nothing


@dataclass(frozen=True, repr=False)
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
    command: tuple[str, ...]  # the words that made it
    seen: tuple[Seen, ...] = ()  # of a model that sees
    said: tuple[Said, ...] = ()  # of any other

    def __repr__(self) -> str:
        found = self.result
        return f"<Report of {self.out}: {found.nbytes / 1e6:.1f} MB, KL {found.divergence.kl:.4f} nats from 16 bit>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the three sentences and the table."""
        from bitwright.report.notebook import as_html

        return as_html(self)

    @property
    def result(self) -> Entry:
        return self.verdict.entry(self.verdict.shipped)

    @property
    def shown_labels(self) -> tuple[str, ...]:
        """The 16-bit model, what people get without us, and the result."""
        return tuple(dict.fromkeys((NOISE_FLOOR, self.verdict.stock, self.verdict.shipped)))

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def kl_ratio_to_stock(self) -> float:
        return self.ratio_to_stock(self.result.divergence)

    def ratio_to_stock(self, divergence: Divergence) -> float:
        """``divergence`` over that of what people get without us."""
        return ratio(divergence, self.verdict.entry(self.verdict.stock).divergence)

    def domain_ratios(self, divergence: Divergence) -> dict[str, float]:
        """The same of each domain of ``divergence`` that stock was compared on too."""
        return domain_ratios(divergence, self.verdict.entry(self.verdict.stock).divergence)

    @property
    def predicted_over_measured(self) -> float:
        """Predicted over measured damage, both on the fold that no choice saw."""
        return self.plan.check_nats / max(self.check.kl, LEAST_NATS)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; figures that are no numbers are null."""
        found: dict[str, Any] = finite(
            {
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
                "command": list(self.command),
                "seen": [asdict(seen) for seen in self.seen],
                "said": [asdict(said) for said in self.said],
            }
        )
        return found

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read ``report.json``; raises BitwrightError when it is not one."""
        try:
            data = read_object(Path(path))
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}")
            return cls(
                out=data["out"],
                plan=Plan.from_dict(data["plan"]),
                verdict=Verdict.from_dict(data["verdict"]),
                check=Divergence.from_dict(data["check"]),
                n_parameters=data["n_parameters"],
                reference_nbytes=data["reference_nbytes"],
                coverage=tuple(data["coverage"]),
                notes=tuple(data["notes"]),
                stages={name: Stage(**stage) for name, stage in data["stages"].items()},
                provenance=data["provenance"],
                command=tuple(data["command"]),
                seen=tuple(Seen(**seen) for seen in data.get("seen", ())),
                said=tuple(Said(**said) for said in data.get("said", ())),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise fail(
                "report/file",
                path,
                saw=f"{type(error).__name__}: {error}",
                wanted=f"a file of schema {SCHEMA}",
                help="bitwright quantize SOURCE OUT --workdir DIR writes it into DIR",
            ) from error


def ratio(divergence: Divergence, other: Divergence) -> float:
    """KL divergence over that of ``other``."""
    return divergence.kl / max(other.kl, LEAST_NATS)


def domain_ratios(divergence: Divergence, other: Divergence) -> dict[str, float]:
    """The same of each domain that both were compared on."""
    theirs = {domain.label: domain for domain in other.domains}
    return {own.label: ratio(own, theirs[own.label]) for own in divergence.domains if own.label in theirs}


def sees(report: Report) -> bool:
    """Whether the model takes images."""
    return any(str(part["group"]).startswith("vision") for part in report.coverage)


def sentences(report: Report) -> tuple[str, str, str]:
    """What was gained for what, what was done, and how far to trust it."""
    result, stock, plan = report.result, report.verdict.entry(report.verdict.stock), report.plan
    change = 100 * (result.nbytes / stock.nbytes - 1)
    same = f"Its most likely next token is that of the 16-bit model in {100 * result.divergence.top1:.0f} of 100 places; with "
    same += f"{stock.label} in {100 * stock.divergence.top1:.0f}. "
    size = f"It takes {result.nbytes / 1e6:.1f} MB: {100 * result.nbytes / report.reference_nbytes:.0f} % of the 16-bit model, "
    size += f"{abs(change):.1f} % {'more' if change >= 0 else 'less'} than {stock.label}. "
    figures = f"({result.divergence.kl:.4f} against {stock.divergence.kl:.4f} nats per token)"
    gained = f"{same}{size}Its KL divergence from the 16-bit model is {_compared(report)} that of {stock.label} {figures}"
    gained += f"{_by_domain(report)}."
    formats = Counter(choice.format for choice in plan.choices)
    shares = ", ".join(f"{n} in {f}" for f, n in formats.most_common())
    done = f"Of {len(plan.choices)} weights, {shares}."
    if plan.gap is not None:
        done += f" The choice is within {100 * plan.gap:.2f} % of the best possible."
        done += f" One more megabyte would save {plan.price_nats_per_mb:.1g} nats."
    trust = f"Predicted {plan.check_nats:.4f} nats and measured {report.check.kl:.4f} on calibration text that no choice saw"
    low, high = plan.elsewhere
    trust += f"{_by_kind(report)}; expect {low:.4f} to {high:.4f} on text of other kinds. Measured on held-out text: "
    trust += f"{result.divergence.kl:.4f} ({result.divergence.kl_low:.4f} to {result.divergence.kl_high:.4f}). "
    trust += f"{report.verdict.gate[:1].upper()}{report.verdict.gate[1:]}."
    return gained, done, trust


def _by_domain(report: Report) -> str:
    """Between which shares of stock's divergence the domains lie, where there are several."""
    found = sorted((share, name) for name, share in report.domain_ratios(report.result.divergence).items())
    if len(found) < 2:
        return ""
    (low, least), (high, most) = found[0], found[-1]
    return f"; by kind of text between {low:.3f} ({least}) and {high:.3f} ({most}) of it"


def _by_kind(report: Report) -> str:
    """Prediction and measurement on each kind of calibration text, where there are several."""
    measured = {domain.label: domain.kl for domain in report.check.domains}
    pairs = [f"{kind} {nats:.4f} and {measured[kind]:.4f}" for kind, nats in report.plan.check_by_kind if kind in measured]
    return f" ({', '.join(pairs)})" if pairs else ""


def _compared(report: Report) -> str:
    """The result's divergence beside stock's, in words that fit either way."""
    own, theirs = report.result.divergence.kl, report.verdict.entry(report.verdict.stock).divergence.kl
    if own <= LEAST_NATS:
        return "too small to measure beside"
    if not theirs > LEAST_NATS:
        return "to be set against"
    return f"{theirs / own:.1f} times smaller than" if own <= theirs else f"{own / theirs:.1f} times larger than"
