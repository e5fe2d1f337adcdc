"""Two sweeps over a model of which one decoder block is resident: forward keeps boundaries, backward recomputes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import fail
from bitwright.measure.curvature import draw
from bitwright.models.skeleton import Skeleton

VOCAB_CHUNK_ENTRIES = 1 << 24  # logits held at once in the head: 64 MiB in float32


class _Stub(nn.Module):
    """Stands in for a decoder block: notes the arguments it is called with and returns its input, or ``replacement``."""

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.replacement: Tensor | None = None
        for name, value in vars(block).items():  # plain attributes that the model's loop reads, such as attention_type
            if not name.startswith("_") and not isinstance(value, nn.Module | Tensor) and name != "training":
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        self.arguments = (args, kwargs)
        out = hidden_states if self.replacement is None else self.replacement
        return (out,) if self.as_tuple else out


@dataclass(frozen=True)
class BlockCall:
    """The arguments that the model's own forward gives one block, beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


@dataclass(frozen=True)
class HeadState:
    """What the output head saw of one sequence, enough to have its gradient again row by row."""

    states: Tensor  # [T, K], its input
    normalizer: Tensor  # [T], log sum exp of the logits
    label: Tensor  # [T], drawn from them
    energy: Tensor  # [T], squared norm of the gradient at the logits


class BlockStream:
    """Runs a skeleton block by block. Masks, rotary embeddings and attention variants are the library's own:
    the arguments of every block are recorded in a pass in which the blocks return their input."""

    def __init__(self, skeleton: Skeleton, device: torch.device, dtype: torch.dtype) -> None:
        self.skeleton, self.device, self.dtype = skeleton, device, dtype
        self._calls: dict[tuple[int, ...], list[BlockCall]] = {}
        self._returns_tuple: bool | None = None

    def fill_rest(self) -> None:
        """Load what lies outside the blocks: ``embed`` and the head need it."""
        self.skeleton.fill_rest(self.device, self.dtype)

    def release_rest(self) -> None:
        self.skeleton.release_rest()

    @property
    def n_blocks(self) -> int:
        return len(self.skeleton.blocks)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Block ``index`` with its weights resident."""
        prefix = f"{self.skeleton.block_path}.{index}"
        with self.skeleton.filled(prefix, self.device, self.dtype) as module:
            yield module

    @contextmanager
    def _stubs(self, as_tuple: bool) -> Iterator[list[_Stub]]:
        blocks = self.skeleton.blocks
        originals = list(blocks)
        stubs = [_Stub(block, as_tuple) for block in originals]
        for i, stub in enumerate(stubs):
            blocks[i] = stub
        try:
            yield stubs
        finally:
            for i, original in enumerate(originals):
                blocks[i] = original

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states [B, T, D] that enter the first block; records the calls for this shape on the way."""
        if self._returns_tuple is None:
            self._returns_tuple = self._probe(ids[:1])
        with self._stubs(self._returns_tuple) as stubs:
            seen: dict[str, Tensor] = {}
            hook = stubs[0].register_forward_pre_hook(
                lambda _, args, kwargs: seen.update(h=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
            self.skeleton.model.base_model(ids.to(self.device), use_cache=False)
            hook.remove()
            self._calls[tuple(ids.shape)] = [BlockCall(*stub.arguments) for stub in stubs if stub.arguments]
        if len(self._calls[tuple(ids.shape)]) != self.n_blocks:
            raise fail(
                "model/blocks",
                self.skeleton.block_path,
                saw="some blocks are not called in turn",
                wanted="each block is called once",
                help="this architecture is not supported yet",
            )
        return seen["h"]

    def _probe(self, ids: Tensor) -> bool:
        """Whether blocks return a tuple, seen on the first one."""
        with self._stubs(False) as stubs:
            try:
                self.skeleton.model.base_model(ids.to(self.device), use_cache=False)
            except Exception:
                if stubs[0].arguments is None:
                    raise
            args, kwargs = stubs[0].arguments or ((), {})
        hidden = torch.zeros(1, ids.shape[1], self._width(), dtype=self.dtype, device=self.device)
        with self.block(0) as block:
            return isinstance(block(hidden, *args, **kwargs), tuple)

    def _width(self) -> int:
        return int(self.skeleton.model.config.get_text_config().hidden_size)

    def call(self, index: int, shape: torch.Size) -> BlockCall:
        """How block ``index`` is called for hidden states of shape [B, T, D]."""
        return self._calls[tuple(shape[:2])][index]

    def _head(self, ids: Tensor, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of one sequence [1, T] from the states [1, T, D] that leave the last block, in chunks: (start, [t, V])."""
        model = self.skeleton.model
        n_tokens = ids.shape[1]
        chunked = "logits_to_keep" in inspect.signature(model.forward).parameters
        step = max(1, VOCAB_CHUNK_ENTRIES // model.config.get_text_config().vocab_size) if chunked else n_tokens
        with self._stubs(bool(self._returns_tuple)) as stubs:
            stubs[-1].replacement = hidden
            for start in range(0, n_tokens, step):
                keep = torch.arange(start, min(start + step, n_tokens), device=self.device)
                extra = {"logits_to_keep": keep} if chunked else {}
                yield start, model(ids.to(self.device), use_cache=False, **extra).logits[0]

    def sampled_score_gradient(self, ids: Tensor, hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, HeadState]:
        """Gradient [1, T, D] of -sum_t log p(y_t) at the last block's output, y_t drawn from the model itself.

        Its outer product over draws is the Fisher information, not the empirical one that data labels would give.
        """
        leaf = hidden.detach().clone().requires_grad_(True)
        states: list[Tensor] = []
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        head = self.skeleton.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: states.append(args[0].detach().reshape(-1, args[0].shape[-1])))
        with torch.enable_grad():
            for _, logits in self._head(ids, leaf):
                wide = logits.detach().float().requires_grad_(True)
                uniform = torch.rand(len(logits), 1, generator=generator).to(self.device)
                with torch.no_grad():
                    y = draw(wide, uniform)
                loss = nn.functional.cross_entropy(wide, y[:, 0], reduction="none")
                loss.sum().backward()
                assert wide.grad is not None
                with torch.no_grad():
                    normalizer = loss + wide.gather(1, y)[:, 0]
                    parts.append((normalizer, y[:, 0], torch.linalg.vector_norm(wide.grad, dim=1).square()))
                logits.backward(wide.grad.to(logits.dtype))
        hook.remove()
        assert leaf.grad is not None
        normalizer, label, energy = (torch.cat(part) for part in zip(*parts, strict=True))
        return leaf.grad, HeadState(torch.cat(states), normalizer, label, energy)


def backward_through(
    block: nn.Module, call: BlockCall, hidden: Tensor, gradient: Tensor, linears: dict[str, nn.Module]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Recompute ``block`` and pass ``gradient`` back: (gradient at its input, inputs x, output gradients g).

    ``linears`` maps weight names to modules of the block; x and g come by those names as [B, T, K] and [B, T, N].
    Linears that are given the same tensor share one x.
    """
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    hooks = []
    for name, linear in linears.items():

        def note(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            inputs[name] = args[0].detach()
            out.register_hook(lambda g: gradients.__setitem__(name, g.detach()))

        hooks.append(linear.register_forward_hook(note))
    leaf = hidden.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            out = call(block, leaf)
            out.backward(gradient)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in linears if name not in gradients]
    if missing:
        raise fail(
            "model/unused-weight",
            missing[0],
            saw="the block's forward pass does not use it",
            wanted="every weight of a block takes part",
            help="this architecture is not supported yet",
        )
    assert leaf.grad is not None
    return leaf.grad, inputs, gradients
