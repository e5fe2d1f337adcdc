"""Round and score the weights whose rows are tokens: the embedding, the output head, or one matrix that is both.

The head is a linear like any other, but its output gradient p - onehot(y) is as wide as the vocabulary; it is made again for
some rows at a time from what the head saw. A row of the embedding is the input of the first block wherever its token stands:
the score of a change dE on a sequence is sum_t g_t . dE[token_t], g_t being the gradient at the first block's input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.errors import fail
from bitwright.formats.pack import AnyCodes, codes_to_tensors
from bitwright.measure.calibration import Folds
from bitwright.measure.curvature import Errors, add_second_moment, blend_into, damage, fisher_scores
from bitwright.measure.pieces import HEAD_PIECE, codes_piece, gradient_piece, hidden_piece, results_piece
from bitwright.measure.recipe import Candidate, Measured, Recipe
from bitwright.measure.stream import BlockStream, HeadState
from bitwright.models.spec import EMBEDDING, HEAD, Weight
from bitwright.progress import Reporter
from bitwright.rounding.error_feedback import Feedback
from bitwright.rounding.round import round_calibrated, round_nearest

LOGITS_BYTES = 64 * 2**20  # of the chunk of rows at work, in float32
SCALE_TOLERANCE = 0.05  # how far an embedding may be from a multiple of its row, relatively: 16-bit arithmetic


def save_head(work: WorkDir, seen: list[HeadState]) -> None:
    """Keep what the head saw of each sequence."""
    parts = {name: torch.stack([getattr(state, name).cpu() for state in seen]) for name in vars(seen[0])}
    work.save_tensors(HEAD_PIECE, parts)


def measure_vocabulary(stream: BlockStream, folds: Folds, recipe: Recipe, work: WorkDir, reporter: Reporter) -> None:
    """Measure embedding and head; codes and scores stay in ``work`` like those of one more block."""
    traces = _Traces.load(stream, folds, work)
    tensors: dict[str, Tensor] = {}
    results = []
    for weight in stream.skeleton.spec.vocabulary:
        found, codes = _measure(weight, stream, traces, folds, recipe, reporter)
        results.append(found)
        for name, parts in codes.items():
            tensors |= {f"{weight.name}|{name}|{part}": torch.cat(chunks) for part, chunks in parts.items()}
    work.save_tensors(codes_piece(stream.n_blocks), tensors)
    work.save_json(results_piece(stream.n_blocks), [asdict(result) for result in results])


@dataclass(frozen=True)
class _Traces:
    """What passed the two ends of the model, for all sequences."""

    ids: Tensor  # [S, T]
    first: Tensor  # [S, T, K], the first block's input
    gradient: Tensor  # [S, T, K], the gradient there
    states: Tensor  # [S, T, K], the head's input
    normalizer: Tensor  # [S, T]
    label: Tensor  # [S, T]
    energy: Tensor  # [S, T]
    softcap: float | None

    @classmethod
    def load(cls, stream: BlockStream, folds: Folds, work: WorkDir) -> _Traces:
        head = work.load_tensors(HEAD_PIECE)
        config = stream.skeleton.model.config.get_text_config()
        return cls(
            folds.all,
            work.load_tensors(hidden_piece(0))["hidden"],
            work.load_tensors(gradient_piece(0))["gradient"],
            head["states"],
            head["normalizer"],
            head["label"],
            head["energy"],
            getattr(config, "final_logit_softcapping", None),
        )


def _measure(
    spec: Weight, stream: BlockStream, traces: _Traces, folds: Folds, recipe: Recipe, reporter: Reporter
) -> tuple[Measured, dict[str, dict[str, list[Tensor]]]]:
    value = stream.skeleton.read(spec.name)
    scale = 0.0 if spec.kind == HEAD else _embedding_scale(spec, value, traces)
    n_rounding, device = len(folds.rounding), stream.device
    plain, weighted = _moments(spec, traces, n_rounding, scale, device)
    unit = float(weighted.diagonal().mean()) / (2 * spec.n_rows * n_rounding * folds.n_tokens)
    feedback = Feedback.of(blend_into(weighted, plain, recipe.plain_share), recipe.damping, reuse=True)
    stock = recipe.stock_of(spec)
    labels = [(f.name, "nearest") for f in stock] + [(f.name, "calibrated") for f in recipe.formats[spec.name]]
    scores = torch.zeros(len(labels), len(folds.scoring), dtype=torch.float64)
    errors = Errors(len(labels))
    kept: dict[str, dict[str, list[Tensor]]] = {}
    rows = max(1, LOGITS_BYTES // (4 * len(folds.scoring) * folds.n_tokens))
    starts = range(0, spec.n_rows, rows)
    for start in reporter.track(starts, f"measure and round {spec.role}", len(starts)):
        part = value[start : start + rows].to(device)
        matrix = part.float()
        codes = round_calibrated(matrix, feedback, recipe.formats[spec.name])
        changes = [one.decode().sub_(matrix) for one in (*[round_nearest(matrix, f) for f in stock], *codes)]
        errors.add(matrix, changes, plain, feedback.moment)
        if spec.kind != EMBEDDING:
            scores += _head_scores(changes, part.to(stream.dtype), start, traces, n_rounding).cpu()
        if spec.kind != HEAD:
            scores += _embedding_scores(changes, start, traces, n_rounding, scale).cpu()
        _keep(kept, codes)
    n_choosing = len(folds.choosing)
    chosen, chosen_error = damage(scores[:, :n_choosing], folds.n_tokens)
    check, check_error = damage(scores[:, n_choosing:], folds.n_tokens)
    candidates = tuple(
        Candidate(
            format,
            rounding,
            float(chosen[i]),
            float(chosen_error[i]),
            float(check[i]),
            float(check_error[i]),
            errors.weight_error(i),
            errors.output_error(i),
            unit * errors.moment_energy(i),
        )
        for i, (format, rounding) in enumerate(labels)
    )
    return Measured(spec.name, feedback.damping, candidates), kept


def _keep(kept: dict[str, dict[str, list[Tensor]]], codes: list[AnyCodes]) -> None:
    for one in codes:
        parts = kept.setdefault(one.format.name, {})
        for part, tensor in codes_to_tensors(one).items():
            parts.setdefault(part, []).append(tensor.cpu())


def _moments(spec: Weight, traces: _Traces, n_rounding: int, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Second moments [K, K] over the rounding fold: of the head's inputs, and weighted by what each end's gradient makes of a
    change of a row. For a matrix that is both ends the two add up, since either is a sum over the tokens of the text."""
    plain = torch.zeros(spec.n_cols, spec.n_cols, device=device)
    weighted = torch.zeros_like(plain)
    for s in range(n_rounding):
        if spec.kind != EMBEDDING:
            states = traces.states[s].to(device)
            add_second_moment(plain, states)
            add_second_moment(weighted, states, traces.energy[s].to(device))
        if spec.kind != HEAD:
            add_second_moment(weighted, scale * traces.gradient[s].to(device).float())
    if spec.kind == EMBEDDING:
        plain = torch.eye(spec.n_cols, device=device)
    return plain, weighted


def _embedding_scale(spec: Weight, value: Tensor, traces: _Traces) -> float:
    """What the model multiplies rows of the embedding with on their way into the first block."""
    rows, first = value[traces.ids[0]].float(), traces.first[0].float()
    scale = float((rows * first).sum() / rows.square().sum().clamp(min=1e-30))
    if float((first - scale * rows).norm()) > SCALE_TOLERANCE * float(first.norm()):
        raise fail(
            "model/embedding",
            spec.name,
            saw="the first block's input is not a multiple of the embedding's rows",
            wanted="nothing but a factor between embedding and first block",
            help="--container bitsandbytes keeps it in 16 bit",
        )
    return scale


def _head_scores(changes: list[Tensor], part: Tensor, start: int, traces: _Traces, n_rounding: int) -> Tensor:
    """Scores [C, S] of changes of the head's rows from ``start`` on; ``part`` [R, K] are those rows."""
    states = traces.states[n_rounding:].to(part.device)
    logits = (states.to(part.dtype) @ part.t()).float()  # [S, T, R]
    slope = None
    if traces.softcap:
        logits = traces.softcap * torch.tanh_(logits.div_(traces.softcap))
        slope = 1 - (logits / traces.softcap).square_()
    gradient = logits.sub_(traces.normalizer[n_rounding:, :, None].to(part.device)).exp_()
    label = traces.label[n_rounding:].to(part.device) - start
    hit = (label >= 0) & (label < len(part))
    s, t = hit.nonzero(as_tuple=True)
    gradient[s, t, label[hit]] -= 1
    if slope is not None:
        gradient *= slope
    return fisher_scores(changes, states, gradient.to(states.dtype))


def _embedding_scores(changes: list[Tensor], start: int, traces: _Traces, n_rounding: int, scale: float) -> Tensor:
    """Scores [C, S] of changes of the embedding's rows from ``start`` on."""
    device = changes[0].device
    ids = traces.ids[n_rounding:] - start
    hit = (ids >= 0) & (ids < len(changes[0]))
    at, row = hit.nonzero(as_tuple=True)[0].to(device), ids[hit].to(device)
    gradient = traces.gradient[n_rounding:][hit].to(device).float()
    scores = torch.zeros(len(changes), len(ids), dtype=torch.float64, device=device)
    for c, change in enumerate(changes):
        scores[c].index_add_(0, at, scale * (change[row] * gradient).sum(1).double())
    return scores
