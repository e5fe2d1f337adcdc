"""Round and score the weights whose rows are tokens: the embedding, the output head, or one matrix that is both.

The head's logits are as wide as the vocabulary; they are made again for some rows at a time from what the head saw. What a
change of a head alone costs is the divergence itself; a matrix that is the embedding too is scored as other linears are, by its
output gradient p - onehot(y). A row of the embedding is the input of the first block wherever its token stands:
the score of a change dE on a sample is sum_t g_t . dE[token_t], g_t being the gradient at the first block's input.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import torch
from torch import Tensor

from bitwright.data.samples import Batch, Sample
from bitwright.errors import fail
from bitwright.formats.base import Format, Packed
from bitwright.host.progress import Reporter
from bitwright.host.schedule import ROUND
from bitwright.measure import store
from bitwright.measure.curvature import Errors, fisher_scores
from bitwright.measure.moments import SecondMoment
from bitwright.measure.scores import Moments, WeightScores, by_rounder, figures, in_order, rounder_of, spread, unseen
from bitwright.measure.sweep import Sweep
from bitwright.measure.traffic import Traffic
from bitwright.models.logits import LogitRule
from bitwright.models.spec import BlockId, Kind, Weight
from bitwright.plan import Rounding
from bitwright.rounding.kernels.damping import Unseen

LOGITS_BYTES = 64 * 2**20  # of the chunk of rows at work, in float32
LARGEST_CHANGE = 80.0  # of a logit, whose exponential float32 still holds
PROBED, PROBED_ROWS = 16, 4096  # tokens and rows at a time that tell whether the head's logits are understood
NORMALIZER_TOLERANCE = 0.1  # nats between two ways to a log of the sum of exponentials: 16-bit arithmetic
SCALE_TOLERANCE = 0.05  # how far an embedding may be from a multiple of its row, relatively: 16-bit arithmetic


def measure_vocabulary(sweep: Sweep, reporter: Reporter) -> None:
    """Measure embedding and head; codes and figures stay in the work directory like those of one more block."""
    ends = Ends.load(sweep)
    spec = sweep.skeleton.spec
    found = [_measure(weight, sweep, ends, reporter) for weight in spec.vocabulary]
    codes = {scores.name: packed for scores, packed in found}
    store.save_block(sweep.work, spec.after_blocks, [scores for scores, _ in found], codes, {})


@dataclass(frozen=True)
class Ends:
    """What passed the two ends of the model: M tokens of all samples, one sample after the other."""

    ids: Tensor  # int64 [M]
    sample: Tensor  # int64 [M]
    first: Tensor  # [M, K], the first block's input, and the gradient there; [M, 0] where no embedding is measured
    gradient: Tensor
    states: Tensor  # [M, K], the head's input
    normalizer: Tensor  # [M]
    label: Tensor  # [M]
    energy: Tensor  # [M]
    rule: LogitRule
    bias: Tensor | None = None  # [V] of the head

    @classmethod
    def load(cls, sweep: Sweep) -> Ends:
        samples, bottom = sweep.folds.all, BlockId(sweep.skeleton.spec.text.name, 0)
        head = sweep.work.load_tensors(store.HEAD_PIECE)
        counts = torch.tensor([sample.n_tokens for sample in samples])
        return cls(
            torch.cat([sample.ids for sample in samples]),
            torch.arange(len(samples)).repeat_interleave(counts),
            _bottom(sweep, store.hidden_piece(bottom)),
            _bottom(sweep, store.gradient_piece(bottom)),
            head["states"],
            head["normalizer"],
            head["label"],
            head["energy"],
            LogitRule.of(sweep.skeleton.source.config),
            _bias(sweep),
        )

    def part(self, where: slice) -> Ends:
        """The tokens ``where``, samples numbered from its first on."""
        names = ("ids", "sample", "first", "gradient", "states", "normalizer", "label", "energy")
        parts: dict[str, Any] = {name: getattr(self, name)[where] for name in names}
        parts["sample"] = parts["sample"] - parts["sample"][0]
        return Ends(**parts, rule=self.rule, bias=self.bias)

    def logits(self, states: Tensor, rows: Tensor, start: int) -> Tensor:
        """Logits [M, R] of the head's ``rows`` [R, K] from ``start`` on, float32."""
        products = (states.to(rows.dtype) @ rows.t()).float()
        if self.bias is not None:
            products += self.bias[start : start + len(rows)].to(products)
        return self.rule.logits(products)


def _bottom(sweep: Sweep, piece: str) -> Tensor:
    """What passed the first block [M, K]; [M, 0] where only a head is measured, which does not ask for it."""
    if all(weight.kind == Kind.HEAD for weight in sweep.skeleton.spec.vocabulary):
        return torch.empty(sum(sample.n_tokens for sample in sweep.folds.all), 0)
    return _rows(store.load_every(sweep.work, piece, len(sweep.batches)), sweep.batches)


def _rows(parts: list[Tensor], batches: list[Batch]) -> Tensor:
    """Rows [M, D] in the order of the samples, from one tensor [B, T, D] a batch."""
    found = {s: part[i] for part, batch in zip(parts, batches, strict=True) for i, s in enumerate(batch.at)}
    return torch.cat([found[s] for s in sorted(found)])


def _measure(spec: Weight, sweep: Sweep, ends: Ends, reporter: Reporter) -> tuple[WeightScores, list[Packed]]:
    value, method, device = sweep.skeleton.source.read(spec.name), sweep.method, sweep.device
    if spec.kind != Kind.EMBEDDING and not _is_known(value, ends):
        reporter.say(
            f"note: {spec.name} stays in 16 bit: what {sweep.skeleton.source.config.model_type} makes of it is unknown"
        )
        return WeightScores(spec.name, 0.0, ()), []
    scale, ends = (0.0, ends) if spec.kind == Kind.HEAD else _of_rows(spec, value, ends, sweep.folds.all)
    n_rounding = sweep.n_rounding_tokens
    rounding, scoring = ends.part(slice(0, n_rounding)), ends.part(slice(n_rounding, None))
    plain, weighted = _moments(spec, rounding, scale, device)
    n_choosing = sum(sample.n_tokens for sample in sweep.folds.choosing)
    unseen = _unseen(spec, scoring.part(slice(0, n_choosing)), scale, method.plain_share, device)
    moments = Moments(plain, weighted, None, spec.n_rows, n_rounding)
    del weighted
    feedback, unit = moments.feedback(method.plain_share, unseen)
    stock, formats = method.stock_of(spec), method.formats[spec.name]
    labels = [(f.name, Rounding.NEAREST) for f in stock] + [(f.name, Rounding.CALIBRATED) for f in formats]
    scores = torch.zeros(len(labels), len(sweep.n_scored), dtype=torch.float64)
    exact = _HeadDivergence(len(labels), scoring) if spec.kind == Kind.HEAD else None
    errors = Errors(len(labels))
    kept: list[list[Packed]] = [[] for _ in formats]
    rows = _rows_at_once((*stock, *formats), spec.n_cols, len(scoring.ids))
    starts = range(0, spec.n_rows, rows)
    for start in reporter.track(starts, f"{ROUND} {spec.role}", len(starts)):
        part = value[start : start + rows].to(device)
        matrix = part.float()
        made = [r.calibrated(matrix, feedback, own) for r, own in by_rounder(formats, method.rounders)]
        codes = in_order(made, formats)
        nearest = [rounder_of(f, method.rounders).nearest(matrix, f) for f in stock]
        changes = [one.decode().sub_(matrix) for one in (*nearest, *codes)]
        errors.add(matrix, changes, plain, feedback.moment)
        if exact:
            exact.add(changes, part.to(sweep.precision.work), start)
        elif spec.kind != Kind.EMBEDDING:
            scores += _head_scores(changes, part.to(sweep.precision.work), start, scoring, scores.shape[1]).cpu()
        if spec.kind != Kind.HEAD:
            scores += _embedding_scores(changes, start, scoring, scores.shape[1], scale).cpu()
        for parts, one in zip(kept, codes, strict=True):
            packed = Packed.of(one)
            parts.append(Packed(packed.format, packed.shape, {n: t.cpu() for n, t in packed.tensors.items()}))
    found = figures(
        labels,
        exact.as_scores(scores.shape[1]) if exact else scores,
        sweep.n_scored,
        len(sweep.folds.choosing),
        sweep.folds.kinds,
        [errors.weight_error(i) for i in range(len(labels))],
        [errors.output_error(i) for i in range(len(labels))],
        [unit * errors.moment_energy(i) for i in range(len(labels))],
    )
    common = [rounder_of(format, method.rounders).codes.common for format in formats]
    whole = [joined(pieces, same) for pieces, same in zip(kept, common, strict=True)]
    return WeightScores(spec.name, feedback.damping, found), whole


def joined(pieces: Sequence[Packed], common: Container[str]) -> Packed:
    """Rows of one weight, rounded some at a time, as one; ``common`` as in their Codes."""
    rows = sum(piece.shape[0] for piece in pieces)
    tensors = {
        name: tensor if name in common else torch.cat([piece.tensors[name] for piece in pieces])
        for name, tensor in pieces[0].tensors.items()
    }
    return Packed(pieces[0].format, (rows, *pieces[0].shape[1:]), tensors)


def _rows_at_once(formats: Sequence[Format], n_cols: int, n_tokens: int) -> int:
    """Rows whose logits of ``n_tokens`` fit LOGITS_BYTES, as whole multiples of what the formats round together."""
    together = lcm(*(format.rows_together(n_cols) for format in formats))
    return max(1, LOGITS_BYTES // (4 * n_tokens * together)) * together


def _moments(spec: Weight, ends: Ends, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Second moments [K, K] over the rounding fold: of the head's inputs, and weighted by what each end's gradient makes of a
    change of a row. For a matrix that is both ends the two add up, since either is a sum over the tokens of the text."""
    plain, weighted = SecondMoment(spec.n_cols, device), SecondMoment(spec.n_cols, device)
    counts = ends.sample.unique_consecutive(return_counts=True)[1]
    for stop, count in zip(counts.cumsum(0).tolist(), counts.tolist(), strict=True):
        part = slice(stop - count, stop)
        if spec.kind != Kind.EMBEDDING:
            states = ends.states[part].to(device)
            plain.add(states)
            weighted.add(states, ends.rule.factor**2 * ends.energy[part].to(device))
        if spec.kind != Kind.HEAD:
            weighted.add(scale * ends.gradient[part].to(device).float())
    of_inputs = torch.eye(spec.n_cols, device=device) if spec.kind == Kind.EMBEDDING else plain.take()
    return of_inputs, weighted.take()


def _unseen(spec: Weight, ends: Ends, scale: float, plain_share: float, device: torch.device) -> Unseen:
    """Tokens that the moments are not made of, weighted as they are; those of the head where a matrix is both ends."""
    at = spread(torch.arange(len(ends.ids)))
    if spec.kind == Kind.EMBEDDING:
        return Unseen(scale * ends.gradient[at].to(device).float(), torch.ones(len(at), device=device))
    return unseen(ends.states[at].to(device), ends.energy[at].to(device).float(), plain_share)


def _of_rows(spec: Weight, value: Tensor, ends: Ends, samples: Sequence[Sample]) -> tuple[float, Ends]:
    """What the model multiplies rows of the embedding with on their way into the first block, and ``ends`` without gradient
    where something else stands there: what a tower made of an image. A text without images has nothing but its rows."""
    ratios, fits = torch.empty(len(ends.ids)), torch.empty(len(ends.ids), dtype=torch.bool)
    at = 0
    for sample in samples:
        here = slice(at, at := at + sample.n_tokens)
        rows, first = value[ends.ids[here]].float(), ends.first[here].float()
        ratio = (rows * first).sum(1) / rows.square().sum(1).clamp(min=1e-30)
        fits[here] = (first - ratio[:, None] * rows).norm(dim=1) <= SCALE_TOLERANCE * first.norm(dim=1)
        ratios[here] = ratio
    scale = float(ratios[fits].median()) if fits.any() else 0.0
    fits &= (ratios - scale).abs() <= SCALE_TOLERANCE * abs(scale)
    may_differ = torch.tensor([bool(sample.media) for sample in samples])[ends.sample]
    if not fits.any() or not (fits | may_differ).all():
        raise fail(
            "model/embedding",
            spec.name,
            saw="the first block's input is not a multiple of the embedding's rows",
            wanted="nothing but a factor between embedding and first block",
            help="--container bitsandbytes keeps it in 16 bit",
        )
    return scale, ends if fits.all() else replace(ends, gradient=ends.gradient * fits[:, None])


def _bias(sweep: Sweep) -> Tensor | None:
    """That of the output head, where it has one."""
    head, model = sweep.skeleton.model.get_output_embeddings(), sweep.skeleton.model
    if getattr(head, "bias", None) is None:
        return None
    path = next(path for path, module in model.named_modules() if module is head)
    return sweep.skeleton.source.read(f"{path}.bias").float()


def _is_known(value: Tensor, ends: Ends) -> bool:
    """Whether the logits that are made again from the head's rows are those of the class: some tokens tell."""
    at = spread(torch.arange(len(ends.ids))[ends.energy > 0])[:PROBED]
    found = torch.full((len(at),), -torch.inf)
    for start in range(0, len(value), PROBED_ROWS):
        logits = ends.logits(ends.states[at].float(), value[start : start + PROBED_ROWS].float(), start)
        found = torch.logaddexp(found, logits.logsumexp(1))
    return bool((found - ends.normalizer[at].cpu()).abs().median() <= NORMALIZER_TOLERANCE)


class _HeadDivergence:
    """KL(p || q) of every token and change of a head, summed up over chunks of its rows: nothing lies between a head and p, so
    no quadratic form is needed, and no label is drawn. KL = log sum_v p_v exp(d_v) - sum_v p_v d_v, d the change of the logits.
    """

    def __init__(self, n_changes: int, ends: Ends) -> None:
        self.ends = ends
        self.of_exponents = torch.zeros(n_changes, len(ends.ids), dtype=torch.float64)
        self.of_changes = torch.zeros_like(self.of_exponents)

    def add(self, changes: list[Tensor], part: Tensor, start: int) -> None:
        """``changes`` [R, K] of the rows ``part`` [R, K] from ``start`` on, which come in any order and each once."""
        states, rule = self.ends.states.to(part.device, part.dtype), self.ends.rule
        before = self.ends.logits(states, part, start)  # [M, R]
        p = before.sub(self.ends.normalizer[:, None].to(part.device)).exp_()
        for c, change in enumerate(changes):
            if rule.cap:
                moved = self.ends.logits(states.float(), part.float() + change, start) - before
            else:
                moved = (states @ change.to(part.dtype).t()).float().mul_(rule.factor)
            self.of_changes[c] += (p * moved).sum(1, dtype=torch.float64).cpu()
            self.of_exponents[c] += moved.clamp_(max=LARGEST_CHANGE).exp_().mul_(p).sum(1, dtype=torch.float64).cpu()

    def as_scores(self, n_samples: int) -> Tensor:
        """Numbers [C, S] whose squares are twice the divergence of all tokens of each sample, as those of Fisher scores are."""
        kl = (self.of_exponents.log() - self.of_changes).clamp_(min=0)
        kl[:, self.ends.energy == 0] = 0  # positions that do not count
        total = torch.zeros(len(kl), n_samples, dtype=torch.float64)
        return total.index_add_(1, self.ends.sample, 2 * kl).sqrt_()


def _head_scores(changes: list[Tensor], part: Tensor, start: int, ends: Ends, n_samples: int) -> Tensor:
    """Scores [C, S] of changes of the head's rows from ``start`` on; ``part`` [R, K] are those rows."""
    device = part.device
    states = ends.states.to(device)
    logits = ends.logits(states, part, start)  # [M, R]
    slope = ends.rule.slope(logits)
    gradient = logits.sub_(ends.normalizer[:, None].to(device)).exp_()
    label = ends.label.to(device) - start
    hit = ((label >= 0) & (label < len(part))).nonzero(as_tuple=True)[0]
    gradient[hit, label[hit]] -= 1
    gradient *= slope
    silent = (ends.energy == 0).nonzero(as_tuple=True)[0].to(device)  # positions that do not count have no gradient
    gradient[silent] = 0
    return fisher_scores(changes, Traffic(states, gradient.to(states.dtype), ends.sample), n_samples)


def _embedding_scores(changes: list[Tensor], start: int, ends: Ends, n_samples: int, scale: float) -> Tensor:
    """Scores [C, S] of changes of the embedding's rows from ``start`` on."""
    device = changes[0].device
    ids = ends.ids - start
    hit = (ids >= 0) & (ids < len(changes[0]))
    at, row = ends.sample[hit].to(device), ids[hit].to(device)
    gradient = ends.gradient[hit].to(device).float()
    scores = torch.zeros(len(changes), n_samples, dtype=torch.float64, device=device)
    for c, change in enumerate(changes):
        scores[c].index_add_(0, at, scale * (change[row] * gradient).sum(1).double())
    return scores
