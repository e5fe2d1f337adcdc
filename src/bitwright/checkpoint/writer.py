"""Safetensors directories written tensor by tensor, sharded, and made visible in one step."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bitwright.checkpoint.headers import INDEX_NAME, ITEM_BYTES, SINGLE_NAME
from bitwright.checkpoint.tensors import NAMES
from bitwright.errors import fail

SHARD_BYTES = 5_000_000_000  # as transformers' save_pretrained
MARGIN_BYTES = 64 * 2**20  # kept free on the disk beside what is written


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


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """A scratch directory beside ``out`` that becomes ``out`` when the block ends well, and vanishes when it does not."""
    with _scratch(out) as scratch:
        yield scratch
        _sync(scratch)
        os.rename(scratch, out)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """The path of a scratch file that becomes ``out`` when the block ends well, with what was written beside it."""
    with _scratch(out) as scratch:
        yield scratch / out.name
        _sync(scratch)
        for path in sorted(scratch.iterdir(), key=lambda path: path.name == out.name):  # the file itself at last
            os.replace(path, out.parent / path.name)
        _sync(out.parent)


def atomic_output(out: Path, suffix: str) -> AbstractContextManager[Path]:
    """``atomic_file`` where the container is one file, which has a ``suffix``, else ``atomic_directory``."""
    return atomic_file(out) if suffix else atomic_directory(out)


@contextmanager
def atomic_outputs(outs: Sequence[Path], suffix: str) -> Iterator[list[Path]]:
    """``atomic_output`` of several at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(atomic_output(out, suffix)) for out in outs]


def beside(out: Path, name: str) -> Path:
    """Where the text ``name`` belongs that goes with the model ``out``: inside a directory, else next to the file."""
    return out / name if out.is_dir() else out.with_name(f"{out.stem}.{name}")


def remove(out: Path) -> None:
    """Empty the directory ``out``, or remove the file."""
    if not out.is_dir():
        out.unlink()
        return
    shutil.rmtree(out)
    out.mkdir()


def require_new(out: Path) -> None:
    """Raise unless ``out`` can be created: it does not exist, and the nearest parent that does can be written."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise fail("output/exists", out, saw="already there", wanted="OUT is a new name", help=f"rm -r {out}, or name another")
    parent = next(p for p in out.absolute().parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=parent))  # the only test that also holds for root and for read-only mounts
    except OSError as error:
        raise fail(
            "output/read-only",
            out,
            saw=f"{parent} cannot be written",
            wanted="OUT lies in a directory that can be written",
            help="name an OUT elsewhere",
        ) from error


def require_space(where: Path, nbytes: int, what: str) -> None:
    """Raise unless the disk that holds ``where`` has ``nbytes`` free, and a margin."""
    parent = next(p for p in [where.absolute(), *where.absolute().parents] if p.exists())
    free = shutil.disk_usage(parent).free
    if free < nbytes + MARGIN_BYTES:
        raise fail(
            "output/disk",
            where,
            saw=f"{free / 1e9:.2f} GB free",
            wanted=f"{nbytes / 1e9:.2f} GB free for {what}",
            help="free the disk, or name a directory on another one (--workdir, OUT)",
        )


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


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A new directory beside ``out`` that is gone after the block; what the disk refuses there is said of ``out``."""
    scratch = out.parent / f".{out.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
    except OSError as error:
        raise fail(
            "output/write",
            out,
            saw=error.strerror or str(error),
            wanted="a place that can be written, on a disk with room",
            help="name another OUT, or free the disk and run the same command again: finished blocks are kept",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
