"""How a model calls its blocks, seen on the model itself; and one block at a time forward and backward.

Masks, rotary embeddings and attention variants are the library's own. They may depend on what a sample holds, so the call of a
block is recorded for every batch of samples, never for a shape. Blocks stay where they are: their ``forward`` is replaced on
the instance for the time of a pass, since models collect states by hooks on block instances and would lose them otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.data.draw import drawn_at
from bitwright.data.samples import Batch, Sample
from bitwright.errors import BitwrightError, fail
from bitwright.measure.traffic import Traffic
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import BlockId
from bitwright.models.taps.base import Tap

VOCAB_CHUNK_ENTRIES = 1 << 24  # logits held at once in the head: 64 MiB in float32
POOL = 8  # tensors of one shape among which an equal one is looked for

Call = Callable[[BlockId, Tensor, "BlockCall"], Tensor]


class _Recorded(Exception):  # noqa: N818 - no error: the end of a pass
    """Ends a pass as soon as the call that was asked for has been seen."""


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


@dataclass(frozen=True)
class HeadState:
    """What the output head saw of one sample, enough to have its gradient again row by row."""

    states: Tensor  # [T, K], its input
    normalizer: Tensor  # [T], log sum exp of the logits
    label: Tensor  # [T], drawn from them
    energy: Tensor  # [T], squared norm of the gradient at the logits


class Trace:
    """The calls of every block for every batch, recorded layer by layer as the boundaries become known."""

    def __init__(self, skeleton: Skeleton, device: torch.device) -> None:
        self.skeleton, self.device = skeleton, device
        self._calls: dict[tuple[BlockId, tuple[int, ...]], BlockCall] = {}
        self._returns_tuple: dict[str, bool] = {}  # of a stack's blocks
        self._pool: dict[tuple[object, ...], list[Tensor]] = {}

    def call(self, block: BlockId, batch: Batch) -> BlockCall:
        """How ``block`` is called for ``batch``; it has been recorded before."""
        return self._calls[block, batch.at]

    @torch.no_grad()
    def record(self, block: BlockId, batch: Batch, given: Tensor | None) -> Tensor:
        """Note how ``block`` is called for ``batch``; returns its input [B, T, D].

        ``given``: that input where it is known, as what the block before returned. What lies outside the blocks is filled.
        """
        before = iter([at for at in self.skeleton.spec.blocks() if at.stack == block.stack and at.index < block.index])
        seen: list[Tensor] = []

        def answer(at: BlockId, hidden: Tensor, call: BlockCall) -> Tensor:
            if at == block and next(before, None) is None:
                if given is not None and hidden.data_ptr() != given.data_ptr():
                    raise self._unknown(at, "its input is not what the block before returned")
                seen.append(hidden)
                self._calls[block, batch.at] = BlockCall(*self._pooled((call.args, call.kwargs)))
                raise _Recorded
            if at != next(before, None):
                raise self._unknown(at, "blocks are not called in turn")
            return given if given is not None and at.index == block.index - 1 else hidden

        with self._answered(answer):
            try:
                self._body(batch.inputs)
            except _Recorded:
                return seen[0]
        raise self._unknown(block, "it is not called")

    def learn(self, block: BlockId, module: nn.Module, batch: Batch, hidden: Tensor) -> None:
        """See on one call of ``module``, the filled ``block``, whether blocks of its stack return tuples."""
        if block.stack not in self._returns_tuple:
            with torch.no_grad():
                out = self.call(block, batch).whole(module, hidden)
            self._returns_tuple[block.stack] = isinstance(out, tuple)

    def _body(self, inputs: dict[str, Tensor]) -> None:
        self.skeleton.model.base_model(**{name: t.to(self.device) for name, t in inputs.items()}, use_cache=False)

    def _unknown(self, at: BlockId, saw: str) -> BitwrightError:
        return fail(
            "model/blocks",
            self.skeleton.path(at),
            saw=saw,
            wanted="each block is called once, on what the one before it returns",
            help="this architecture is not supported yet",
        )

    @contextmanager
    def _answered(self, answer: Call) -> Iterator[None]:
        """Every block answers with ``answer(block, hidden, call)`` instead of computing."""
        patched: list[tuple[nn.Module, Any]] = []

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

    def logits(self, sample: Sample, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of one sample from the states [1, T, D] that leave the last block, in chunks: (start, [t, V])."""
        model, n_tokens = self.skeleton.model, sample.n_tokens
        inputs = {name: tensor[None].to(self.device) for name, tensor in sample.inputs.items()}
        chunked = "logits_to_keep" in inspect.signature(model.forward).parameters
        step = max(1, VOCAB_CHUNK_ENTRIES // self.skeleton.source.config.vocab_size) if chunked else n_tokens
        last = self.skeleton.spec.blocks()[-1]
        with self._answered(lambda at, given, _: hidden if at == last else given):
            for start in range(0, n_tokens, step):
                keep = torch.arange(start, min(start + step, n_tokens), device=self.device)
                extra = {"logits_to_keep": keep} if chunked else {}
                yield start, model(**inputs, use_cache=False, **extra).logits[0]

    def sampled_score_gradient(self, sample: Sample, hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, HeadState]:
        """Gradient [1, T, D] of -sum_t log p(y_t) at the last block's output, y_t drawn from the model itself.

        The sum runs over the positions that ``sample`` scores. The gradient's outer product over draws is the Fisher
        information, not the empirical one that data labels would give.
        """
        leaf = hidden.detach().clone().requires_grad_(True)
        states: list[Tensor] = []
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        head = self.skeleton.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: states.append(args[0].detach().flatten(0, -2)))
        with torch.enable_grad():
            for start, logits in self.logits(sample, leaf):
                uniform = torch.rand(len(logits), 1, generator=generator).to(self.device)
                with torch.no_grad():
                    found = label_gradient(logits, uniform, self._scored(sample, start, len(logits)))
                parts.append((found.normalizer, found.label, found.energy))
                logits.backward(found.gradient.to(logits.dtype))
        hook.remove()
        assert leaf.grad is not None
        normalizer, label, energy = (torch.cat(part) for part in zip(*parts, strict=True))
        return leaf.grad, HeadState(torch.cat(states), normalizer, label, energy)

    def _scored(self, sample: Sample, start: int, count: int) -> Tensor | None:
        return None if sample.scored is None else sample.scored[start : start + count].to(self.device)


@dataclass(frozen=True)
class LabelGradient:
    """The gradient of -log p(y) at the logits, y drawn from p."""

    gradient: Tensor  # float32 [T, V]
    label: Tensor  # int64 [T], y
    normalizer: Tensor  # [T], log sum exp of the logits
    energy: Tensor  # [T], squared norm of the gradient


def label_gradient(logits: Tensor, uniform: Tensor, scored: Tensor | None) -> LabelGradient:
    """p - onehot(y) for every row of ``logits`` [T, V], y drawn at ``uniform`` [T, 1]; zero where ``scored`` [T] is false.

    Written out, since autograd would go over the vocabulary three times as often.
    """
    top = logits.float().amax(1, keepdim=True)
    mass = (logits.float() - top).exp_()
    label = drawn_at(mass, uniform)
    total = mass.sum(1, keepdim=True, dtype=torch.float64).float()
    gradient = mass.div_(total)
    gradient.scatter_add_(1, label, gradient.new_full((len(gradient), 1), -1.0))
    if scored is not None:
        gradient *= scored[:, None]
    energy = torch.linalg.vector_norm(gradient, dim=1).square()
    return LabelGradient(gradient, label[:, 0], (top + total.log())[:, 0], energy)


def first_of(out: Any) -> Tensor:
    """The hidden states among what a block returns."""
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    """Hidden states, and the other arguments."""
    if args:
        return args[0], BlockCall(args[1:], kwargs)
    others = dict(kwargs)
    return others.pop("hidden_states"), BlockCall((), others)


def backward_through(
    block: nn.Module, call: BlockCall, hidden: Tensor, gradient: Tensor, taps: Sequence[Tap], samples: Tensor
) -> tuple[Tensor, dict[str, Traffic]]:
    """Recompute ``block`` and pass ``gradient`` [B, T, D] back: the gradient at its input, and every tap's traffic.

    ``samples`` int64 [B]: their numbers in the traffic.
    """
    leaf = hidden.detach().requires_grad_(True)
    for tap in taps:
        tap.attach()
    try:
        with torch.enable_grad():
            call(block, leaf).backward(gradient)
    finally:
        for tap in taps:
            tap.detach()
    assert leaf.grad is not None
    return leaf.grad, {tap.weight.name: Traffic(*tap.take(samples)) for tap in taps}
