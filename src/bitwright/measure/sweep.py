"""The two sweeps over a model of which one block is resident: forward keeps boundaries, backward makes jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.folds import Folds
from bitwright.data.samples import Batch, batches
from bitwright.errors import fail
from bitwright.host.device import Precision
from bitwright.host.heap import return_free_pages
from bitwright.host.progress import Reporter
from bitwright.measure import store
from bitwright.measure.curvature import column_scale, token_weights
from bitwright.measure.method import Method
from bitwright.measure.moments import SecondMoment
from bitwright.measure.scores import Moments, WeightJob
from bitwright.measure.subject import Subject
from bitwright.measure.trace import HeadState, Trace, backward_through
from bitwright.measure.traffic import Traffic, narrowed
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import BlockId, Weight
from bitwright.models.taps.linear import LinearTap


@dataclass
class Sweep:
    """One measurement under way. What it has finished lies in ``work``, under a key of everything it depends on."""

    subject: Subject
    folds: Folds
    work: WorkDir
    reporter: Reporter

    @cached_property
    def trace(self) -> Trace:
        return Trace(self.skeleton, self.device)

    @property
    def skeleton(self) -> Skeleton:
        return self.subject.skeleton

    @property
    def method(self) -> Method:
        return self.subject.method

    @property
    def device(self) -> torch.device:
        return self.subject.device

    @property
    def precision(self) -> Precision:
        return self.subject.precision

    @cached_property
    def blocks(self) -> tuple[BlockId, ...]:
        return self.skeleton.spec.blocks()

    @cached_property
    def batches(self) -> list[Batch]:
        """Those of the rounding fold, then those of the scoring folds."""
        size, n_rounding = self.method.batch_tokens, len(self.folds.rounding)
        return batches(self.folds.rounding, size) + batches(self.folds.scoring, size, n_rounding)

    def is_rounding(self, batch: Batch) -> bool:
        return batch.at[0] < len(self.folds.rounding)

    def prepare(self) -> None:
        """Everything that the first unfinished block needs: boundaries, the top gradient, and how blocks are called."""
        done = [i for i, block in enumerate(self.blocks) if self.work.has(store.results_piece(block))]
        left = min(done, default=len(self.blocks))
        if not left:
            return
        self.skeleton.fill_rest(self.device, self.precision.work, head=False)
        fresh = not done and not self.work.has(store.gradient_piece(self.skeleton.spec.after_blocks))
        self._forward(self.blocks[:left], compute=fresh)
        if fresh:
            self.skeleton.fill_head(self.device, self.precision.work)
            self._top_gradient()
        self.skeleton.release_rest()

    def unfinished(self) -> list[BlockId]:
        """Blocks without results, in the order in which the backward sweep meets them."""
        return [block for block in reversed(self.blocks) if not self.work.has(store.results_piece(block))]

    def _forward(self, blocks: tuple[BlockId, ...], compute: bool) -> None:
        """Record the calls of ``blocks``; with ``compute`` also keep the boundary behind each that is not there yet."""
        hidden: list[Tensor] | None = None
        title = "forward" if compute else "record"
        for block in self.reporter.track(blocks, title, len(blocks)):
            if self.work.has(store.hidden_piece(block)):
                hidden = store.load_batches(self.work, store.hidden_piece(block))
            inputs = self._record(block, hidden)
            if hidden is None:
                store.save_batches(self.work, store.hidden_piece(block), inputs)
            after = BlockId(block.stack, block.index + 1)
            if block.index == 0 or (compute and not self.work.has(store.hidden_piece(after))):
                hidden = self._through(block, inputs, after if compute else None)

    def _record(self, block: BlockId, hidden: list[Tensor] | None) -> list[Tensor]:
        """The inputs of ``block`` for every batch: ``hidden``, or for the first block what the model makes of the samples."""
        known: Sequence[Tensor | None] = hidden if hidden is not None and block.index > 0 else [None] * len(self.batches)
        return [
            self._aside(self.trace.record(block, batch, None if part is None else self._at_work(part)))
            for batch, part in zip(self.batches, known, strict=True)
        ]

    def _through(self, block: BlockId, hidden: list[Tensor], after: BlockId | None) -> list[Tensor]:
        """What ``block`` makes of ``hidden``, kept as the boundary ``after``; without one only how it returns is learned."""
        with self.skeleton.filled(block, self.device, self.precision.work) as module, torch.no_grad():
            self.trace.learn(block, module, self.batches[0], self._at_work(hidden[0]))
            if after is None:
                return hidden
            for i, batch in enumerate(self.batches):
                hidden[i] = self._aside(self.trace.call(block, batch)(module, self._at_work(hidden[i])))
        if not all(bool(torch.isfinite(part).all()) for part in hidden):
            raise fail(
                "measure/not-finite",
                self.skeleton.path(block),
                saw="activations overflow to NaN or infinity",
                wanted=f"finite activations in {self.precision.kept}",
                help="measure in 32 bit: --dtype float32",
            )
        store.save_batches(self.work, store.hidden_piece(after), hidden)
        return hidden

    def _at_work(self, boundary: Tensor) -> Tensor:
        """States or gradients between two blocks as they are computed with."""
        return boundary.to(self.device, self.precision.work)

    def _aside(self, boundary: Tensor) -> Tensor:
        """The same as they are kept."""
        return boundary.to("cpu", self.precision.kept)

    def _top_gradient(self) -> None:
        """Gradient of the sampled-label loss at the last block's output, one sample at a time."""
        after = self.skeleton.spec.after_blocks
        hidden = store.load_batches(self.work, store.hidden_piece(after))
        gradient = [torch.empty_like(part) for part in hidden]
        places = {s: (b, i) for b, batch in enumerate(self.batches) for i, s in enumerate(batch.at)}
        seen: list[HeadState] = []
        samples = self.folds.all
        for s in self.reporter.track(range(len(samples)), "sample labels", len(samples)):
            b, i = places[s]
            generator = torch.Generator().manual_seed(self.method.seed * 1_000_003 + s)
            given = self._at_work(hidden[b][i : i + 1])
            found, state = self.trace.sampled_score_gradient(samples[s], given, generator)
            gradient[b][i] = found[0].cpu()
            if self.skeleton.spec.vocabulary:
                seen.append(state)
        if not any(bool(part.any()) for part in gradient):
            raise fail(
                "measure/constant",
                self.skeleton.path(self.blocks[-1]),
                saw="the output does not change with what the blocks compute",
                wanted="a model whose predictions depend on its input",
                help="bitwright doctor MODEL --weights: a norm of zeros, or a head of zeros",
            )
        if seen:
            rows = {name: [getattr(state, name).cpu() for state in seen] for name in vars(seen[0])}
            store.save_rows(self.work, store.HEAD_PIECE, rows)
        store.save_batches(self.work, store.gradient_piece(after), gradient)

    def jobs(self, block: BlockId) -> Iterator[tuple[WeightJob, Tensor]]:
        """The jobs of one block's weights and the mean square [K] of their inputs, the widest last; then the gradient below."""
        after = BlockId(block.stack, block.index + 1)
        hidden = store.load_batches(self.work, store.hidden_piece(block))
        gradient = store.load_batches(self.work, store.gradient_piece(after))
        weights = self.skeleton.spec.weights_at(block)
        with self.skeleton.filled(block, self.device, self.precision.work) as module:
            taps = [LinearTap(weight, self.skeleton.model.get_submodule(weight.module)) for weight in weights]
            moments = _BlockMoments()
            scoring: list[dict[str, Traffic]] = []
            for i, batch in enumerate(self.batches):
                numbers = torch.tensor(batch.at) - (0 if self.is_rounding(batch) else len(self.folds.rounding))
                given, down = self._at_work(hidden[i]), self._at_work(gradient[i])
                call = self.trace.call(block, batch)
                passed, traffic = backward_through(module, call, given, down, taps, numbers)
                gradient[i] = self._aside(passed)
                if self.is_rounding(batch):
                    moments.add(traffic)
                else:
                    scoring.append(narrowed(traffic, self.precision.kept))
            del passed, traffic, given, down
            for weight in sorted(weights, key=lambda weight: weight.n_cols):  # the widest when the others are gone
                yield self._job(weight, moments, [part.pop(weight.name) for part in scoring])
        if block.index > 0 or self.skeleton.spec.vocabulary:
            store.save_batches(self.work, store.gradient_piece(block), gradient)

    def finished(self, block: BlockId) -> None:
        """Drop what only the jobs of ``block`` needed."""
        after = BlockId(block.stack, block.index + 1)
        self.work.drop(store.gradient_piece(after))
        self.work.drop(store.hidden_piece(after))

    @cached_property
    def n_rounding_tokens(self) -> int:
        return sum(sample.n_tokens for sample in self.folds.rounding)

    @cached_property
    def n_scored(self) -> Tensor:
        """Scored tokens of each sample of the scoring folds, int64 [S]."""
        return torch.tensor([sample.n_scored for sample in self.folds.scoring])

    def _job(self, weight: Weight, moments: _BlockMoments, scoring: list[Traffic]) -> tuple[WeightJob, Tensor]:
        module = self.skeleton.model.get_submodule(weight.module)
        value = weight.view.matrix(module.weight.detach().float()).contiguous()
        return_free_pages(value.numel())
        plain, weighted = moments.take(weight.name)
        mean_square = (plain.diagonal() / self.n_rounding_tokens).cpu()
        scale = None
        if weight.name in self.method.importance:
            known = self.method.importance[weight.name].to(plain.device)
            scale = column_scale(known, mean_square.to(plain.device))
            plain, weighted = (moment * scale[:, None] * scale for moment in (plain, weighted))
        job = WeightJob(
            weight.name,
            value,
            Moments(plain, weighted, weight.n_rows, self.n_rounding_tokens),
            Traffic.join(scoring),
            self.n_scored,
            len(self.folds.choosing),
            self.folds.kinds,
            self.method.stock_of(weight),
            self.method.formats[weight.name],
            self.method.rounders,
            self.method.plain_share,
            scale,
        )
        return job, mean_square


class _BlockMoments:
    """Second moments of a block's weights, plain once per distinct input and weighted once per weight."""

    def __init__(self) -> None:
        self.shared: dict[str, str] = {}  # weight -> first weight that is given the same input
        self.plain: dict[str, SecondMoment] = {}
        self.weighted: dict[str, SecondMoment] = {}

    def add(self, traffic: dict[str, Traffic]) -> None:
        first: dict[int, str] = {}
        for name, rows in traffic.items():
            owner = self.shared.setdefault(name, first.setdefault(rows.x.data_ptr(), name))
            if owner == name:
                self._sum(self.plain, name, rows.x).add(rows.x)
            self._sum(self.weighted, name, rows.x).add(rows.x, token_weights(rows.g))

    @staticmethod
    def _sum(sums: dict[str, SecondMoment], name: str, x: Tensor) -> SecondMoment:
        if name not in sums:
            sums[name] = SecondMoment(x.shape[-1], x.device)
        return sums[name]

    def take(self, name: str) -> tuple[Tensor, Tensor]:
        """Sums over tokens of x x^T, plain and weighted, for the input of ``name``; they are kept no longer than needed."""
        owner = self.shared.pop(name)
        plain = self.plain[owner] if owner in self.shared.values() else self.plain.pop(owner)
        return plain.take(), self.weighted.pop(name).take()
