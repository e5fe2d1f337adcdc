"""What lies between two blocks, for every batch: computed once, kept in the work directory, found again by a killed run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.samples import IDS, Batch
from bitwright.errors import fail
from bitwright.host.device import Precision
from bitwright.host.progress import Reporter
from bitwright.host.schedule import FORWARD, RECORD
from bitwright.measure import store
from bitwright.measure.overflow import largest_outputs
from bitwright.measure.trace import Outputs, Trace
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import BlockId


@dataclass(frozen=True)
class Boundaries:
    """Hidden states before and behind every block, one tensor for each batch that passes it."""

    trace: Trace
    batches: list[Batch]
    work: WorkDir
    precision: Precision
    reporter: Reporter

    @property
    def skeleton(self) -> Skeleton:
        return self.trace.skeleton

    @property
    def device(self) -> torch.device:
        return self.trace.device

    def forward(self, blocks: Sequence[BlockId], compute: bool) -> None:
        """Record the calls of ``blocks``; with ``compute`` also keep the boundary behind each that is not there yet."""
        hidden: list[Tensor | None] | None = None
        for block in self.reporter.track(blocks, FORWARD if compute else RECORD, len(blocks)):
            if block.index == 0:
                hidden = self.record(block.stack)
            after = BlockId(block.stack, block.index + 1)
            if compute and not self.work.has(store.hidden_piece(after)):
                hidden = self._through(block, self.inputs(block, hidden), after)
            else:
                hidden = None

    def record(self, stack: str) -> list[Tensor | None]:
        """Record how the blocks of ``stack`` are called for every batch; the inputs of its first block, which are kept."""
        bottom = BlockId(stack, 0)
        for i, batch in enumerate(self.batches):  # how its blocks return must be known before they are answered for
            if self.trace.knows(stack):
                break
            given = self.trace.record(stack, batch, self.outputs(i), only_first=True)
            called = next((b for b in self.blocks_of(stack) if self.trace.call(b, batch)), None)
            if given is not None and called is not None:
                with self.skeleton.filled(called, self.device, self.precision.work) as module:
                    self.trace.learn(called, module, batch, self.at_work(given))
        found = [self.aside(self.trace.record(stack, batch, self.outputs(i))) for i, batch in enumerate(self.batches)]
        if stack == self.skeleton.spec.text.name:
            self._require_rows(bottom, found)
        if not self.work.has(store.hidden_piece(bottom)):
            store.save_batches(self.work, store.hidden_piece(bottom), found)
        return found

    def _require_rows(self, bottom: BlockId, found: Sequence[Tensor | None]) -> None:
        """Raise BitwrightError unless the blocks of the text pass one row of states for each token."""
        for batch, states in zip(self.batches, found, strict=True):
            if states is not None and states.shape[:-1] != batch.inputs[IDS].shape:
                raise fail(
                    "model/blocks",
                    self.skeleton.path(bottom),
                    saw=f"states {list(states.shape)} for tokens {list(batch.inputs[IDS].shape)}",
                    wanted="one row of states for each token",
                    help="this class cannot be quantized with calibration yet",
                )

    def blocks_of(self, stack: str) -> list[BlockId]:
        return [block for block in self.skeleton.spec.blocks() if block.stack == stack]

    def outputs(self, i: int) -> Outputs:
        """What blocks returned for the ``i``-th batch, as far as it is known."""
        return lambda at: self.at_work(store.load_batch(self.work, store.hidden_piece(BlockId(at.stack, at.index + 1)), i))

    def inputs(self, block: BlockId, hidden: list[Tensor | None] | None = None) -> list[Tensor | None]:
        """What ``block`` is given for every batch; ``hidden``: what the block before returned, where that is at hand."""
        n = len(self.batches)
        found = store.load_batches(self.work, store.hidden_piece(block), n) if hidden is None else hidden
        fresh = [i for i, batch in enumerate(self.batches) if self.trace.is_fresh(block, batch)]
        if not fresh:
            return found
        if not self.work.has(store.input_piece(block)):
            made = dict.fromkeys(range(n), None) | {
                i: self.aside(self.trace.input_of(block, self.batches[i], self.outputs(i))) for i in fresh
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
            of_tower = block.stack != self.skeleton.spec.text.name
            with largest_outputs(module) if of_tower else nullcontext() as largest:
                for i, batch in enumerate(self.batches):
                    call, given = self.trace.call(block, batch), hidden[i]
                    if call is not None and given is not None:
                        hidden[i] = self.aside(call(module, self.at_work(given)))
        if largest:
            self.work.save_json(store.largest_piece(block), largest)
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

    def at_work(self, boundary: Tensor) -> Tensor:
        """States or gradients between two blocks as they are computed with."""
        return boundary.to(self.device, self.precision.work)

    @overload
    def aside(self, boundary: Tensor) -> Tensor: ...
    @overload
    def aside(self, boundary: None) -> None: ...
    def aside(self, boundary: Tensor | None) -> Tensor | None:
        """The same as they are kept."""
        return None if boundary is None else boundary.to("cpu", self.precision.kept)
