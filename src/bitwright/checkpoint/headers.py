"""Tensor headers of safetensors files, read and checked without reading a weight (no torch).

Format: https://huggingface.co/docs/safetensors — 8 bytes of header length, a JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from bitwright.errors import BitwrightError, fail
from bitwright.host.texts import UnreadableError, read_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation

PLAIN_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
PACKED_BYTES = {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}  # quantized checkpoints hold them
LONGEST_NAME = 255  # bytes of a file name, on every common file system
MAX_DIMS = 8  # of a tensor
ITEM_BYTES = PLAIN_BYTES | PACKED_BYTES


@dataclass(frozen=True)
class TensorRef:
    """A tensor that has not been read: where its bytes lie and what they mean."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int  # absolute offset in the file
    nbytes: int


def read_headers(directory: Path) -> dict[str, TensorRef]:
    """Every tensor of a checkpoint directory, one file or sharded with an index; where both are there, the one file, as
    transformers loads it.

    Raises BitwrightError when a shard is missing, truncated or malformed, when the index points outside the directory, or
    when index and shards disagree.
    """
    if (directory / SINGLE_NAME).exists():
        return read_header(directory / SINGLE_NAME)
    index = directory / INDEX_NAME
    if not index.exists():
        pickles = sorted(p.name for p in directory.glob("*.bin"))
        saw = f"only pickle files ({pickles[0]} ...), which can run code when read" if pickles else "no such file"
        raise fail(
            "checkpoint/no-weights",
            directory,
            saw=saw,
            wanted=f"a checkpoint directory holds {SINGLE_NAME} or {INDEX_NAME}",
            help="save the model with save_pretrained(..., safe_serialization=True) and name that directory",
        )
    return _read_sharded(directory, index)


def _read_sharded(directory: Path, index: Path) -> dict[str, TensorRef]:
    weight_map = _load_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise fail(
            "checkpoint/index",
            index,
            saw="no weight_map",
            wanted="the index maps tensor names to shards",
            help="download the index file again",
        )
    refs: dict[str, TensorRef] = {}
    for shard in sorted({str(value) for value in weight_map.values()}):
        path = directory / shard
        if Path(shard).name != shard or shard in ("", ".", "..") or len(shard.encode(errors="replace")) > LONGEST_NAME:
            raise fail(
                "checkpoint/index-outside",
                index,
                saw=f"shard {shard[:80]!r}",
                wanted="the index names files of its own directory",
                help="download the checkpoint again, from its author",
            )
        if not path.exists():
            raise fail(
                "checkpoint/missing-shard",
                directory,
                saw=f"{shard} is not there",
                wanted="every shard that the index names is present",
                help=f"download {shard} again",
            )
        for name, ref in read_header(path).items():
            if name in refs:
                raise fail(
                    "checkpoint/duplicate",
                    path,
                    saw=f"{name} is also in {refs[name].file.name}",
                    wanted="a tensor lies in one shard",
                    help="download the checkpoint again",
                )
            refs[name] = ref
    wrong = [n for n, shard in weight_map.items() if n not in refs or refs[n].file.name != shard]
    if wrong:
        raise fail(
            "checkpoint/index",
            index,
            saw=f"{wrong[0]} is not in {weight_map[wrong[0]]} ({len(wrong)} such tensors)",
            wanted="index and shards agree",
            help="download the index and its shards again",
        )
    return refs


def read_header(path: Path) -> dict[str, TensorRef]:
    """The tensors of one safetensors file; every offset is checked against the file's size."""

    def bad(saw: str) -> BitwrightError:
        return fail(
            "checkpoint/malformed",
            path,
            saw=saw,
            wanted="a whole, well-formed safetensors file",
            help=f"download {path.name} again and compare its checksum",
        )

    if not path.is_file():  # a folder, or a pipe that would be read for ever
        raise bad("no plain file")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length_bytes = file.read(8)
        length = int.from_bytes(length_bytes, "little")
        if len(length_bytes) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise bad(f"a header of {length} bytes in a file of {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad(f"the header is not JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise bad("the header is not a JSON object")
    refs = {}
    for name, entry in header.items():
        if name != "__metadata__":
            refs[name] = _ref(path, name, entry, 8 + length, size, bad)
    spans = sorted((ref.start, ref.start + ref.nbytes, ref.name) for ref in refs.values() if ref.nbytes)
    for (_, stop, first), (start, _, second) in pairwise(spans):
        if start < stop:
            raise bad(f"{first} and {second} overlap")
    return refs


def require_plain(refs: dict[str, TensorRef]) -> dict[str, TensorRef]:
    """``refs`` unchanged, or an error that names a tensor whose entries are not values but codes of some quantization."""
    for ref in refs.values():
        if ref.dtype not in PLAIN_BYTES:
            raise _unknown_dtype(ref.file, ref.name, ref.dtype, PLAIN_BYTES)
    return refs


def _unknown_dtype(path: Path, name: str, dtype: object, known: dict[str, int]) -> BitwrightError:
    return fail(
        "checkpoint/unknown-dtype",
        f"{path.name}: {name}",
        saw=f"dtype {dtype!r}",
        wanted=f"weights are stored as {', '.join(sorted(known))}",
        help="start from the 16-bit checkpoint of this model",
    )


def _ref(path: Path, name: str, entry: Any, base: int, size: int, bad: Any) -> TensorRef:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        sound = (
            all(type(d) is int and 0 <= d < 1 << 63 for d in shape)
            and len(shape) <= MAX_DIMS
            and type(begin) is int
            and type(end) is int
        )
    except (TypeError, KeyError, ValueError):
        raise bad(f"{name} has no dtype, shape and data_offsets") from None
    if not sound:
        raise bad(f"{name} has shape {shape[:MAX_DIMS]!r} and offsets {begin!r}, {end!r}"[:300])
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _unknown_dtype(path, name, dtype, ITEM_BYTES)
    nbytes = prod(shape) * ITEM_BYTES[dtype]
    if begin < 0 or end - begin != nbytes or base + end > size:
        raise bad(f"{name} needs bytes {base + begin} to {base + begin + nbytes} of {size}")
    return TensorRef(name, dtype, shape, path, base + begin, nbytes)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except UnreadableError as error:
        raise fail(
            "checkpoint/json", path, saw=str(error), wanted="a JSON object", help=f"download {path.name} again"
        ) from None
