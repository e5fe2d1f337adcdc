"""llama.cpp's importance matrix: mean squared inputs of every linear, read in both of its file formats and written as GGUF.

Source: tools/imatrix of llama.cpp. GGUF: two tensors a linear, ``NAME.in_sum2`` (sums of squares) and ``NAME.counts`` (rows
seen). The older binary format: count of entries; for each a name, calls, count of values, and values = mean square * calls.
"""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.containers.gguf.layout import gguf_name
from bitwright.errors import BitwrightError, fail
from bitwright.models.source import Source

SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path, source: Source) -> dict[str, Tensor]:
    """Weight -> mean squared inputs float32 [K]; weights that the file leaves out are absent.

    Raises BitwrightError for a file that is not an importance matrix or belongs to another model.
    """
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        means = _read_gguf(path) if is_gguf else _read_binary(path.read_bytes())
    except BitwrightError:
        raise
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    found = {}
    for weight in source.spec.weights:
        mean = means.get(gguf_name(source.spec, weight.name) or "")
        if mean is None:
            continue
        if len(mean) != weight.n_cols or not np.isfinite(mean).all() or (mean < 0).any():
            raise _broken(
                path, f"{len(mean)} values for {weight.name} of {weight.n_cols} columns, or some below 0 or not finite"
            )
        found[weight.name] = torch.from_numpy(mean.astype(np.float32))
    if not found:
        raise _broken(path, "no entry for any weight of this model")
    return found


def write_imatrix(path: Path, source: Source, means: dict[str, Tensor], n_tokens: int, n_length: int, text: str) -> None:
    """Write mean squared inputs over ``n_tokens`` tokens in sequences of ``n_length``, taken from ``text``."""
    writer = gguf.GGUFWriter(path=None, arch="")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [text])
    writer.add_uint32("imatrix.chunk_count", max(1, n_tokens // n_length))
    writer.add_uint32("imatrix.chunk_size", n_length)
    for name, mean in means.items():
        stored = gguf_name(source.spec, name)
        if stored:
            writer.add_tensor(stored + SUMS, (mean.double() * n_tokens).float().numpy()[None])
            writer.add_tensor(stored + COUNTS, np.full((1, 1), n_tokens, dtype=np.float32))
    scratch = path.with_name(f".{path.name}.partial")
    writer.write_header_to_file(scratch)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scratch.replace(path)


def _read_gguf(path: Path) -> dict[str, np.ndarray]:
    read_gguf_header(path)
    tensors = {t.name: np.array(t.data, dtype=np.float64) for t in gguf.GGUFReader(path).tensors}
    means = {}
    for name, sums in tensors.items():
        if name.endswith(SUMS):
            count = tensors[name.removesuffix(SUMS) + COUNTS].reshape(-1)[0]
            means[name.removesuffix(SUMS)] = sums.reshape(-1) / max(count, 1.0)
    return means


def _read_binary(data: bytes) -> dict[str, np.ndarray]:
    at, means = 4, {}
    (n_entries,) = struct.unpack_from("<i", data, 0)
    for _ in range(n_entries):
        (length,) = struct.unpack_from("<i", data, at)
        name = data[at + 4 : at + 4 + length].decode()
        calls, n_values = struct.unpack_from("<ii", data, at + 4 + length)
        start = at + 12 + length
        if length < 0 or n_values < 0 or start + 4 * n_values > len(data):
            raise ValueError("an entry reaches beyond the end of the file")
        means[name] = np.frombuffer(data, "<f4", n_values, start).astype(np.float64) / max(calls, 1)
        at = start + 4 * n_values
    return means


def _broken(path: Path, saw: str) -> BitwrightError:
    return fail(
        "imatrix/file",
        path,
        saw=saw,
        wanted="an importance matrix that llama.cpp made from this model",
        help="llama-imatrix -m MODEL.gguf -f TEXT, or leave --imatrix out",
    )
