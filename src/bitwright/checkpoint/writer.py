"""Safetensors directories written tensor by tensor, sharded, and made visible in one step."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bitwright.checkpoint.headers import INDEX_NAME, ITEM_BYTES, SINGLE_NAME
from bitwright.checkpoint.tensors import NAMES
from bitwright.errors import fail

SHARD_BYTES = 5_000_000_000  # as transformers' save_pretrained
FILE_SUFFIXES = (".gguf",)  # of checkpoints that are one file
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


def atomic_output(out: Path) -> AbstractContextManager[Path]:
    """``atomic_file`` for a name with a suffix of one, else ``atomic_directory``."""
    return atomic_file(out) if out.suffix in FILE_SUFFIXES else atomic_directory(out)


def beside(out: Path, name: str) -> Path:
    """Where the text ``name`` belongs that goes with the model ``out``: inside a directory, else next to the file."""
    return out.with_name(f"{out.stem}.{name}") if out.suffix in FILE_SUFFIXES else out / name


def remove(out: Path) -> None:
    """Empty the directory ``out``, or remove the file."""
    if out.suffix in FILE_SUFFIXES:
        out.unlink()
        return
    shutil.rmtree(out)
    out.mkdir()


def require_suffix(out: Path, suffix: str) -> None:
    """Raise unless the name of ``out`` ends as the container asks: ``suffix``, or for a directory none of a file."""
    if suffix != (out.suffix if out.suffix in FILE_SUFFIXES else ""):
        raise fail(
            "output/suffix",
            out,
            saw=f"a name that ends in {out.suffix!r}" if out.suffix else "a name without a suffix",
            wanted=f"OUT ends in {suffix}" if suffix else "OUT is a directory",
            help=f"bitwright quantize SOURCE {out.with_suffix(suffix)}" + ("" if suffix else ", or --container gguf"),
        )


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


def write_safetensors(directory: Path, plans: list[TensorPlan], tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Write ``tensors`` (name, values) in the order of ``plans``; returns the bytes of tensor data.

    More than SHARD_BYTES is split into shards with an index. Only one tensor is held at a time.
    """
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
    stream = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        write_shard(directory / name, shard, stream.__next__)
    return sum(plan.nbytes for plan in plans)


def write_shard(path: Path, plans: list[TensorPlan], following: Callable[[], tuple[str, Tensor]]) -> None:
    """One safetensors file: the header from ``plans``, then the values that ``following`` yields one by one."""
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        header[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [offset, offset + plan.nbytes]}
        offset += plan.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for plan in plans:
            name, tensor = following()
            if TensorPlan.like(name, tensor) != plan:
                raise AssertionError(f"{name} {tensor.dtype} {tuple(tensor.shape)} does not follow the plan {plan}")
            file.write(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


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
