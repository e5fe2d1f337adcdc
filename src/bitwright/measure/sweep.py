"""The two sweeps over a model of which one block is resident: forward keeps boundaries, backward makes jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import overload

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
from bitwright.measure.trace import Given, HeadState, Outputs, Trace, backward_through
from bitwright.measure.traffic import Traffic, narrowed
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import BlockId, Weight
from bitwright.models.taps.linear import LinearTap

INPUT = "input"  # in the place of a later stack: gradients at the input of a block that is given more than what one returned


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
        stacks = {unit.stack for unit in self.units[:left]}
        self._forward([block for block in self.blocks if block.stack in stacks], compute=fresh)
        if fresh:
            self.skeleton.fill_head(self.device, self.precision.work)
            self._top_gradient()
        self.skeleton.release_rest()

    def unfinished(self) -> list[BlockId]:
        """Units without results, in the order in which the backward sweep meets them."""
        return [unit for unit in reversed(self.units) if not self.work.has(store.results_piece(unit))]

    def _forward(self, blocks: Sequence[BlockId], compute: bool) -> None:
        """Record the calls of ``blocks``; with ``compute`` also keep the boundary behind each that is not there yet."""
        hidden: list[Tensor | None] | None = None
        for block in self.reporter.track(blocks, "forward" if compute else "record", len(blocks)):
            if block.index == 0:
                hidden = self._record(block.stack)
            after = BlockId(block.stack, block.index + 1)
            if compute and not self.work.has(store.hidden_piece(after)):
                hidden = self._through(block, self._inputs(block, hidden), after)
            else:
                hidden = None

    def _record(self, stack: str) -> list[Tensor | None]:
        """Record how the blocks of ``stack`` are called for every batch; the inputs of its first block, which are kept."""
        bottom = BlockId(stack, 0)
        for i, batch in enumerate(self.batches):  # how its blocks return must be known before they are answered for
            if self.trace.knows(stack):
                break
            given = self.trace.record(stack, batch, self._outputs(i), only_first=True)
            called = next((b for b in self._blocks_of(stack) if self.trace.call(b, batch)), None)
            if given is not None and called is not None:
                with self.skeleton.filled(called, self.device, self.precision.work) as module:
                    self.trace.learn(called, module, batch, self._at_work(given))
        found = [self._aside(self.trace.record(stack, batch, self._outputs(i))) for i, batch in enumerate(self.batches)]
        if not self.work.has(store.hidden_piece(bottom)):
            store.save_batches(self.work, store.hidden_piece(bottom), found)
        return found

    def _blocks_of(self, stack: str) -> list[BlockId]:
        return [block for block in self.blocks if block.stack == stack]

    def _outputs(self, i: int) -> Outputs:
        """What blocks returned for the ``i``-th batch, as far as it is known."""
        return lambda at: self._at_work(store.load_batch(self.work, store.hidden_piece(BlockId(at.stack, at.index + 1)), i))

    def _inputs(self, block: BlockId, hidden: list[Tensor | None] | None = None) -> list[Tensor | None]:
        """What ``block`` is given for every batch; ``hidden``: what the block before returned, where that is at hand."""
        n = len(self.batches)
        found = store.load_batches(self.work, store.hidden_piece(block), n) if hidden is None else hidden
        fresh = [i for i, batch in enumerate(self.batches) if self.trace.is_fresh(block, batch)]
        if not fresh:
            return found
        if not self.work.has(store.input_piece(block)):
            made = dict.fromkeys(range(n), None) | {
                i: self._aside(self.trace.input_of(block, self.batches[i], self._outputs(i))) for i in fresh
            }
            store.save_batches(self.work, store.input_piece(block), list(made.values()))
        own = store.load_batches(self.work, store.input_piece(block), n)
        return [found[i] if own[i] is None else own[i] for i in range(n)]

    def _through(self, block: BlockId, hidden: list[Tensor | None], after: BlockId) -> list[Tensor | None]:
        """What ``block`` makes of ``hidden``, kept as the boundary ``after``; a batch for which it is not called stays."""
        hidden = list(hidden)
        if not any(part is not None for part in hidden):
            store.save_batches(self.work, store.hidden_piece(after), hidden)
            return hidden
        with self.skeleton.filled(block, self.device, self.precision.work) as module, torch.no_grad():
            for i, batch in enumerate(self.batches):
                call, given = self.trace.call(block, batch), hidden[i]
                if call is not None and given is not None:
                    hidden[i] = self._aside(call(module, self._at_work(given)))
        if not all(bool(torch.isfinite(part).all()) for part in hidden if part is not None):
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

    @overload
    def _aside(self, boundary: Tensor) -> Tensor: ...
    @overload
    def _aside(self, boundary: None) -> None: ...
    def _aside(self, boundary: Tensor | None) -> Tensor | None:
        """The same as they are kept."""
        return None if boundary is None else boundary.to("cpu", self.precision.kept)

    def _top_gradient(self) -> None:
        """Gradient of the sampled-label loss at the last block's output, one sample at a time."""
        after = self.skeleton.spec.after_blocks
        hidden = store.load_every(self.work, store.hidden_piece(after), len(self.batches))
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

    def jobs(self, unit: BlockId) -> Iterator[tuple[WeightJob, Tensor]]:
        """The jobs of one unit's weights and the mean square [K] of their inputs, the widest last; then the gradient below.

        A weight that no sample passes has none.
        """
        if unit == self.skeleton.spec.between:
            yield from self._jobs_between()
            return
        self._descend_to(unit.stack)
        block, hidden = unit, self._inputs(unit)
        gradient = self._gradients(block, hidden)
        weights = self.skeleton.spec.weights_at(block)
        found = _Found()
        arguments: dict[str, Tensor] = {}
        with self.skeleton.filled(block, self.device, self.precision.work) as module:
            taps = [self._tap(weight) for weight in weights]
            for i, batch in enumerate(self.batches):
                call, state, down = self.trace.call(block, batch), hidden[i], gradient[i]
                if call is None or state is None or down is None:
                    continue
                names = self._differentiable(block.stack, i).get(block, ())
                passed, others, traffic = backward_through(
                    module, call, self._at_work(state), self._at_work(down), taps, self._numbers(batch), names
                )
                gradient[i] = self._aside(passed)
                arguments |= {f"{i:05d}|{name}": self._aside(value) for name, value in others.items()}
                self._note(found, batch, traffic)
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
                known = total[i]
                total[i] = part if known is None or part is None else known + part
                total[i] = known if part is None else total[i]
        return [torch.zeros_like(h) if g is None and h is not None else g for g, h in zip(total, hidden, strict=True)]

    def _keep_gradient(self, block: BlockId, gradient: list[Tensor | None]) -> None:
        """Keep ``gradient`` at the input of ``block``, and where that is made of more than what the block before it returned,
        also the gradient there."""
        fresh = [i for i, batch in enumerate(self.batches) if self.trace.is_fresh(block, batch)]
        if fresh:
            at_input = [part if i in fresh else None for i, part in enumerate(gradient)]
            store.save_batches(self.work, store.taps_piece(block, INPUT), at_input)
            gradient = list(gradient)
            with self._rest():
                for i in fresh:
                    part = gradient[i]
                    assert part is not None
                    passed = self.trace.through(block, self.batches[i], self._outputs(i), self._at_work(part))
                    gradient[i] = self._aside(passed)
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
                self._arguments[stack] = self.trace.differentiable(stack, batch, self._outputs(i))
        return self._arguments[stack]

    def _jobs_between(self) -> Iterator[tuple[WeightJob, Tensor]]:
        """The jobs of linears between the stacks; before them the gradients at what the towers returned."""
        between = self.skeleton.spec.between
        assert between is not None
        weights, found = self.skeleton.spec.weights_at(between), _Found()
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
                    self._glue(later.name, [], _Found())
                self.work.save_json(store.glue_piece(later.name), True)

    def _glue(self, stack: str, taps: list[LinearTap], found: _Found) -> None:
        """Pass the gradients at what ``stack`` is given back to the stacks before it, and note the traffic of ``taps``."""
        n, blocks = len(self.batches), self._blocks_of(stack)
        inputs = {blocks[0]: store.load_batches(self.work, store.gradient_piece(blocks[0]), n)}
        for block in blocks[1:]:
            if self.work.has(piece := store.taps_piece(block, INPUT)):
                inputs[block] = store.load_batches(self.work, piece, n)
        of_blocks = {b: self.work.load_tensors(p) for b in blocks if self.work.has(p := store.arguments_piece(b))}
        below: dict[BlockId, list[Tensor | None]] = {}
        for i, batch in enumerate(self.batches):
            if not self.trace.calls_any_before(stack, batch):
                continue
            given = Given(
                {b: self._at_work(part) for b, parts in inputs.items() if (part := parts[i]) is not None},
                {b: self._of_batch(tensors, i) for b, tensors in of_blocks.items()},
            )
            for block, gradient in self.trace.glue(stack, batch, self._outputs(i), given, taps).items():
                below.setdefault(block, [None] * n)[i] = self._aside(gradient)
            self._note(found, batch, {t.weight.name: Traffic(*t.take(self._numbers(batch))) for t in taps if t.is_complete})
        for block, gradients in below.items():
            store.save_batches(self.work, store.taps_piece(block, stack), gradients)

    def _of_batch(self, tensors: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        prefix = f"{i:05d}|"
        return {n.removeprefix(prefix): self._at_work(t) for n, t in tensors.items() if n.startswith(prefix)}

    def _tap(self, weight: Weight) -> LinearTap:
        return LinearTap(weight, self.skeleton.model.get_submodule(weight.module))

    def _numbers(self, batch: Batch) -> Tensor:
        """Those of its samples in their fold's traffic."""
        return torch.tensor(batch.at) - (0 if self.is_rounding(batch) else len(self.folds.rounding))

    def _note(self, found: _Found, batch: Batch, traffic: dict[str, Traffic]) -> None:
        """Add the traffic of one batch to the moments, or to what the changes are scored on."""
        if self.is_rounding(batch):
            found.moments.add(traffic)
        else:
            for name, rows in narrowed(traffic, self.precision.kept).items():
                found.scoring.setdefault(name, []).append(rows)

    def _jobs_of(self, weights: Sequence[Weight], found: _Found) -> Iterator[tuple[WeightJob, Tensor]]:
        seen = [weight for weight in weights if weight.name in found.scoring and found.moments.knows(weight.name)]
        for weight in sorted(seen, key=lambda weight: weight.n_cols):  # the widest when the others are gone
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

    def _job(self, weight: Weight, moments: _BlockMoments, scoring: list[Traffic]) -> tuple[WeightJob, Tensor]:
        module = self.skeleton.model.get_submodule(weight.module)
        value = weight.view.matrix(module.weight.detach().float()).contiguous()
        return_free_pages(value.numel())
        n_rows = moments.n_rows[weight.name]
        plain, weighted = moments.take(weight.name)
        mean_square = (plain.diagonal() / n_rows).cpu()
        scale = None
        if weight.name in self.method.importance:
            known = self.method.importance[weight.name].to(plain.device)
            scale = column_scale(known, mean_square.to(plain.device))
            plain, weighted = (moment * scale[:, None] * scale for moment in (plain, weighted))
        job = WeightJob(
            weight.name,
            value,
            Moments(plain, weighted, weight.n_rows, n_rows),
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


class _Found:
    """What has been seen of the weights of one unit."""

    def __init__(self) -> None:
        self.moments = _BlockMoments()  # over the rounding fold
        self.scoring: dict[str, list[Traffic]] = {}


class _BlockMoments:
    """Second moments of a block's weights, plain once per distinct input and weighted once per weight."""

    def __init__(self) -> None:
        self.shared: dict[str, str] = {}  # weight -> first weight that is given the same input
        self.plain: dict[str, SecondMoment] = {}
        self.weighted: dict[str, SecondMoment] = {}
        self.n_rows: dict[str, int] = {}  # that were added

    def knows(self, name: str) -> bool:
        return name in self.weighted

    def add(self, traffic: dict[str, Traffic]) -> None:
        first: dict[int, str] = {}
        for name, rows in traffic.items():
            owner = self.shared.setdefault(name, first.setdefault(rows.x.data_ptr(), name))
            if owner == name:
                self._sum(self.plain, name, rows.x).add(rows.x)
            self._sum(self.weighted, name, rows.x).add(rows.x, token_weights(rows.g))
            self.n_rows[name] = self.n_rows.get(name, 0) + len(rows.x)

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
