"""Reading one tensor's bytes, and nothing else of the file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitwright.checkpoint.headers import TensorRef
from bitwright.errors import fail

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
CHUNK_ENTRIES = 1 << 22  # looked at together, so that looking takes little memory beside the tensor
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensor(ref: TensorRef) -> Tensor:
    """The tensor's values. Plain reads instead of a memory map: what is resident is what was asked for."""
    if not ref.nbytes:
        return torch.empty(ref.shape, dtype=DTYPES[ref.dtype])
    data = read_bytes(ref.file, ref.start, ref.nbytes, ref.name)
    return torch.frombuffer(data, dtype=DTYPES[ref.dtype]).reshape(ref.shape)


def read_bytes(path: Path, start: int, nbytes: int, name: str = "") -> bytearray:
    """``nbytes`` of the file from ``start`` on; raises BitwrightError, which names the tensor, where it ends before."""
    data = bytearray(nbytes)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        view, done = memoryview(data), 0
        while done < nbytes:
            count = file.readinto(view[done:])
            if not count:
                raise fail(
                    "checkpoint/truncated",
                    f"{path.name}: {name}",
                    saw=f"{done} of {nbytes} bytes",
                    wanted="the whole tensor",
                    help=f"download {path.name} again",
                )
            done += count
    return data


def _all_finite(flat: Tensor) -> bool:
    return all(bool(flat[i : i + CHUNK_ENTRIES].isfinite().all()) for i in range(0, len(flat), CHUNK_ENTRIES))


def require_finite(ref: TensorRef, tensor: Tensor) -> Tensor:
    """``tensor`` unchanged, or an error that names the first entry that is NaN or infinite."""
    if tensor.is_floating_point() and not _all_finite(tensor.reshape(-1)):
        flat = (~torch.isfinite(tensor)).reshape(-1)
        at = int(flat.to(torch.uint8).argmax())
        raise fail(
            "checkpoint/not-finite",
            f"{ref.file.name}: {ref.name}",
            saw=f"{int(flat.sum())} of {flat.numel()} entries are NaN or infinite, the first at flat index {at}",
            wanted="every weight is a finite number",
            help="download the checkpoint again, or ask its author",
        )
    return tensor
