"""Measure a model in two sweeps: forward for the boundaries, backward to round and score every weight of a block."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.errors import fail
from bitwright.formats.pack import AnyCodes, codes_to_tensors
from bitwright.measure.calibration import Folds
from bitwright.measure.curvature import (
    add_second_moment,
    blend_into,
    damage,
    energy,
    fisher_scores,
    relative_output_errors,
    relative_weight_error,
    rescaled,
    token_weights,
)
from bitwright.measure.heap import return_free_pages
from bitwright.measure.pieces import MEAN_SQUARE, codes_piece, gradient_piece, hidden_piece, load_block, results_piece
from bitwright.measure.recipe import Candidate, Measured, Recipe
from bitwright.measure.stream import BlockStream, HeadState, backward_through
from bitwright.measure.vocabulary import measure_vocabulary, save_head
from bitwright.models.spec import Weight
from bitwright.progress import Reporter
from bitwright.rounding.error_feedback import Feedback
from bitwright.rounding.round import round_calibrated, round_nearest


def measure_blocks(stream: BlockStream, folds: Folds, recipe: Recipe, work: WorkDir, reporter: Reporter) -> list[Measured]:
    """Round and score every weight; codes and scores of each block stay in ``work``, which a killed run resumes from."""
    done = [index for index in range(stream.n_blocks) if work.has(results_piece(index))]
    lowest = min(done, default=stream.n_blocks)
    if lowest > 0:
        stream.fill_rest()
        first = _embed(stream, folds, recipe)
        if lowest == stream.n_blocks and not work.has(gradient_piece(lowest)):
            _forward_sweep(stream, folds, recipe, first, work, reporter)
            _top_gradient(stream, folds, recipe, work, reporter)
        stream.release_rest()
        for index in reporter.track(reversed(range(lowest)), "measure and round blocks", lowest):
            _measure_block(stream, folds, recipe, work, index)
    indices = list(range(stream.n_blocks))
    if stream.skeleton.spec.vocabulary:
        if not work.has(results_piece(stream.n_blocks)):
            measure_vocabulary(stream, folds, recipe, work, reporter)
        indices.append(stream.n_blocks)
    return [m for index in indices for m in load_block(work, index)]


def _batches(count: int, n_tokens: int, recipe: Recipe) -> list[slice]:
    size = max(1, recipe.batch_tokens // n_tokens)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _embed(stream: BlockStream, folds: Folds, recipe: Recipe) -> Tensor:
    """Hidden states [S, T, D] that enter the first block; the stream learns how blocks are called on the way."""
    ids = folds.all
    for count in (len(folds.rounding), len(folds.scoring)):
        for batch in _batches(count, folds.n_tokens, recipe)[-1:]:
            stream.embed(ids[: batch.stop - batch.start])
    return torch.cat([stream.embed(ids[batch]).cpu() for batch in _batches(len(ids), folds.n_tokens, recipe)])


def _forward_sweep(stream: BlockStream, folds: Folds, recipe: Recipe, first: Tensor, work: WorkDir, reporter: Reporter) -> None:
    """Boundary activations of every block, [S, T, D] each, into ``work``."""
    batches = _batches(len(first), folds.n_tokens, recipe)
    start = max((i for i in range(stream.n_blocks + 1) if work.has(hidden_piece(i))), default=-1)
    if start < 0:
        start = 0
        work.save_tensors(hidden_piece(0), {"hidden": first})
    hidden = work.load_tensors(hidden_piece(start))["hidden"]
    for index in reporter.track(range(start, stream.n_blocks), "forward", stream.n_blocks - start):
        with stream.block(index) as block, torch.no_grad():
            for batch in batches:
                given = hidden[batch].to(stream.device)
                hidden[batch] = stream.call(index, given.shape)(block, given).to(hidden.device)
        if not bool(torch.isfinite(hidden).all()):
            raise fail(
                "measure/not-finite",
                f"{stream.skeleton.block_path}.{index}",
                saw="activations overflow to NaN or infinity",
                wanted=f"finite activations in {stream.dtype}",
                help="measure in 32 bit: --dtype float32",
            )
        work.save_tensors(hidden_piece(index + 1), {"hidden": hidden})


def _top_gradient(stream: BlockStream, folds: Folds, recipe: Recipe, work: WorkDir, reporter: Reporter) -> None:
    """Gradient of the sampled-label loss at the last block's output, one sequence at a time."""
    ids = folds.all
    hidden = work.load_tensors(hidden_piece(stream.n_blocks))["hidden"]
    gradient = torch.empty_like(hidden)
    seen: list[HeadState] = []
    for s in reporter.track(range(len(ids)), "sample labels", len(ids)):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + s)
        given = hidden[s : s + 1].to(stream.device)
        found, state = stream.sampled_score_gradient(ids[s : s + 1], given, generator)
        gradient[s] = found[0].to(hidden.device)
        if stream.skeleton.spec.vocabulary:
            seen.append(state)
    if seen:
        save_head(work, seen)
    work.save_tensors(gradient_piece(stream.n_blocks), {"gradient": gradient})


def _measure_block(stream: BlockStream, folds: Folds, recipe: Recipe, work: WorkDir, index: int) -> None:
    """Recompute block ``index``, round its weights in every format, score them, and pass the gradient down."""
    hidden = work.load_tensors(hidden_piece(index))["hidden"]
    gradient = work.load_tensors(gradient_piece(index + 1))["gradient"]
    weights = {w.name: w for w in stream.skeleton.spec.weights if w.block == index}
    n_rounding = len(folds.rounding)
    with stream.block(index) as block:
        linears = {name: stream.skeleton.model.get_submodule(w.module) for name, w in weights.items()}
        statistics = _Statistics()
        captured: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for offset, count in ((0, n_rounding), (n_rounding, len(folds.scoring))):
            for batch in _batches(count, folds.n_tokens, recipe):
                at = slice(offset + batch.start, offset + batch.stop)
                given, down = hidden[at].to(stream.device), gradient[at].to(stream.device)
                call = stream.call(index, given.shape)
                passed, inputs, gradients = backward_through(block, call, given, down, linears)
                gradient[at] = passed.to(gradient.device)
                if offset == 0:
                    statistics.add(inputs, gradients)
                else:
                    captured.append((inputs, gradients))
        tensors: dict[str, Tensor] = {}
        results: list[Measured] = []
        mean_square = statistics.mean_square(n_rounding * folds.n_tokens)
        del passed, inputs, gradients, given, down
        for name, weight in sorted(weights.items(), key=lambda item: item[1].n_cols):  # the widest when the others are gone
            value = _matrix(linears[name], weight)
            inputs_of = torch.cat([inputs[name] for inputs, _ in captured])
            gradients_of = torch.cat([gradients.pop(name) for _, gradients in captured])
            return_free_pages(value.numel())
            found, codes = _measure_weight(weight, value, statistics, inputs_of, gradients_of, folds, recipe)
            results.append(found)
            tensors[f"{name}|{MEAN_SQUARE}"] = mean_square[name]
            for one in codes:
                for part, tensor in codes_to_tensors(one).items():
                    tensors[f"{name}|{one.format.name}|{part}"] = tensor
    if index > 0 or stream.skeleton.spec.vocabulary:
        work.save_tensors(gradient_piece(index), {"gradient": gradient})
    work.save_tensors(codes_piece(index), tensors)
    work.save_json(results_piece(index), [asdict(result) for result in results])
    work.drop(gradient_piece(index + 1))
    work.drop(hidden_piece(index + 1))


def _matrix(linear: Any, weight: Weight) -> Tensor:
    """The weight as [N, K] in float32."""
    value = linear.weight.detach().float()
    return value.t().contiguous() if weight.transposed else value


class _Statistics:
    """Second moments of a block's linears, plain once per distinct input and weighted once per weight."""

    def __init__(self) -> None:
        self.shared: dict[str, str] = {}  # weight -> first weight that is given the same input
        self.plain: dict[str, Tensor] = {}
        self.weighted: dict[str, Tensor] = {}

    def add(self, inputs: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        first: dict[int, str] = {}
        for name, x in inputs.items():
            owner = self.shared.setdefault(name, first.setdefault(x.data_ptr(), name))
            tokens = x.flatten(0, -2)
            if owner == name:
                add_second_moment(self._sum(self.plain, name, x), tokens)
            add_second_moment(self._sum(self.weighted, name, x), tokens, token_weights(gradients[name].flatten(0, -2)))

    @staticmethod
    def _sum(sums: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        if name not in sums:
            sums[name] = torch.zeros(x.shape[-1], x.shape[-1], device=x.device)
        return sums[name]

    def mean_square(self, n_tokens: int) -> dict[str, Tensor]:
        """Mean squared inputs [K] of every weight."""
        return {name: (self.plain[owner].diagonal() / n_tokens).cpu() for name, owner in self.shared.items()}

    def take(self, name: str) -> tuple[Tensor, Tensor]:
        """Sums over tokens of x x^T, plain and weighted, for the input of ``name``; they are kept no longer than needed."""
        owner = self.shared.pop(name)
        plain = self.plain[owner] if owner in self.shared.values() else self.plain.pop(owner)
        return plain, self.weighted.pop(name)


def _measure_weight(
    spec: Weight, weight: Tensor, statistics: _Statistics, inputs: Tensor, gradients: Tensor, folds: Folds, recipe: Recipe
) -> tuple[Measured, list[AnyCodes]]:
    plain, weighted = statistics.take(spec.name)
    if spec.name in recipe.importance:
        mean_square = plain.diagonal() / (len(folds.rounding) * folds.n_tokens)
        plain, weighted = rescaled(plain, weighted, recipe.importance[spec.name].to(plain.device), mean_square)
    unit = float(weighted.diagonal().mean()) / (2 * weight.shape[0] * len(folds.rounding) * folds.n_tokens)
    feedback = Feedback.of(blend_into(weighted, plain, recipe.plain_share), recipe.damping, reuse=True)
    codes = round_calibrated(weight, feedback, recipe.formats[spec.name])
    moment, damping = feedback.moment, feedback.damping
    del feedback  # its factor is as large as a second moment
    stock = [round_nearest(weight, format) for format in recipe.stock_of(spec)]
    changes = [one.decode().sub_(weight) for one in (*stock, *codes)]
    moments = [unit * energy(change, moment) for change in changes]
    del weighted, moment  # one and the same
    scores = fisher_scores(changes, inputs, gradients)
    labels = [(one.format.name, kind) for kind, group in (("nearest", stock), ("calibrated", codes)) for one in group]
    n_choosing = len(folds.choosing)
    chosen, chosen_error = damage(scores[:, :n_choosing], folds.n_tokens)
    check, check_error = damage(scores[:, n_choosing:], folds.n_tokens)
    output_errors = relative_output_errors(weight, changes, plain)
    candidates = tuple(
        Candidate(
            format,
            rounding,
            float(chosen[i]),
            float(chosen_error[i]),
            float(check[i]),
            float(check_error[i]),
            relative_weight_error(weight, changes[i]),
            output_errors[i],
            moments[i],
        )
        for i, (format, rounding) in enumerate(labels)
    )
    return Measured(spec.name, damping, candidates), codes
