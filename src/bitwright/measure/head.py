"""The output head: logits from the states behind the last block, and the gradient there of labels drawn from them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.data.draw import drawn_at
from bitwright.data.samples import IDS, Batch, Sample, batches
from bitwright.measure.trace import BlockCall, Trace
from bitwright.models.spec import BlockId

VOCAB_CHUNK_ENTRIES = 1 << 24  # logits held at once: 64 MiB in float32


@dataclass(frozen=True)
class HeadState:
    """What the output head saw of one sample, enough to have its gradient again row by row."""

    states: Tensor  # [T, K], its input
    normalizer: Tensor  # [T], log sum exp of the logits
    label: Tensor  # [T], drawn from them
    energy: Tensor  # [T], squared norm of the gradient at the logits


@dataclass(frozen=True)
class Head:
    """The head of the model whose calls ``trace`` knows; what lies outside the blocks is filled."""

    trace: Trace

    def logits(self, sample: Sample, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits of one sample from the states [1, T, D] that leave the last block, in chunks: (positions [t], [t, V]).

        Only the positions that the sample scores, where the class lets us choose.
        """
        model = self.trace.skeleton.model
        chunked = "logits_to_keep" in inspect.signature(model.forward).parameters
        at = torch.arange(sample.n_tokens) if sample.scored is None or not chunked else sample.scored.nonzero()[:, 0]
        step = max(1, VOCAB_CHUNK_ENTRIES // self.trace.skeleton.source.config.vocab_size) if chunked else sample.n_tokens
        inputs = self._enough_for_head(sample)
        last = self.trace.skeleton.spec.blocks()[-1]
        with self.trace.answered(lambda block, given, _: hidden if block == last else given):
            for keep in at.split(step):
                extra = {"logits_to_keep": keep.to(self.trace.device)} if chunked else {}
                yield keep, model(**inputs, use_cache=False, **extra).logits[0]

    def _enough_for_head(self, sample: Sample) -> dict[str, Tensor]:
        """Inputs with which the last block is called: the tokens alone, unless the class skips it for want of an image."""
        (batch,) = batches([sample], sample.n_tokens)
        last, called = self.trace.skeleton.spec.blocks()[-1], []

        def answer(at: BlockId, hidden: Tensor, call: BlockCall) -> Tensor:
            called.append(at)
            return hidden

        ids = Batch(batch.at, {name: t for name, t in batch.inputs.items() if name == IDS or not sample.media})
        if sample.media:
            with torch.no_grad():
                self.trace.run(answer, ids)
            if last not in called:
                ids = batch
        return {name: tensor.to(self.trace.device) for name, tensor in ids.inputs.items()}

    def sampled_score_gradient(self, sample: Sample, hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, HeadState]:
        """Gradient [1, T, D] of -sum_t log p(y_t) at the last block's output, y_t drawn from the model itself.

        The sum runs over the positions that ``sample`` scores. The gradient's outer product over draws is the Fisher
        information, not the empirical one that data labels would give.
        """
        leaf = hidden.detach().clone().requires_grad_(True)
        states: list[Tensor] = []
        parts: list[tuple[Tensor, LabelGradient]] = []
        head = self.trace.skeleton.model.get_output_embeddings()
        uniform = torch.rand(sample.n_tokens, 1, generator=generator)  # the draws do not depend on what is scored
        hook = head.register_forward_pre_hook(lambda _, args: states.append(args[0].detach().flatten(0, -2)))
        with torch.enable_grad():
            for at, logits in self.logits(sample, leaf):
                drawn = uniform[at].to(self.trace.device)
                with torch.no_grad():
                    found = label_gradient(
                        logits, drawn, None if sample.scored is None else sample.scored[at].to(self.trace.device)
                    )
                parts.append((at, found))
                logits.backward(found.gradient.to(logits.dtype))
                found.gradient = torch.empty(0)  # as large as the logits
        hook.remove()
        assert leaf.grad is not None
        return leaf.grad, _head_state(sample.n_tokens, torch.cat(states), parts)


def _head_state(n_tokens: int, states: Tensor, parts: list[tuple[Tensor, LabelGradient]]) -> HeadState:
    """What the head saw, at all positions: zeros where no logits were asked for."""
    at = torch.cat([where for where, _ in parts]).to(states.device)

    def everywhere(rows: Tensor) -> Tensor:
        return rows.new_zeros(n_tokens, *rows.shape[1:]).index_copy_(0, at, rows)

    numbers = (torch.cat([getattr(found, name) for _, found in parts]) for name in ("normalizer", "label", "energy"))
    return HeadState(everywhere(states), *map(everywhere, numbers))


@dataclass
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
