"""The model's own transformers class without its weights: read for structure, filled block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.models.source import Source
from bitwright.models.spec import BlockId, ModelSpec, Stack

WIDENED_ENTRIES = 1 << 23  # of a head, at once: 32 MiB in float32


@dataclass
class Skeleton:
    """A transformers model whose parameters are on the meta device until ``filled`` puts values there."""

    source: Source
    model: Any  # a transformers model; its attributes differ by class
    _empty: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list, repr=False)
    _filled: dict[int, nn.Parameter] = field(default_factory=dict, repr=False)  # by the empty parameter, so that ties hold
    _hooks: list[Any] = field(default_factory=list, repr=False)

    @property
    def spec(self) -> ModelSpec:
        return self.source.spec

    def stack(self, name: str) -> Stack:
        return next(stack for stack in self.spec.stacks if stack.name == name)

    def path(self, block: BlockId) -> str:
        """Of the block's module in the model."""
        return f"{self.stack(block.stack).path}.{block.index}"

    def module(self, block: BlockId) -> nn.Module:
        found: nn.Module = self.model.get_submodule(self.path(block))
        return found

    @contextmanager
    def filled(self, block: BlockId, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
        """The module of ``block`` with its weights on ``device``; they are released at the end."""
        prefix, module = self.path(block), self.module(block)
        empty: list[tuple[dict[str, Any], str, Any]] = []
        for path, owner in module.named_modules():
            full = ".".join(part for part in (prefix, path) if part)
            self._fill(owner, full, empty, device, dtype, {})
        try:
            yield module
        finally:
            _put_back(empty)

    def fill_rest(self, device: torch.device, dtype: torch.dtype, head: bool = True) -> None:
        """Put values into everything outside the blocks (embeddings, final norm, head) until ``release_rest``.

        Without ``head`` a head of its own stays empty until ``fill_head``: beside an embedding it doubles what is resident. An
        embedding that only looks rows up stays as narrow as the source has it, and widens the rows; so does the head.
        """
        inside = tuple(f"{stack.path}." for stack in self.spec.stacks)
        for path, owner in self.model.named_modules():
            if not f"{path}.".startswith(inside) and (head or owner is not self.model.get_output_embeddings()):
                own = self._lookup_dtype(owner, path, dtype)
                self._fill(owner, path, self._empty, device, own, self._filled)
                if own is not dtype and isinstance(owner, nn.Embedding):
                    self._hooks.append(owner.register_forward_hook(lambda _, args, rows: rows.to(dtype)))
        if head:
            self._widen_head(dtype)
        for owner in self.model.modules():
            for name, buffer in list(owner.named_buffers(recurse=False)):
                owner._buffers[name] = buffer.to(device)

    def fill_head(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put values into the output head, those of the embedding where both are one matrix."""
        head = self.model.get_output_embeddings()
        path = next(path for path, owner in self.model.named_modules() if owner is head)
        self._fill(head, path, self._empty, device, self._lookup_dtype(head, path, dtype), self._filled)
        self._widen_head(dtype)

    def _widen_head(self, dtype: torch.dtype) -> None:
        """Let a head that is held more narrowly than ``dtype`` multiply in that."""
        head = self.model.get_output_embeddings()
        if head is not None and not head.weight.is_meta and head.weight.dtype is not dtype:
            head.forward = partial(wide_linear, head.weight, head.bias)
            self._hooks.append(_Unpatched(head))

    def release_rest(self) -> None:
        """Undo ``fill_rest`` and ``fill_head``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        _put_back(self._empty)
        self._empty.clear()
        self._filled.clear()

    def _lookup_dtype(self, owner: nn.Module, path: str, dtype: torch.dtype) -> torch.dtype:
        """``dtype``, or the narrower type of the source for an embedding that computes nothing, and for a linear that is the
        head: with a large vocabulary they are most of what is resident."""
        head, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        looks_up = type(owner) is nn.Embedding and (owner is embedding or len(self.spec.stacks) == 1)
        multiplies = owner is head and type(owner) is nn.Linear
        if multiplies and owner.weight is embedding.weight:
            multiplies = type(embedding) is nn.Embedding
        if looks_up and head is not None and owner.weight is head.weight:
            looks_up = type(head) is nn.Linear
        if not looks_up and not multiplies:
            return dtype
        stored = self.source.stored_dtype(f"{path}.weight")
        return stored if stored.itemsize < dtype.itemsize else dtype

    def _fill(
        self,
        owner: nn.Module,
        path: str,
        empty: list[tuple[dict[str, Any], str, Any]],
        device: torch.device,
        dtype: torch.dtype,
        values: dict[int, nn.Parameter],
    ) -> None:
        """Fill the parameters and stored buffers of one module, and note in ``empty`` what was there."""
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) not in values:
                value = self._read(f"{path}.{name}" if path else name, device, dtype)
                values[id(parameter)] = nn.Parameter(value, requires_grad=False)
            empty.append((owner._parameters, name, parameter))
            owner._parameters[name] = values[id(parameter)]
        for name, buffer in list(owner.named_buffers(recurse=False)):
            full = f"{path}.{name}" if path else name
            if full in self.source.tensor_of:
                kept = dtype if buffer.is_floating_point() else buffer.dtype
                empty.append((owner._buffers, name, buffer))
                owner._buffers[name] = self._read(full, device, kept)

    def _read(self, parameter: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.source.read(parameter).to(device=device, dtype=dtype)


class _Unpatched:
    """Takes the forward of an instance away again, as a hook is removed."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def remove(self) -> None:
        del self._module.forward


def wide_linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x W^T + b in the type of ``x`` for a weight that is held more narrowly, of which some rows at a time are widened."""
    product: Tensor = _WideProduct.apply(x, weight)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias.to(x.dtype)


class _WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.cat([x @ part.to(x.dtype).t() for part in weight.split(_rows(weight))], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        parts = zip(gradient.split(_rows(weight), -1), weight.split(_rows(weight)), strict=True)
        passed = sum((g @ part.to(g.dtype) for g, part in parts), gradient.new_zeros(()))
        return passed, None


def _rows(weight: Tensor) -> int:
    return max(1, WIDENED_ENTRIES // weight.shape[1])


def _put_back(empty: list[tuple[dict[str, Any], str, Any]]) -> None:
    for table, name, old in reversed(empty):
        table[name] = old
