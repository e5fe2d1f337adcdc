"""Round one weight in every format and say what each costs: a pure job that any process can do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.formats.base import Codes, Format, Packed
from bitwright.measure.curvature import blend_into, damage, energy, fisher_scores, relative_output_errors, relative_weight_error
from bitwright.measure.traffic import Traffic
from bitwright.plan import Rounding
from bitwright.rounding.base import Rounder
from bitwright.rounding.kernels.error_feedback import Feedback


@dataclass(frozen=True)
class FormatScore:
    """What was found for one weight in one format."""

    format: str
    rounding: Rounding
    damage_nats: float  # on the choosing fold
    damage_stderr: float
    check_nats: float  # on the predicting fold
    check_stderr: float
    weight_error: float
    output_error: float
    moment_nats: float  # tr(dW S dW^T) / (2 N) with the moment that rounding used: damage if outputs were independent


@dataclass(frozen=True)
class WeightScores:
    """All formats of one weight, and the damping that its second moment needed."""

    name: str
    damping: float
    formats: tuple[FormatScore, ...]


@dataclass
class Moments:
    """Second moments [K, K] of a weight's inputs over the rounding fold: plain, and weighted by each row's squared gradient."""

    plain: Tensor
    weighted: Tensor | None  # None once ``feedback`` has used it up
    n_rows: int  # of the weight
    n_tokens: int  # that were summed over

    def feedback(self, plain_share: float, damping: float) -> tuple[Feedback, float]:
        """What error feedback needs, made in the place of the weighted moment; and the nats of one unit of its energy."""
        weighted, self.weighted = self.weighted, None
        assert weighted is not None
        unit = float(weighted.diagonal().mean()) / (2 * self.n_rows * self.n_tokens)
        return Feedback.of(blend_into(weighted, self.plain, plain_share), damping), unit


@dataclass(frozen=True)
class WeightJob:
    """Everything that rounding and scoring one weight needs: tensors and numbers, no model and no files. It can be pickled."""

    name: str
    value: Tensor  # float32 [N, K]
    moments: Moments  # over the rounding fold
    traffic: Traffic  # of the choosing and the predicting fold, samples numbered through
    n_tokens: Tensor  # int64 [S], scored in each of those samples
    n_choosing: int  # of them, the first ones choose
    stock: tuple[Format, ...]  # rounded to nearest
    formats: tuple[Format, ...]  # rounded with calibration
    rounders: tuple[Rounder, ...]
    plain_share: float
    damping: float


@dataclass(frozen=True)
class Scored:
    """The result of a WeightJob: figures of every format, and the calibrated codes as files keep them."""

    scores: WeightScores
    codes: tuple[Packed, ...]


def score(job: WeightJob) -> Scored:
    """Round and score. The job's weighted moment is used up on the way, since it is among the largest things in memory."""
    feedback, unit = job.moments.feedback(job.plain_share, job.damping)
    made = [r.calibrated(job.value, feedback, own) for r, own in by_rounder(job.formats, job.rounders)]
    codes = in_order(made, job.formats)
    moment, damping = feedback.moment, feedback.damping
    del feedback  # its factor is as large as a second moment
    stock = [rounder_of(format, job.rounders).nearest(job.value, format) for format in job.stock]
    changes = [one.decode().sub_(job.value) for one in (*stock, *codes)]
    moments = [unit * energy(change, moment) for change in changes]
    del moment
    scores = fisher_scores(changes, job.traffic, len(job.n_tokens))
    outputs = relative_output_errors(job.value, changes, job.moments.plain)
    weights = [relative_weight_error(job.value, change) for change in changes]
    labels = [(one.format.name, Rounding.NEAREST) for one in stock]
    labels += [(one.format.name, Rounding.CALIBRATED) for one in codes]
    found = figures(labels, scores, job.n_tokens, job.n_choosing, weights, outputs, moments)
    return Scored(WeightScores(job.name, damping, found), tuple(Packed.of(one) for one in codes))


def by_rounder(formats: tuple[Format, ...], rounders: tuple[Rounder, ...]) -> list[tuple[Rounder, tuple[Format, ...]]]:
    """``formats`` by what rounds into them."""
    return [(rounder, tuple(f for f in formats if f.name in rounder.formats)) for rounder in rounders]


def in_order(made: list[list[Codes]], formats: tuple[Format, ...]) -> list[Codes]:
    """The codes of several rounders in the order of ``formats``."""
    done = {one.format.name: one for codes in made for one in codes}
    return [done[format.name] for format in formats]


def rounder_of(format: Format, rounders: tuple[Rounder, ...]) -> Rounder:
    return next(rounder for rounder in rounders if format.name in rounder.formats)


def figures(
    labels: list[tuple[str, Rounding]],
    scores: Tensor,
    n_tokens: Tensor,
    n_choosing: int,
    weight_errors: list[float],
    output_errors: list[float],
    moments: list[float],
) -> tuple[FormatScore, ...]:
    """One line a format from Fisher scores [C, S], the first ``n_choosing`` samples apart from the others."""
    chosen, chosen_error = damage(scores[:, :n_choosing], n_tokens[:n_choosing])
    check, check_error = damage(scores[:, n_choosing:], n_tokens[n_choosing:])
    nats = [column.tolist() for column in (chosen, chosen_error, check, check_error)]
    rows = zip(labels, *nats, weight_errors, output_errors, moments, strict=True)
    return tuple(FormatScore(*label, *numbers) for label, *numbers in rows)
