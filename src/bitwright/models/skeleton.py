"""The model's own transformers class without its weights: read for structure, filled block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.models.source import Source
from bitwright.models.spec import BlockId, ModelSpec, Stack


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
        embedding that only looks rows up stays as narrow as the source has it, and widens the rows.
        """
        inside = tuple(f"{stack.path}." for stack in self.spec.stacks)
        for path, owner in self.model.named_modules():
            if not f"{path}.".startswith(inside) and (head or owner is not self.model.get_output_embeddings()):
                own = self._lookup_dtype(owner, path, dtype)
                self._fill(owner, path, self._empty, device, own, self._filled)
                if own is not dtype:
                    self._hooks.append(owner.register_forward_hook(lambda _, args, rows: rows.to(dtype)))
        for owner in self.model.modules():
            for name, buffer in list(owner.named_buffers(recurse=False)):
                owner._buffers[name] = buffer.to(device)

    def fill_head(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put values into the output head, those of the embedding where both are one matrix."""
        head = self.model.get_output_embeddings()
        path = next(path for path, owner in self.model.named_modules() if owner is head)
        self._fill(head, path, self._empty, device, dtype, self._filled)

    def release_rest(self) -> None:
        """Undo ``fill_rest`` and ``fill_head``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        _put_back(self._empty)
        self._empty.clear()
        self._filled.clear()

    def _lookup_dtype(self, owner: nn.Module, path: str, dtype: torch.dtype) -> torch.dtype:
        """``dtype``, or the narrower type of the source for an embedding that computes nothing and is not the head too."""
        head = self.model.get_output_embeddings()
        plain = type(owner) is nn.Embedding and (owner is self.model.get_input_embeddings() or len(self.spec.stacks) == 1)
        if not plain or (head is not None and owner.weight is head.weight):
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


def _put_back(empty: list[tuple[dict[str, Any], str, Any]]) -> None:
    for table, name, old in reversed(empty):
        table[name] = old
