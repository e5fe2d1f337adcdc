"""Measure a model in two sweeps: forward for the boundaries, backward to round and score every weight of a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.errors import fail
from bitwright.formats.codes import Codes
from bitwright.formats.format import BlockFormat
from bitwright.formats.pack import codes_from_tensors, codes_to_tensors
from bitwright.measure.calibration import Folds
from bitwright.measure.curvature import (
    add_second_moment,
    blend_into,
    damage,
    energy,
    fisher_scores,
    relative_output_errors,
    relative_weight_error,
    token_weights,
)
from bitwright.measure.stream import BlockStream, backward_through
from bitwright.models.spec import Weight
from bitwright.progress import Reporter
from bitwright.rounding.calibrated import round_calibrated
from bitwright.rounding.error_feedback import DAMPING, Feedback
from bitwright.rounding.nearest import nearest


@dataclass(frozen=True)
class Recipe:
    """How weights are measured and rounded. Each default is the winner of an experiment in docs/LOG.md."""

    formats: tuple[BlockFormat, ...]  # rounded with calibration
    stock: BlockFormat  # also rounded to nearest, for comparison
    unavailable: Callable[[BlockFormat, int, int], str | None]  # why a format cannot store a weight of N x K
    plain_share: float = 0.1  # of the unweighted second moment in the blend
    damping: float = DAMPING
    batch_tokens: int = 2048
    seed: int = 0

    def formats_of(self, weight: Weight) -> list[BlockFormat]:
        """The formats that ``weight`` is rounded to."""
        return [format for format in self.formats if not self.unavailable(format, weight.n_rows, weight.n_cols)]

    def stock_of(self, weight: Weight) -> list[BlockFormat]:
        """The stock format, or nothing where it cannot store ``weight``."""
        return [] if self.unavailable(self.stock, weight.n_rows, weight.n_cols) else [self.stock]

    def unmeasured(self, weight: Weight) -> Measured:
        """What will be found for ``weight``, with zeros for figures."""
        pairs = [(format.name, "nearest") for format in self.stock_of(weight)]
        pairs += [(format.name, "calibrated") for format in self.formats_of(weight)]
        return Measured(weight.name, self.damping, tuple(Candidate(*pair, *[0.0] * 7) for pair in pairs))

    def key(self) -> dict[str, object]:
        numbers = (self.plain_share, self.damping, self.batch_tokens, self.seed)
        return {"formats": [format.name for format in self.formats], "stock": self.stock.name, "numbers": numbers}


@dataclass(frozen=True)
class Candidate:
    """What was found for one weight in one format."""

    format: str
    rounding: str
    damage_nats: float
    damage_stderr: float
    check_nats: float
    check_stderr: float
    weight_error: float
    output_error: float
    moment_nats: float  # tr(dW S dW^T) / (2 N) with the moment that rounding used: damage if outputs were independent


@dataclass(frozen=True)
class Measured:
    """All candidates of one weight, and the damping that its second moment needed."""

    name: str
    damping: float
    candidates: tuple[Candidate, ...]


def measure_blocks(stream: BlockStream, folds: Folds, recipe: Recipe, work: WorkDir, reporter: Reporter) -> list[Measured]:
    """Round and score every weight; codes and scores of each block stay in ``work``, which a killed run resumes from."""
    done = [index for index in range(stream.n_blocks) if work.has(_results(index))]
    lowest = min(done, default=stream.n_blocks)
    if lowest > 0:
        stream.fill_rest()
        first = _embed(stream, folds, recipe)
        if lowest == stream.n_blocks and not work.has(_gradient(lowest)):
            _forward_sweep(stream, folds, recipe, first, work, reporter)
            _top_gradient(stream, folds, recipe, work, reporter)
        stream.release_rest()
        for index in reporter.track(reversed(range(lowest)), "measure and round blocks", lowest):
            _measure_block(stream, folds, recipe, work, index)
    return [m for index in range(stream.n_blocks) for m in load_block(work, index)]


def load_block(work: WorkDir, index: int) -> list[Measured]:
    """The results of one finished block."""
    return [
        Measured(m["name"], m["damping"], tuple(Candidate(**c) for c in m["candidates"]))
        for m in work.load_json(_results(index))
    ]


def load_codes(work: WorkDir, weight: Weight, format: BlockFormat) -> Codes:
    """The calibrated codes of ``weight`` in ``format``, as measured."""
    tensors = work.load_tensors(_codes(weight.block), prefix=f"{weight.name}|{format.name}|")
    return codes_from_tensors(format, (weight.n_rows, weight.n_cols), tensors)


def _hidden(index: int) -> str:
    return f"hidden-{index:04d}.safetensors"


def _gradient(index: int) -> str:
    return f"gradient-{index:04d}.safetensors"


def _results(index: int) -> str:
    return f"block-{index:04d}.json"


def _codes(index: int) -> str:
    return f"block-{index:04d}.safetensors"


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
    start = max((i for i in range(stream.n_blocks + 1) if work.has(_hidden(i))), default=-1)
    if start < 0:
        start = 0
        work.save_tensors(_hidden(0), {"hidden": first})
    hidden = work.load_tensors(_hidden(start))["hidden"]
    for index in reporter.track(range(start, stream.n_blocks), "forward", stream.n_blocks - start):
        with stream.block(index) as block, torch.no_grad():
            for batch in batches:
                given = hidden[batch].to(stream.device)
                hidden[batch] = stream.call(index, given.shape)(block, given).to(hidden.device)
        if not bool(torch.isfinite(hidden).all()):
            raise fail(
                "measure/not-finite", f"{stream.skeleton.block_path}.{index}", saw="activations overflow to NaN or infinity",
                wanted=f"finite activations in {stream.dtype}", help="measure in 32 bit: --dtype float32",
            )  # fmt: skip
        work.save_tensors(_hidden(index + 1), {"hidden": hidden})


def _top_gradient(stream: BlockStream, folds: Folds, recipe: Recipe, work: WorkDir, reporter: Reporter) -> None:
    """Gradient of the sampled-label loss at the last block's output, one sequence at a time."""
    ids = folds.all
    hidden = work.load_tensors(_hidden(stream.n_blocks))["hidden"]
    gradient = torch.empty_like(hidden)
    for s in reporter.track(range(len(ids)), "sample labels", len(ids)):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + s)
        given = hidden[s : s + 1].to(stream.device)
        gradient[s] = stream.sampled_score_gradient(ids[s : s + 1], given, generator)[0].to(hidden.device)
    work.save_tensors(_gradient(stream.n_blocks), {"gradient": gradient})


def _measure_block(stream: BlockStream, folds: Folds, recipe: Recipe, work: WorkDir, index: int) -> None:
    """Recompute block ``index``, round its weights in every format, score them, and pass the gradient down."""
    hidden = work.load_tensors(_hidden(index))["hidden"]
    gradient = work.load_tensors(_gradient(index + 1))["gradient"]
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
        for name, weight in sorted(weights.items(), key=lambda item: item[1].n_cols):  # the widest when the others are gone
            value = _matrix(linears[name], weight)
            inputs_of = torch.cat([inputs[name] for inputs, _ in captured])
            gradients_of = torch.cat([gradients.pop(name) for _, gradients in captured])
            found, codes = _measure_weight(weight, value, statistics, inputs_of, gradients_of, folds, recipe)
            results.append(found)
            for one in codes:
                for part, tensor in codes_to_tensors(one).items():
                    tensors[f"{name}|{one.format.name}|{part}"] = tensor
    if index > 0:
        work.save_tensors(_gradient(index), {"gradient": gradient})
    work.save_tensors(_codes(index), tensors)
    work.save_json(_results(index), [asdict(result) for result in results])
    work.drop(_gradient(index + 1))
    work.drop(_hidden(index + 1))


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

    def take(self, name: str) -> tuple[Tensor, Tensor]:
        """Sums over tokens of x x^T, plain and weighted, for the input of ``name``; they are kept no longer than needed."""
        owner = self.shared.pop(name)
        plain = self.plain[owner] if owner in self.shared.values() else self.plain.pop(owner)
        return plain, self.weighted.pop(name)


def _measure_weight(
    spec: Weight,
    weight: Tensor,
    statistics: _Statistics,
    inputs: Tensor,
    gradients: Tensor,
    folds: Folds,
    recipe: Recipe,
) -> tuple[Measured, list[Codes]]:
    plain, weighted = statistics.take(spec.name)
    unit = float(weighted.diagonal().mean()) / (2 * weight.shape[0] * len(folds.rounding) * folds.n_tokens)
    feedback = Feedback.of(blend_into(weighted, plain, recipe.plain_share), recipe.damping, reuse=True)
    codes, moment, damping = round_calibrated(weight, feedback, recipe.formats_of(spec)), feedback.moment, feedback.damping
    del feedback  # its factor is as large as a second moment
    stock = [nearest(weight, format) for format in recipe.stock_of(spec)]
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
            format, rounding, float(chosen[i]), float(chosen_error[i]), float(check[i]), float(check_error[i]),
            relative_weight_error(weight, changes[i]), output_errors[i], moments[i],
        )
        for i, (format, rounding) in enumerate(labels)
    )  # fmt: skip
    return Measured(spec.name, damping, candidates), codes
