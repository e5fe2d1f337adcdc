"""How a model calls its blocks, seen on the model itself; and one block at a time forward and backward.

Masks, rotary embeddings and attention variants are the library's own. They may depend on what a sample holds, so the call of a
block is recorded for every batch of samples, never for a shape. Blocks stay where they are: their ``forward`` is replaced on
the instance for the time of a pass, since models collect states by hooks on block instances and would lose them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.data.samples import Batch
from bitwright.data.viewer import agreeing
from bitwright.errors import BitwrightError, fail
from bitwright.measure.traffic import Traffic
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import BlockId
from bitwright.models.taps.base import Tap

POOL = 8  # tensors of one shape among which an equal one is looked for

Outputs = Callable[[BlockId], Tensor]  # what a block returned
Call = Callable[[BlockId, Tensor, "BlockCall"], Tensor]


class _Ended(Exception):  # noqa: N818 - no error: the end of a pass
    """Ends a pass as soon as what was asked for has been seen."""


@dataclass(frozen=True)
class BlockCall:
    """The arguments that the model's own forward gives one block for one batch, beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """What ``block`` makes of ``hidden`` [B, T, D] under this call."""
        return first_of(self.whole(block, hidden))

    def whole(self, block: nn.Module, hidden: Tensor) -> Any:
        """All that ``block`` returns."""
        return block(hidden, *self.args, **self.kwargs)

    def tensors(self) -> dict[str, Tensor]:
        """Those of the named arguments through which a gradient could pass."""
        return {name: t for name, t in self.kwargs.items() if isinstance(t, Tensor) and t.is_floating_point()}

    def with_tensors(self, tensors: dict[str, Tensor]) -> BlockCall:
        """The same call with some of them replaced."""
        return BlockCall(self.args, self.kwargs | tensors)


class Trace:
    """The calls of every block for every batch, recorded stack by stack as the outputs of the stacks before become known."""

    def __init__(self, skeleton: Skeleton, device: torch.device, dtype: torch.dtype) -> None:
        self.skeleton, self.device, self.dtype = skeleton, device, dtype
        self._order = {stack.name: i for i, stack in enumerate(skeleton.spec.stacks)}
        self._calls: dict[tuple[BlockId, tuple[int, ...]], BlockCall] = {}
        self._fresh: set[tuple[BlockId, tuple[int, ...]]] = set()
        self._returns_tuple: dict[str, bool] = {}  # of a stack's blocks
        self._pool: dict[tuple[object, ...], list[Tensor]] = {}

    def call(self, block: BlockId, batch: Batch) -> BlockCall | None:
        """How ``block`` is called for ``batch``; None where it is not."""
        return self._calls.get((block, batch.at))

    def is_fresh(self, block: BlockId, batch: Batch) -> bool:
        """Whether the input of ``block`` is something else than what the block before it returned."""
        return (block, batch.at) in self._fresh

    def calls_any_before(self, stack: str, batch: Batch) -> bool:
        """Whether ``batch`` passes a stack before ``stack``."""
        before = [s for s in self.skeleton.spec.stacks if self._order[s.name] < self._order[stack]]
        return any((BlockId(s.name, i), batch.at) in self._calls for s in before for i in range(s.n_blocks))

    @torch.no_grad()
    def record(self, stack: str, batch: Batch, outputs: Outputs, *, only_first: bool = False) -> Tensor | None:
        """Note how the blocks of ``stack`` are called for ``batch``; returns the input of the first, None where none is called.

        ``outputs``: of the blocks of the stacks before. The blocks of ``stack`` pass on what they are given: calls depend on
        what a sample holds, never on what blocks compute. What lies outside the blocks is filled. ``only_first``: stop there.
        """
        given: list[Tensor] = []
        passed: list[tuple[BlockId, Tensor]] = []

        def answer(at: BlockId, hidden: Tensor, call: BlockCall) -> Tensor:
            if at.stack != stack:
                return self._earlier(at, stack, outputs)
            if passed and at <= passed[-1][0]:
                raise self._unknown(at, "blocks are not called in turn, each once")
            if passed and not _same(hidden, passed[-1][1]):
                self._fresh.add((at, batch.at))
            given.append(hidden)
            self._calls[at, batch.at] = BlockCall(*self._pooled((call.args, call.kwargs)))
            if only_first or at.index == self.skeleton.stack(stack).n_blocks - 1:
                raise _Ended
            passed.append((at, hidden.clone()))
            return passed[-1][1]

        self.run(answer, batch)
        return given[0] if given else None

    @torch.no_grad()
    def input_of(self, block: BlockId, batch: Batch, outputs: Outputs) -> Tensor:
        """The input of ``block``, made by the model of the ``outputs`` of all blocks before it."""
        seen: list[Tensor] = []

        def answer(at: BlockId, hidden: Tensor, call: BlockCall) -> Tensor:
            if at == block:
                seen.append(hidden)
                raise _Ended
            return outputs(at)

        self.run(answer, batch)
        return seen[0]

    def through(self, block: BlockId, batch: Batch, outputs: Outputs, gradient: Tensor) -> Tensor:
        """``gradient`` at the input of ``block`` passed back to what the block before it returned."""
        leaf: list[Tensor] = []
        seen: list[Tensor] = []

        def answer(at: BlockId, hidden: Tensor, call: BlockCall) -> Tensor:
            if at == block:
                seen.append(hidden)
                raise _Ended
            out = outputs(at)
            if at == BlockId(block.stack, block.index - 1):
                leaf.append(out.detach().requires_grad_(True))
                return leaf[0]
            return out

        with torch.enable_grad():
            self.run(answer, batch)
        return torch.autograd.grad(seen[0], leaf[0], gradient)[0]

    @torch.no_grad()
    def differentiable(self, stack: str, batch: Batch, outputs: Outputs) -> dict[BlockId, tuple[str, ...]]:
        """The named arguments of each block of ``stack`` that depend on the stacks before."""
        found: dict[BlockId, tuple[str, ...]] = {}

        def answer(at: BlockId, hidden: Tensor, call: BlockCall) -> Tensor:
            if at.stack != stack:
                return self._earlier(at, stack, outputs).detach().requires_grad_(True)
            found[at] = tuple(name for name, tensor in call.tensors().items() if tensor.requires_grad)
            return hidden.detach()

        with torch.enable_grad():
            self.run(answer, batch)
        return found

    def glue(self, stack: str, batch: Batch, outputs: Outputs, given: Given, taps: Sequence[Tap] = ()) -> dict[BlockId, Tensor]:
        """Pass gradients at what the blocks of ``stack`` are given back to the outputs of the stacks before: theirs, by block.

        ``outputs``: also of those blocks of ``stack`` behind which the model does something. ``taps`` are attached meanwhile.
        """
        leaves: dict[BlockId, Tensor] = {}
        roots: list[tuple[Tensor, Tensor]] = []

        def answer(at: BlockId, hidden: Tensor, call: BlockCall) -> Tensor:
            if at.stack != stack:
                leaves[at] = self._earlier(at, stack, outputs).detach().requires_grad_(True)
                return leaves[at]
            if at in given.inputs and hidden.requires_grad:
                roots.append((hidden, given.inputs[at]))
            for name, gradient in given.arguments.get(at, {}).items():
                roots.append((call.kwargs[name], gradient))
            if at.index == self.skeleton.stack(stack).n_blocks - 1:
                raise _Ended
            after = BlockId(stack, at.index + 1)
            return outputs(at) if self.is_fresh(after, batch) else hidden.detach().clone()

        for tap in taps:
            tap.attach()
        try:
            with torch.enable_grad():
                self.run(answer, batch)
            if not roots or not leaves:
                return {}
            tensors, gradients = zip(*roots, strict=True)
            found = torch.autograd.grad(tensors, list(leaves.values()), gradients, allow_unused=True)
        finally:
            for tap in taps:
                tap.detach()
        return {at: gradient for at, gradient in zip(leaves, found, strict=True) if gradient is not None}

    def learn(self, block: BlockId, module: nn.Module, batch: Batch, hidden: Tensor) -> None:
        """See on one call of ``module``, the filled ``block``, whether blocks of its stack return tuples."""
        call = self.call(block, batch)
        if block.stack not in self._returns_tuple and call is not None:
            with torch.no_grad():
                self.saw(block, call.whole(module, hidden))

    def saw(self, block: BlockId, returned: Any) -> None:
        """A block of this stack has ``returned`` this: its others are answered for in the same way."""
        self._returns_tuple[block.stack] = isinstance(returned, tuple)

    def knows(self, stack: str) -> bool:
        """Whether ``learn`` has seen a block of ``stack``."""
        return stack in self._returns_tuple

    def run(self, answer: Call, batch: Batch) -> None:
        """Run the model's body with ``answer`` in the place of its blocks, until that ends the pass."""
        inputs = {name: t.to(self.device, self.dtype if t.is_floating_point() else None) for name, t in batch.inputs.items()}
        with self.answered(answer), suppress(_Ended), agreeing():
            self.skeleton.model.base_model(**inputs, use_cache=False)

    def _earlier(self, at: BlockId, stack: str, outputs: Outputs) -> Tensor:
        """The output of a block of a stack before ``stack``; where a later one begins, the pass is over."""
        if self._order[at.stack] > self._order[stack]:
            raise _Ended
        return outputs(at)

    def _unknown(self, at: BlockId, saw: str) -> BitwrightError:
        return fail(
            "model/blocks",
            self.skeleton.path(at),
            saw=saw,
            wanted="each block is called once, in turn",
            help="this architecture is not supported yet",
        )

    @contextmanager
    def answered(self, answer: Call) -> Iterator[None]:
        """Every block answers with ``answer(block, hidden, call)`` instead of computing."""
        patched: list[tuple[nn.Module, Any]] = []
        states = _states(self.skeleton.model)

        def patch(block: BlockId, module: nn.Module) -> None:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, call = _split(args, kwargs)
                out = answer(block, hidden, call)
                return (out,) if self._returns_tuple.get(block.stack) else out

            patched.append((module, vars(module).get("forward")))
            module.forward = forward

        for block in self.skeleton.spec.blocks():
            patch(block, self.skeleton.module(block))
        try:
            yield
        finally:
            for module, own in patched:
                del module.forward
                if own is not None:
                    module.forward = own
            for module, name, value in states:
                setattr(module, name, value)

    def _pooled(self, value: Any) -> Any:
        """``value`` with every tensor replaced by an equal one that is kept already: most calls of a text are alike."""
        if isinstance(value, Tensor):
            kept = self._pool.setdefault((value.dtype, value.device, tuple(value.shape)), [])
            found = next((old for old in kept if torch.equal(old, value)), None)
            if found is None:
                found = value.detach()
                kept.append(found)
                del kept[:-POOL]
            return found
        if isinstance(value, tuple | list):
            return type(value)(self._pooled(part) for part in value)
        if isinstance(value, dict):
            return {key: self._pooled(part) for key, part in value.items()}
        return value


@dataclass(frozen=True)
class Given:
    """Gradients at what the blocks of a stack are given: their inputs, and named arguments."""

    inputs: dict[BlockId, Tensor]
    arguments: dict[BlockId, dict[str, Tensor]]


def _states(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """What modules remember of their last pass in plain attributes, such as the positions of images."""
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and (value is None or isinstance(value, Tensor))
    ]


def _same(hidden: Tensor, returned: Tensor) -> bool:
    return hidden.data_ptr() == returned.data_ptr() and hidden.shape == returned.shape


def first_of(out: Any) -> Tensor:
    """The hidden states among what a block returns."""
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    """Hidden states, and the other arguments."""
    if args:
        return args[0], BlockCall(args[1:], kwargs)
    others = dict(kwargs)
    name = "hidden_states" if "hidden_states" in others else "hidden_state"  # Mllama's towers, in transformers before 5.24
    return others.pop(name), BlockCall((), others)


def backward_through(
    block: nn.Module,
    call: BlockCall,
    hidden: Tensor,
    gradient: Tensor,
    taps: Sequence[Tap],
    samples: Tensor,
    arguments: Sequence[str] = (),
) -> tuple[Tensor, dict[str, Tensor], dict[str, Traffic]]:
    """Recompute ``block`` and pass ``gradient`` [B, T, D] back: the gradient at its input, those at its named ``arguments``,
    and every tap's traffic.

    ``samples`` int64 [B]: their numbers in the traffic.
    """
    leaf = hidden.detach().requires_grad_(True)
    others = {name: call.kwargs[name].detach().requires_grad_(True) for name in arguments}
    for tap in taps:
        tap.attach()
    try:
        with torch.enable_grad():
            call.with_tensors(others)(block, leaf).backward(gradient)
    finally:
        for tap in taps:
            tap.detach()
    assert leaf.grad is not None
    passed = {name: tensor.grad for name, tensor in others.items() if tensor.grad is not None}
    return leaf.grad, passed, {tap.weight.name: Traffic(*tap.take(samples)) for tap in taps}
