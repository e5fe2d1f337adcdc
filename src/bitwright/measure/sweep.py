"""The sweep over a model of which one block is resident: forward for the boundaries, then backward, which makes the jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from bitwright.host.schedule import LABELS
from bitwright.measure import store
from bitwright.measure.boundaries import Boundaries
from bitwright.measure.collected import BlockMoments, Collected
from bitwright.measure.curvature import column_scale
from bitwright.measure.head import Head, HeadState
from bitwright.measure.method import Method
from bitwright.measure.scores import Moments, WeightJob
from bitwright.measure.subject import Subject
from bitwright.measure.trace import Given, Trace, backward_through
from bitwright.measure.traffic import Traffic
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
        return Trace(self.skeleton, self.device, self.precision.work)

    @cached_property
    def boundaries(self) -> Boundaries:
        return Boundaries(self.trace, self.batches, self.work, self.precision, self.reporter)

    @cached_property
    def _arguments(self) -> dict[str, dict[BlockId, tuple[str, ...]]]:
        """What ``_differentiable`` has found, by stack."""
        return {}

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

    @cached_property
    def units(self) -> tuple[BlockId, ...]:
        """What is measured one after the other, last to first: blocks, and what lies between the stacks."""
        between, text = self.skeleton.spec.between, self.skeleton.spec.text.name
        if between is None:
            return self.blocks
        at = next(i for i, block in enumerate(self.blocks) if block.stack == text)
        return (*self.blocks[:at], between, *self.blocks[at:])

    def prepare(self) -> None:
        """Everything that the first unfinished unit needs: boundaries, the top gradient, and how blocks are called."""
        done = [i for i, unit in enumerate(self.units) if self.work.has(store.results_piece(unit))]
        left = min(done, default=len(self.units))
        if not left:
            return
        self.skeleton.fill_rest(self.device, self.precision.work, head=False)
        fresh = not done and not self.work.has(store.gradient_piece(self.skeleton.spec.after_blocks))
        stacks = {unit.stack for unit in self.units[:left]} | self._to_be_passed_back
        self.boundaries.forward([block for block in self.blocks if block.stack in stacks], compute=fresh)
        if fresh:
            self.skeleton.fill_head(self.device, self.precision.work)
            self._top_gradient()
        self.skeleton.release_rest()

    @property
    def _to_be_passed_back(self) -> set[str]:
        """Stacks whose gradients have not been passed to the stacks before them: how their blocks are called is asked then."""
        spec = self.skeleton.spec
        pieces = {stack.name: store.glue_piece(stack.name) for stack in spec.stacks[1:]}
        if spec.between:
            pieces[spec.text.name] = store.results_piece(spec.between)
        return {name for name, piece in pieces.items() if not self.work.has(piece)}

    def unfinished(self) -> list[BlockId]:
        """Units without results, in the order in which the backward sweep meets them."""
        return [unit for unit in reversed(self.units) if not self.work.has(store.results_piece(unit))]

    def _top_gradient(self) -> None:
        """Gradient of the sampled-label loss at the last block's output, one sample at a time."""
        after = self.skeleton.spec.after_blocks
        hidden = store.load_every(self.work, store.hidden_piece(after), len(self.batches))
        gradient = [torch.empty_like(part) for part in hidden]
        places = {s: (b, i) for b, batch in enumerate(self.batches) for i, s in enumerate(batch.at)}
        seen: list[HeadState] = []
        samples = self.folds.all
        for s in self.reporter.track(range(len(samples)), LABELS, len(samples)):
            b, i = places[s]
            generator = torch.Generator().manual_seed(self.method.seed * 1_000_003 + s)
            given = self.boundaries.at_work(hidden[b][i : i + 1])
            found, state = Head(self.trace).sampled_score_gradient(samples[s], given, generator)
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

    def jobs(self, unit: BlockId) -> Iterator[tuple[WeightJob, Tensor]]:
        """The jobs of one unit's weights and the mean square [K] of their inputs, the widest last; then the gradient below.

        A weight that no sample passes has none.
        """
        if unit == self.skeleton.spec.between:
            yield from self._jobs_between()
            return
        self._descend_to(unit.stack)
        block, hidden = unit, self.boundaries.inputs(unit)
        gradient = self._gradients(block, hidden)
        weights = self.skeleton.spec.weights_at(block)
        found = Collected(self.precision.kept)
        arguments: dict[str, Tensor] = {}
        with self.skeleton.filled(block, self.device, self.precision.work) as module:
            taps = [self._tap(weight) for weight in weights]
            for i, batch in enumerate(self.batches):
                call, state, down = self.trace.call(block, batch), hidden[i], gradient[i]
                if call is None or state is None or down is None:
                    continue
                names = self._differentiable(block.stack, i).get(block, ())
                passed, others, traffic = backward_through(
                    module,
                    call,
                    self.boundaries.at_work(state),
                    self.boundaries.at_work(down),
                    taps,
                    self._numbers(batch),
                    names,
                )
                gradient[i] = self.boundaries.aside(passed)
                arguments |= {f"{i:05d}|{name}": self.boundaries.aside(value) for name, value in others.items()}
                found.add(traffic, self.is_rounding(batch))
            if arguments:
                self.work.save_tensors(store.arguments_piece(block), arguments)
            yield from self._jobs_of(weights, found)
        if block.index > 0 or self.skeleton.spec.vocabulary or len(self.skeleton.spec.stacks) > 1:
            self._keep_gradient(block, gradient)

    def _gradients(self, block: BlockId, hidden: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients at what ``block`` returns: from the block behind it, and from what else the model does with it."""
        n, after = len(self.batches), BlockId(block.stack, block.index + 1)
        total: list[Tensor | None] = [None] * n
        pieces = [store.gradient_piece(after)] + [store.taps_piece(block, stack.name) for stack in self.skeleton.spec.stacks]
        for piece in pieces:
            for i, part in enumerate(store.load_batches(self.work, piece, n) if self.work.has(piece) else ()):
                if part is not None:
                    known = total[i]
                    total[i] = part if known is None else known + part
        return [torch.zeros_like(h) if g is None and h is not None else g for g, h in zip(total, hidden, strict=True)]

    def _keep_gradient(self, block: BlockId, gradient: list[Tensor | None]) -> None:
        """Keep ``gradient`` at the input of ``block``, and where that is made of more than what the block before it returned,
        also the gradient there."""
        fresh = [i for i, batch in enumerate(self.batches) if self.trace.is_fresh(block, batch)]
        if fresh:
            at_input = [part if i in fresh else None for i, part in enumerate(gradient)]
            store.save_batches(self.work, store.input_gradient_piece(block), at_input)
            gradient = list(gradient)
            with self._rest():
                for i in fresh:
                    part = gradient[i]
                    assert part is not None
                    passed = self.trace.through(
                        block, self.batches[i], self.boundaries.outputs(i), self.boundaries.at_work(part)
                    )
                    gradient[i] = self.boundaries.aside(passed)
        store.save_batches(self.work, store.gradient_piece(block), gradient)

    @contextmanager
    def _rest(self) -> Iterator[None]:
        """What lies outside the blocks is filled meanwhile, but for a head of its own."""
        self.skeleton.fill_rest(self.device, self.precision.work, head=False)
        try:
            yield
        finally:
            self.skeleton.release_rest()

    def _differentiable(self, stack: str, i: int) -> dict[BlockId, tuple[str, ...]]:
        """Which named arguments of the blocks of ``stack`` depend on the stacks before, for the ``i``-th batch."""
        batch = self.batches[i]
        if not self.trace.calls_any_before(stack, batch):
            return {}
        if stack not in self._arguments:
            with self._rest():
                self._arguments[stack] = self.trace.differentiable(stack, batch, self.boundaries.outputs(i))
        return self._arguments[stack]

    def _jobs_between(self) -> Iterator[tuple[WeightJob, Tensor]]:
        """The jobs of linears between the stacks; before them the gradients at what the towers returned."""
        between = self.skeleton.spec.between
        assert between is not None
        weights, found = self.skeleton.spec.weights_at(between), Collected(self.precision.kept)
        with self._rest():
            self._glue(self.skeleton.spec.text.name, [self._tap(weight) for weight in weights], found)
            yield from self._jobs_of(weights, found)

    def _descend_to(self, stack: str) -> None:
        """Gradients at what the blocks of ``stack`` returned, from the towers behind it; those from the text are there."""
        stacks = self.skeleton.spec.stacks
        at = next(i for i, other in enumerate(stacks) if other.name == stack)
        for later in reversed(stacks[at + 1 : -1]):
            if not self.work.has(store.glue_piece(later.name)):
                with self._rest():
                    self._glue(later.name, [], Collected(self.precision.kept))
                self.work.save_json(store.glue_piece(later.name), True)

    def _glue(self, stack: str, taps: list[LinearTap], found: Collected) -> None:
        """Pass the gradients at what ``stack`` is given back to the stacks before it, and note the traffic of ``taps``."""
        n, blocks = len(self.batches), self.boundaries.blocks_of(stack)
        inputs = {blocks[0]: store.load_batches(self.work, store.gradient_piece(blocks[0]), n)}
        for block in blocks[1:]:
            if self.work.has(piece := store.input_gradient_piece(block)):
                inputs[block] = store.load_batches(self.work, piece, n)
        of_blocks = {b: self.work.load_tensors(p) for b in blocks if self.work.has(p := store.arguments_piece(b))}
        below: dict[BlockId, list[Tensor | None]] = {}
        for i, batch in enumerate(self.batches):
            if not self.trace.calls_any_before(stack, batch):
                continue
            given = Given(
                {b: self.boundaries.at_work(part) for b, parts in inputs.items() if (part := parts[i]) is not None},
                {b: self._of_batch(tensors, i) for b, tensors in of_blocks.items()},
            )
            for block, gradient in self.trace.glue(stack, batch, self.boundaries.outputs(i), given, taps).items():
                below.setdefault(block, [None] * n)[i] = self.boundaries.aside(gradient)
            traffic = {tap.weight.name: Traffic(*tap.take(self._numbers(batch))) for tap in taps if tap.is_complete}
            found.add(traffic, self.is_rounding(batch))
        for block, gradients in below.items():
            store.save_batches(self.work, store.taps_piece(block, stack), gradients)

    def _of_batch(self, tensors: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        prefix = f"{i:05d}|"
        return {n.removeprefix(prefix): self.boundaries.at_work(t) for n, t in tensors.items() if n.startswith(prefix)}

    def _tap(self, weight: Weight) -> LinearTap:
        return LinearTap(weight, self.skeleton.model.get_submodule(weight.module))

    def _numbers(self, batch: Batch) -> Tensor:
        """Those of its samples in their fold's traffic."""
        return torch.tensor(batch.at) - (0 if self.is_rounding(batch) else len(self.folds.rounding))

    def _jobs_of(self, weights: tuple[Weight, ...], found: Collected) -> Iterator[tuple[WeightJob, Tensor]]:
        for weight in found.complete(weights):
            yield self._job(weight, found.moments, found.scoring.pop(weight.name))

    def finished(self, unit: BlockId) -> None:
        """Drop what only the jobs of ``unit`` needed."""
        after = BlockId(unit.stack, unit.index + 1)
        self.work.drop(store.gradient_piece(after))
        if unit.stack in self._mended:  # what its blocks returned is asked for once more, between the stacks
            return
        self.work.drop(store.hidden_piece(after))

    @cached_property
    def _mended(self) -> set[str]:
        """Stacks in which the model does something between two blocks."""
        return {block.stack for block in self.blocks for batch in self.batches if self.trace.is_fresh(block, batch)}

    @cached_property
    def n_rounding_tokens(self) -> int:
        return sum(sample.n_tokens for sample in self.folds.rounding)

    @cached_property
    def n_scored(self) -> Tensor:
        """Scored tokens of each sample of the scoring folds, int64 [S]."""
        return torch.tensor([sample.n_scored for sample in self.folds.scoring])

    def _job(self, weight: Weight, moments: BlockMoments, scoring: list[Traffic]) -> tuple[WeightJob, Tensor]:
        module = self.skeleton.model.get_submodule(weight.module)
        value = weight.view.matrix(module.weight.detach().float()).contiguous()
        return_free_pages(value.numel())
        n_rows = moments.n_rows[weight.name]
        plain, weighted, outputs = moments.take(weight.name)
        mean_square = (plain.diagonal() / n_rows).cpu()
        scale = None
        if weight.name in self.method.importance:
            known = self.method.importance[weight.name].to(plain.device)
            scale = column_scale(known, mean_square.to(plain.device))
            plain, weighted = (moment * scale[:, None] * scale for moment in (plain, weighted))
        job = WeightJob(
            weight.name,
            value,
            Moments(plain, weighted, outputs, weight.n_rows, n_rows),
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
