"""The header of a GGUF file, checked before anything believes it (no torch, no weight read).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md — magic, version, two counts, key-value pairs, tensor
descriptions, padding, tensor data. Every count and length is held against the bytes that are left before memory is asked
for, so a hostile file costs no more than a small multiple of its own size.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from bitwright.errors import BitwrightError, fail

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NESTING = 4  # arrays of arrays; files that models come in have none
DEFAULT_ALIGNMENT = 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LEAST_PAIR, LEAST_TENSOR = 13, 24 + 8  # bytes of the shortest key-value pair and tensor description
FORBIDDEN = "/\\\0"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor that has not been read. ``shape`` is in the order of torch: rows first."""

    name: str
    type: str  # lower case: q4_k, f16, ...
    shape: tuple[int, ...]
    start: int  # absolute offset in the file
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything in the file but the weights. Arrays of numbers are ``array.array``, of strings lists."""

    file: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse and check the header of ``path``. Raises BitwrightError, which names the place, for whatever is not sound."""
    size = path.stat().st_size
    if size < 24:
        raise _unsound(path, "start of the file", f"{size} bytes", "at least the 24 bytes of magic, version and counts")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(path, data).header()


def parts_of(header: GgufHeader) -> int:
    """Of how many files the model is made; 1 where it is not split."""
    count = header.metadata.get("split.count")
    return count if isinstance(count, int) and count > 1 else 1


def require_whole(header: GgufHeader, path: Path) -> None:
    """Raise BitwrightError where ``path`` is a part of a model that was split over several files."""
    if (count := parts_of(header)) > 1:
        raise fail(
            "source/gguf-part",
            path,
            saw=f"one of {count} files over which a model was split",
            wanted="a file that holds the whole model",
            help="llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf",
        )


def _unsound(path: Path, where: str, saw: str, wanted: str) -> BitwrightError:
    return fail("source/gguf", f"{path}: {where}", saw=saw, wanted=wanted, help=f"download {path.name} again")


class _Reader:
    """A cursor over the mapped file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> GgufHeader:
        if self.data[:4] != MAGIC:
            raise self._error("magic", repr(bytes(self.data[:4])), f"a GGUF file begins with {MAGIC!r}")
        self.at = 4
        version = self._number("I", "version")
        if version not in VERSIONS:
            known = "big-endian" if version in (2 << 24, 3 << 24) else str(version)
            raise self._error("version", known, f"version {VERSIONS[0]} or {VERSIONS[1]}, little-endian")
        n_tensors, n_pairs = self._number("Q", "tensor count"), self._number("Q", "pair count")
        self._require(n_tensors * LEAST_TENSOR + n_pairs * LEAST_PAIR, f"{n_tensors} tensors and {n_pairs} pairs")
        metadata: dict[str, Any] = {}
        for number in range(n_pairs):
            key = self._string(f"key {number}")
            if key in metadata:
                raise self._error(key, "the key is there twice", "every key once")
            metadata[key] = self._value(self._number("I", key), key)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment % 8:
            raise self._error("general.alignment", repr(alignment)[:40], "a multiple of 8, at most 1 MiB")
        described = [self._description(number) for number in range(n_tensors)]
        start = -(-self.at // alignment) * alignment
        return GgufHeader(self.path, int(version), metadata, self._placed(described, start, alignment))

    def _description(self, number: int) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of one tensor."""
        name = self._string(f"name of tensor {number}")
        if not name or any(character in name for character in FORBIDDEN):
            raise self._error(f"tensor {number}", repr(name)[:60], "a name without path separators or NUL")
        n_dims = self._number("I", name)
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._error(name, f"{n_dims} dimensions", f"1 to {MAX_DIMS}")
        shape = tuple(int(self._number("Q", name)) for _ in range(n_dims))
        return name, shape[::-1], int(self._number("I", name)), int(self._number("Q", name))

    def _placed(
        self, described: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> dict[str, GgufTensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        sizes = {int(kind): (GGMLQuantizationType(kind).name.lower(), *size) for kind, size in GGML_QUANT_SIZES.items()}
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in described:
            if name in tensors:
                raise self._error(name, "the tensor is there twice", "every tensor once")
            if kind not in sizes:
                raise self._error(name, f"type {kind}", "a type that the gguf package knows")
            type_name, block, block_nbytes = sizes[kind]
            if min(shape) < 1 or shape[-1] % block:
                raise self._error(name, f"shape {list(shape)} in {type_name}", f"rows of whole blocks of {block}")
            nbytes = prod(shape) // block * block_nbytes
            if offset % alignment or start + offset + nbytes > len(self.data):
                saw = f"bytes {offset} to {offset + nbytes} of the data, which has {max(0, len(self.data) - start)}"
                raise self._error(name, saw, f"an offset within the file, a multiple of {alignment}")
            tensors[name] = GgufTensor(name, type_name, shape, start + offset, nbytes)
        for before, after in pairwise(sorted(tensors.values(), key=lambda t: t.start)):
            if before.start + before.nbytes > after.start:
                raise self._error(after.name, f"its bytes overlap those of {before.name}", "every tensor has bytes of its own")
        return tensors

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind], key)
        if kind == STRING:
            return self._string(key)
        if kind != ARRAY or depth >= MAX_NESTING:
            saw = f"value type {kind}" if kind != ARRAY else f"arrays nested more than {MAX_NESTING} deep"
            raise self._error(key, saw, "a type of the GGUF specification")
        item, count = self._number("I", key), self._number("Q", key)
        if item in SCALARS:
            code = SCALARS[item]
            values = array("B" if code == "?" else code)
            values.frombytes(self._bytes(count * struct.calcsize("<" + code), key))
            return values
        self._require(count * (8 if item == STRING else 12), key)
        return [self._value(item, key, depth + 1) for _ in range(count)]

    def _string(self, where: str) -> str:
        raw = self._bytes(self._number("Q", where), where)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(where, f"bytes {raw[:20]!r}", "text in UTF-8") from None

    def _number(self, code: str, where: str) -> Any:
        return struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code), where))[0]

    def _bytes(self, count: int, where: str) -> bytes:
        self._require(count, where)
        self.at += count
        return self.data[self.at - count : self.at]

    def _require(self, count: int, where: str) -> None:
        """Refuse what is longer than the rest of the file, before memory is asked for it."""
        left = len(self.data) - self.at
        if count > left:
            raise self._error(
                where, f"{left} bytes left", f"{count} bytes or more: the file is truncated, or its counts are wrong"
            )

    def _error(self, where: str, saw: str, wanted: str) -> BitwrightError:
        return _unsound(self.path, f"{where[:80]} (byte {self.at})", saw, wanted)
