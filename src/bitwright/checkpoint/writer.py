"""Safetensors directories written tensor by tensor, sharded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bitwright.checkpoint.headers import INDEX_NAME, ITEM_BYTES, SINGLE_NAME
from bitwright.checkpoint.tensors import NAMES

SHARD_BYTES = 5_000_000_000  # as transformers' save_pretrained


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that will be written: its header entry."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @classmethod
    def like(cls, name: str, tensor: Tensor) -> TensorPlan:
        return cls(name, NAMES[tensor.dtype], tuple(tensor.shape))


class SafetensorsWriter:
    """A safetensors directory, written tensor by tensor in the order of ``plans``; one tensor is held at a time.

    More than SHARD_BYTES is split into shards with an index.
    """

    def __init__(self, directory: Path, plans: list[TensorPlan]) -> None:
        self.nbytes = sum(plan.nbytes for plan in plans)  # of tensor data
        self._shards = _shards(directory, plans)
        self._open: ShardWriter | None = None

    def put(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, which is called ``name``."""
        if self._open is None or self._open.done:
            self.release()
            self._open = ShardWriter(*self._shards.pop(0))
        self._open.put(name, tensor)

    def close(self) -> None:
        """Put the last bytes on the disk; raises AssertionError when tensors are missing."""
        if self._shards or (self._open and not self._open.done):
            raise AssertionError("not every planned tensor was written")
        self.release()

    def release(self) -> None:
        if self._open:
            self._open.release()
        self._open = None


def _shards(directory: Path, plans: list[TensorPlan]) -> list[tuple[Path, list[TensorPlan]]]:
    """The files of a checkpoint with their tensors; an index is written where there are several."""
    shards: list[list[TensorPlan]] = [[]]
    filled = 0
    for plan in plans:
        if shards[-1] and filled + plan.nbytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(plan)
        filled += plan.nbytes
    names = [SINGLE_NAME]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        index = {
            "metadata": {"total_size": sum(plan.nbytes for plan in plans)},
            "weight_map": {plan.name: name for name, shard in zip(names, shards, strict=True) for plan in shard},
        }
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
    return [(directory / name, shard) for name, shard in zip(names, shards, strict=True)]


class ShardWriter:
    """One safetensors file: the header from ``plans`` at once, then their values one by one."""

    def __init__(self, path: Path, plans: list[TensorPlan]) -> None:
        header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for plan in plans:
            offsets = [offset, offset + plan.nbytes]
            header[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": offsets}
            offset += plan.nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._plans = list(reversed(plans))
        self._file = open(path, "wb")  # noqa: SIM115 - closed by release
        self._file.write(len(raw).to_bytes(8, "little") + raw)

    @property
    def done(self) -> bool:
        return not self._plans

    def put(self, name: str, tensor: Tensor) -> None:
        plan = self._plans.pop()
        if TensorPlan.like(name, tensor) != plan:
            raise AssertionError(f"{name} {tensor.dtype} {tuple(tensor.shape)} does not follow the plan {plan}")
        self._file.write(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)

    def release(self) -> None:
        """Put what was written on the disk and close the file."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
