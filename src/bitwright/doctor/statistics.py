"""What one pass over a checkpoint's weights finds, tensor by tensor, a few rows in memory at a time (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitwright.checkpoint.headers import TensorRef

CHUNK_BYTES = 1 << 24
FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
LEAST_NORMAL = {"F64": 2.0**-1022, "F32": 2.0**-126, "F16": 2.0**-14, "BF16": 2.0**-126}


@dataclass
class Statistics:
    """Of one tensor [N, K]; a vector is one row. Counts are of entries unless they say rows."""

    ref: TensorRef
    n_entries: int = 0
    n_not_finite: int = 0
    first_not_finite: int | None = None  # flat index
    n_subnormal: int = 0
    largest: float = 0.0  # absolute, of the finite entries
    n_zero_rows: int = 0
    n_constant_rows: int = 0  # of one value other than zero
    row_norms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # root mean square, where asked for
    row_hashes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # equal for equal rows, likewise


def measure(ref: TensorRef, rows_too: bool = False) -> Statistics | None:
    """Statistics of a tensor of floating-point numbers; None for any other. ``rows_too``: keep size and hash of every row."""
    if ref.dtype not in FLOATS or not ref.nbytes:
        return None
    found, norms, hashes, at = Statistics(ref), [], [], 0
    for block in _blocks(ref):
        finite = np.isfinite(block)
        if not finite.all():
            if found.first_not_finite is None:
                found.first_not_finite = at + int(np.argmin(finite.reshape(-1)))
            found.n_not_finite += int(block.size - finite.sum())
            block = np.where(finite, block, 0)
        size = np.abs(block)
        found.largest = max(found.largest, float(size.max()))
        found.n_subnormal += int(((size > 0) & (size < LEAST_NORMAL[ref.dtype])).sum())
        constant = (block == block[:, :1]).all(1) & finite.all(1)
        found.n_zero_rows += int((constant & (block[:, 0] == 0)).sum())
        found.n_constant_rows += int((constant & (block[:, 0] != 0)).sum()) if block.shape[1] > 1 else 0
        if rows_too:
            norms.append(np.sqrt(np.square(block, dtype=np.float64).mean(1)))
            hashes.append(np.array([hash(row.tobytes()) for row in block], dtype=np.int64))
        found.n_entries += block.size
        at += block.size
    if rows_too:
        found.row_norms, found.row_hashes = np.concatenate(norms), np.concatenate(hashes)
    return found


def _blocks(ref: TensorRef) -> Iterator[NDArray[np.floating]]:
    """The tensor's rows as float32 (float64 where it is stored so), as many at a time as CHUNK_BYTES allow."""
    kind = FLOATS[ref.dtype]
    n_rows = ref.shape[0] if len(ref.shape) > 1 else 1
    row_nbytes = ref.nbytes // n_rows
    step = max(1, CHUNK_BYTES // row_nbytes)
    with open(ref.file, "rb") as file:
        for start in range(0, n_rows, step):
            count = min(step, n_rows - start)
            file.seek(ref.start + start * row_nbytes)
            raw = np.frombuffer(file.read(count * row_nbytes), dtype=kind).reshape(count, -1)
            if ref.dtype == "BF16":
                yield (raw.astype(np.uint32) << 16).view(np.float32)
            else:
                yield raw.astype(np.float64 if ref.dtype == "F64" else np.float32)


def same_values(one: TensorRef, other: TensorRef) -> bool:
    """Whether two tensors are the same to the last bit, compared a part at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with open(one.file, "rb") as first, open(other.file, "rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        for start in range(0, one.nbytes, CHUNK_BYTES):
            count = min(CHUNK_BYTES, one.nbytes - start)
            if first.read(count) != second.read(count):
                return False
    return True
