"""Round one weight in every format and say what each costs: a pure job that any process can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitwright.formats.base import Codes, Format, Packed
from bitwright.measure.curvature import blend_into, damage, fisher_scores, output_energies, relative_weight_error, token_weights
from bitwright.measure.moments import SecondMoment
from bitwright.measure.traffic import Traffic
from bitwright.plan import Rounding
from bitwright.rounding.base import Rounder
from bitwright.rounding.kernels.damping import Unseen
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.row_feedback import RowFeedback

UNSEEN = 1024  # tokens on which damping is chosen
SHORT = 4  # tokens of the rounding fold for each column
TOKENS_AT_ONCE = 2048  # of the choosing fold, while its moment is summed
TINY = torch.finfo(torch.float32).tiny


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
    moment_nats: float  # tr(dW S dW^T) / (2 N): damage if outputs were independent
    check_by_kind: tuple[float, ...] = ()  # check_nats of each kind of text in that fold, in the order in which they come


@dataclass(frozen=True)
class WeightScores:
    """All formats of one weight, and the damping that its second moment needed."""

    name: str
    damping: float
    formats: tuple[FormatScore, ...]


@dataclass
class Moments:
    """Second moments of a weight over the rounding fold: of its inputs [K, K], plain and weighted by each token's squared
    gradient, and of its output gradients."""

    plain: Tensor | None  # both None once ``feedback`` has used them up
    weighted: Tensor | None
    outputs: Tensor | None  # [N, N] of the output gradients, weighted by each input's square; None where it is not used
    n_rows: int  # of the weight
    n_tokens: int  # that were summed over

    def feedback(self, plain_share: float, unseen: Unseen) -> tuple[Feedback, float]:
        """What error feedback needs, made in the place of the weighted moment; and the nats of one unit of its energy.

        ``unseen``: tokens of another fold, which tell how much damping is right. Both moments of the inputs are let go, since
        each is as large as the factor that is made meanwhile.
        """
        plain, weighted = self.plain, self.weighted
        self.plain = self.weighted = None
        assert plain is not None
        assert weighted is not None
        unit = float(weighted.diagonal().mean()) / (2 * self.n_rows * self.n_tokens)
        blended = blend_into(weighted, plain, plain_share)
        del plain
        return Feedback.of(blended, unseen), unit


@dataclass(frozen=True)
class WeightJob:
    """Everything that rounding and scoring one weight needs: tensors and numbers, no model and no files. It can be pickled."""

    name: str
    value: Tensor  # float32 [N, K]
    moments: Moments  # over the rounding fold
    traffic: Traffic  # of the choosing and the predicting fold, samples numbered through
    n_tokens: Tensor  # int64 [S], scored in each of those samples
    n_choosing: int  # of them, the first ones choose
    kinds: tuple[str, ...]  # of text, of each of the others
    stock: tuple[Format, ...]  # rounded to nearest
    formats: tuple[Format, ...]  # rounded with calibration
    rounders: tuple[Rounder, ...]
    plain_share: float
    column_scale: Tensor | None = None  # [K], of the inputs, where the moments have been scaled so

    def unseen(self) -> Unseen:
        """Tokens of the choosing fold, as the moments would weigh them."""
        at = spread(self._choosing)
        return unseen(self._inputs(at), token_weights(self.traffic.g[at]), self.plain_share)

    def row_feedback(self) -> RowFeedback | None:
        """How later rows make good errors of earlier ones, from the second moment of the output gradients, which is used up."""
        outputs, self.moments.outputs = self.moments.outputs, None
        if outputs is None:
            return None
        at = spread(self._choosing)
        return RowFeedback.of(outputs, Unseen(self.traffic.g[at], token_weights(self.traffic.x[at])))

    def output_errors(self, changes: list[Tensor]) -> tuple[list[float], list[float]]:
        """On these tokens, the share of the outputs that each change makes wrong; and its damage in nats if outputs were
        independent, tr(dW S dW^T) / (2 N) with S weighted as for rounding."""
        at = spread(self._choosing)
        whole, *errors = output_energies([self.value, *changes], self.traffic.x[at])
        nats = blended(energy(self.traffic.x[at]), token_weights(self.traffic.g[at]), self.plain_share).double()
        total = max(float(whole.sum()), TINY)
        return (
            [(float(error.sum()) / total) ** 0.5 for error in errors],
            [float((error * nats).mean()) / (2 * len(self.value)) for error in errors],
        )

    def add_choosing(self, moment: Tensor) -> None:
        """Blend the choosing fold into ``moment``, that of the rounding fold, by tokens. Its mean diagonal is one."""
        rows = self._choosing
        parts = rows.split(TOKENS_AT_ONCE)
        energies = torch.cat([energy(self._inputs(part)) for part in parts])
        weights = blended(energies, torch.cat([token_weights(self.traffic.g[part]) for part in parts]), self.plain_share)
        more = SecondMoment(self.value.shape[1], self.value.device)
        for part, own in zip(parts, weights.split(TOKENS_AT_ONCE), strict=True):
            more.add(self._inputs(part), own)
        others = more.take()
        share = self.moments.n_tokens / (self.moments.n_tokens + len(rows))
        scale = max(float(others.diagonal().mean()), TINY)
        moment.mul_(share).add_(others, alpha=(1 - share) / scale)

    @property
    def _choosing(self) -> Tensor:
        """Which rows of the traffic are the choosing fold's."""
        return (self.traffic.sample < self.n_choosing).nonzero()[:, 0]

    def _inputs(self, at: Tensor) -> Tensor:
        """Those [M, K] of the rows ``at`` of the traffic, in the scale of the moments."""
        x = self.traffic.x[at].float()
        return x if self.column_scale is None else x * self.column_scale

    @property
    def is_short(self) -> bool:
        """Whether the rounding fold has so few tokens that those of the choosing fold should shape the codes too."""
        return self.moments.n_tokens < SHORT * self.value.shape[1]


@dataclass(frozen=True)
class Scored:
    """The result of a WeightJob: figures of every format, and the calibrated codes as files keep them."""

    scores: WeightScores
    codes: tuple[Packed, ...]


def score(job: WeightJob) -> Scored:
    """Round and score. The job's moments are used up on the way, since they are the largest things in memory.

    Where tokens are short, those of the choosing fold shape the codes that are kept too. The figures remain those of the first
    codes, which no scoring fold has shaped; what is kept is a little better than they say.
    """
    if not job.stock and not job.formats:
        return Scored(WeightScores(job.name, 0.0, ()), ())
    feedback, _ = job.moments.feedback(job.plain_share, job.unseen())
    rows = job.row_feedback()
    codes = _calibrated(job, replace(feedback, rows=rows))
    moment, damping = feedback.moment, feedback.damping
    del feedback  # its factor is as large as a second moment
    stock = [rounder_of(format, job.rounders).nearest(job.value, format) for format in job.stock]
    changes = [one.decode().sub_(job.value) for one in (*stock, *codes)]
    scores = fisher_scores(changes, job.traffic, len(job.n_tokens))
    outputs, moments = job.output_errors(changes)
    weights = [relative_weight_error(job.value, change) for change in changes]
    labels = [(one.format.name, Rounding.NEAREST) for one in stock]
    labels += [(one.format.name, Rounding.CALIBRATED) for one in codes]
    found = figures(labels, scores, job.n_tokens, job.n_choosing, job.kinds, weights, outputs, moments)
    if job.is_short and codes:
        del changes
        codes = _shaped_by_both(job, codes, moment, damping, rows)
    return Scored(WeightScores(job.name, damping, found), tuple(Packed.of(one) for one in codes))


def _shaped_by_both(
    job: WeightJob, codes: list[Codes], moment: Tensor, damping: float, rows: RowFeedback | None
) -> list[Codes]:
    """``codes`` of the rounding fold, whose damped ``moment`` is used up, once the choosing fold has its say too. The
    predicting one stays unseen.

    A sweep over the codes brings most of what rounding anew would, in a third of the time. It does not know how rows make up
    for each other: where they do, the weight is rounded anew.
    """
    moment.diagonal().sub_(damping)
    job.add_choosing(moment)
    if not bool(torch.isfinite(moment.sum())):
        raise ValueError("the choosing fold has NaN or infinite entries")
    if rows is not None:
        return _calibrated(job, replace(Feedback.of(moment, damping=damping), rows=rows))
    moment.diagonal().add_(damping)
    return [rounder_of(one.format, job.rounders).descended(job.value, one, moment) for one in codes]


def _calibrated(job: WeightJob, feedback: Feedback) -> list[Codes]:
    made = [r.calibrated(job.value, feedback, own) for r, own in by_rounder(job.formats, job.rounders)]
    return in_order(made, job.formats)


def spread(tokens: Tensor) -> Tensor:
    """Up to UNSEEN of ``tokens`` [M], evenly apart."""
    return tokens[:: max(1, -(-len(tokens) // UNSEEN))]


def unseen(x: Tensor, weights: Tensor, plain_share: float) -> Unseen:
    """Tokens x [M, K] with ``weights`` [M] as a blended second moment would weigh them, one in the mean."""
    own = blended(energy(x), weights, plain_share)
    return Unseen(x, own / own.mean().clamp(min=TINY))


def energy(x: Tensor) -> Tensor:
    """Squared norm [M] of each token's inputs x [M, K], in float32."""
    return x.float().square().sum(1)


def blended(energies: Tensor, weights: Tensor, plain_share: float) -> Tensor:
    """``weights`` [M] of tokens with such ``energies`` [M], blended as second moments are (``blend_into``): a part in which all
    weigh alike has ``plain_share`` of the weighted energy, whose sum stays what it was.

    >>> blended(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 6.0]), 0.5)
    tensor([1.5000, 4.0000])
    """
    if not bool(weights.any()):
        return torch.ones_like(weights)
    level = (energies * weights).sum() / energies.sum().clamp(min=TINY)
    return plain_share * level + (1 - plain_share) * weights


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
    kinds: Sequence[str],
    weight_errors: list[float],
    output_errors: list[float],
    moments: list[float],
) -> tuple[FormatScore, ...]:
    """One line a format from Fisher scores [C, S], the first ``n_choosing`` samples apart from the others."""
    chosen, chosen_error = damage(scores[:, :n_choosing], n_tokens[:n_choosing])
    check, check_error = damage(scores[:, n_choosing:], n_tokens[n_choosing:])
    by_kind = []
    for kind in dict.fromkeys(kinds):
        at = torch.tensor([n_choosing + i for i, other in enumerate(kinds) if other == kind])
        by_kind.append(damage(scores[:, at], n_tokens[at])[0].tolist())
    of_format = list(zip(*by_kind, strict=True)) or [()] * len(labels)
    nats = [column.tolist() for column in (chosen, chosen_error, check, check_error)]
    names = ("damage_nats", "damage_stderr", "check_nats", "check_stderr", "weight_error", "output_error", "moment_nats")
    rows = zip(*nats, weight_errors, output_errors, moments, strict=True)
    return tuple(
        FormatScore(format, rounding, check_by_kind=tuple(parts), **dict(zip(names, numbers, strict=True)))
        for (format, rounding), numbers, parts in zip(labels, rows, of_format, strict=True)
    )
