"""GGUF files for llama.cpp, Ollama and LM Studio: one file with weights, settings, tokenizer and chat template.

A weight's records are written as they were rounded; only whole rows change places, for families whose rotary dimensions lie in
another order. Vectors are stored in 32 bit, as llama.cpp's own converter does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import ClassVar

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor

from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.checkpoint.output import beside
from bitwright.checkpoint.tensors import read_bytes
from bitwright.containers.base import Container, Writer, require_same_weights
from bitwright.containers.gguf.families import FAMILIES, Family
from bitwright.containers.gguf.metadata import require_known_rope, rope_tensors, write_config
from bitwright.containers.gguf.recipes import BASES, Matrix, recipe
from bitwright.containers.gguf.tokenizer import vocabulary_of
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import fail
from bitwright.formats.base import SIXTEEN_BIT, Format, Packed
from bitwright.models.source import Source
from bitwright.models.spec import Kind, ModelSpec, Weight
from bitwright.plan import Plan
from bitwright.rounding.base import Rounder
from bitwright.rounding.ggml import GGML
from bitwright.rounding.iq import IQ
from bitwright.runtimes import llama_cpp

ALIGNMENT = 32  # of tensor data in the file
WIDE = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")  # rows of a multiple of 256
NARROW = ("iq4_nl", "q5_0", "q8_0")
NARROW_HEAD = ("iq4_nl", "q8_0")  # every token passes the head, and on processors q5_0 is as slow as q8_0 (docs/LOG.md)
STOCK = "Q4_K_M"
FILE_TYPES = {
    "q2_k": "MOSTLY_Q2_K",
    "q3_k": "MOSTLY_Q3_K_M",
    "q4_k": "MOSTLY_Q4_K_M",
    "q5_k": "MOSTLY_Q5_K_M",
    "16bit": "MOSTLY_BF16",
    "mxfp4": "MOSTLY_MXFP4_MOE",
}


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    nbytes: int


class Gguf(Container):
    """All block and codebook formats of llama.cpp, embedding and output head included."""

    name = "gguf"
    rounders: ClassVar[tuple[Rounder, ...]] = (GGML, IQ)
    stock_name = f"{STOCK}, to nearest"
    suffix = ".gguf"
    runtime = "llama_cpp"
    library = "llama.cpp"
    tags = ("gguf",)
    vocabulary: ClassVar[frozenset[Kind]] = frozenset({Kind.EMBEDDING, Kind.HEAD, Kind.TIED})

    def usage(self, name: str, chat: bool, sees: bool = False) -> str:
        stem = Path(name).stem
        return f"""```
llama-cli -m {name}
llama-server -m {name}
ollama create {stem} -f {stem}.Modelfile && ollama run {stem}
```

In LM Studio: `lms import {name}`."""

    def menu(self, weight: Weight) -> tuple[str, ...]:
        if weight.n_cols % 256 == 0:
            return WIDE
        return NARROW_HEAD if weight.kind in (Kind.HEAD, Kind.TIED) else NARROW

    def stock(self, spec: ModelSpec) -> dict[str, str]:
        return {name: format for name, format in recipe_of(spec, STOCK).items() if format != SIXTEEN_BIT.name}

    def sizes(self, source: Source) -> dict[str, int]:
        kept, weights = self.kept_nbytes(source), source.spec.weights
        sizes = {}
        for name in BASES:
            chosen = recipe_of(source.spec, name)
            sizes[name] = kept + sum(self.nbytes(w, self.formats[chosen[w.name]], source) for w in weights)
        return sizes

    def nbytes(self, weight: Weight, format: Format, source: Source) -> int:
        return _padded(_stored_nbytes(format, (weight.n_rows, weight.n_cols)))

    def kept_nbytes(self, source: Source) -> int:
        entries = _layout(source, dict.fromkeys((w.name for w in source.spec.weights), SIXTEEN_BIT))
        weights = {_name_of(source, w.name) for w in source.spec.weights}
        return _header_nbytes(source) + sum(_padded(e.nbytes) for e in entries if e.name not in weights)

    def require(self, source: Source) -> None:
        if source.spec.architecture not in FAMILIES:
            raise fail(
                "gguf/family",
                source.checkpoint.source,
                saw=source.spec.architecture,
                wanted=f"one of {', '.join(FAMILIES)}",
                help="--container bitsandbytes",
            )
        require_known_rope(source.config)

    def notes(self) -> tuple[str, ...]:
        if llama_cpp.available():
            return ()
        return ("llama.cpp is missing (pip install 'bitwright[gguf]'): the file is measured as transformers decodes it",)

    def writer(self, out: Path, source: Source, plan: Plan) -> GgufFile:
        return GgufFile(out, source, plan, self.formats)

    def read(self, out: Path, weights: Iterable[Weight]) -> dict[str, Packed]:
        header = read_gguf_header(out)
        arch = str(header.metadata["general.architecture"])
        family = next(f for f in FAMILIES.values() if gguf.MODEL_ARCH_NAMES[f.arch] == arch)
        names = _names(family.arch, int(header.metadata[f"{arch}.block_count"]))
        found = {}
        for weight in weights:
            tensor = header.tensors[str(names.get_name(weight.name, try_suffixes=(".weight", ".bias")))]
            if tensor.type not in self.formats:
                continue
            rows = torch.frombuffer(read_bytes(out, tensor.start, tensor.nbytes), dtype=torch.uint8)
            rows = rows.reshape(weight.n_rows, -1)
            heads = _rotated_heads(weight.name, _Heads.of(header.metadata, arch)) if family.pairs_rotated else None
            if heads:
                rows = rotated_as_halves(rows, heads)
            records = rows.reshape(-1, self.formats[tensor.type].record_nbytes)  # type: ignore[attr-defined]
            found[weight.name] = Packed(self.formats[tensor.type], (weight.n_rows, weight.n_cols), {"records": records})
        return found


GGUF = Gguf()


class GgufFile(Writer):
    """One file, header first, its tensors in the order of the model."""

    def __init__(self, out: Path, source: Source, plan: Plan, formats: dict[str, Format]) -> None:
        self.out, self.source = out, source
        choices = require_same_weights(plan, source.spec)
        self.weights = {w.name: w for w in source.spec.weights}
        self.entries = _layout(source, {name: formats[choice.format] for name, choice in choices.items()})
        self._left = list(reversed(self.entries))
        self._writer = _writer(source, self.entries, _file_type(plan))
        _write_header(self._writer, out)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(_parameters(self.source))

    def put(self, parameter: str, value: Tensor | Packed) -> None:
        family, config = _family(self.source.spec), self.source.config
        if isinstance(value, Packed):
            values = value.tensors["records"].reshape(self.weights[parameter].n_rows, -1)
        else:
            values = value.to(self.source.written_dtype(parameter)) if parameter in self.weights else value.float()
            if values.dim() == 1 and parameter.endswith("norm.weight"):
                values = values + family.norm_offset
        if family.pairs_rotated and (heads := _rotated_heads(parameter, config)):
            values = rotated_as_pairs(values, heads)
        self._put(_name_of(self.source, parameter), values)

    def _put(self, name: str, values: Tensor) -> None:
        data = values.contiguous().cpu().view(torch.uint8).reshape(-1).numpy()
        entry = self._left.pop()
        if (name, data.nbytes) != (entry.name, entry.nbytes):
            raise AssertionError(f"{name}: {data.nbytes} bytes, planned {entry.name} with {entry.nbytes}")
        self._writer.write_tensor_data(data)

    def close(self) -> int:
        for name, tensor in rope_tensors(_family(self.source.spec), self.source.config).items():
            self._put(name, tensor)
        if self._left:
            raise AssertionError("not every planned tensor was written")
        self._writer.flush()
        for file in self._writer.fout or []:
            os.fsync(file.fileno())
        self.release()
        beside(self.out, "Modelfile").write_text(f"FROM ./{self.out.name}\n", encoding="utf-8")
        return self.out.stat().st_size

    def release(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class _Heads:
    """What a file says of its heads, by the names that transformers' configurations have."""

    num_attention_heads: int
    num_key_value_heads: int

    @classmethod
    def of(cls, metadata: dict[str, object], arch: str) -> _Heads:
        queries = metadata[f"{arch}.attention.head_count"]
        return cls(int(str(queries)), int(str(metadata.get(f"{arch}.attention.head_count_kv", queries))))


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _stored_nbytes(format: Format, shape: tuple[int, ...]) -> int:
    if format is SIXTEEN_BIT:
        return 2 * prod(shape)
    return prod(shape) // format.record * format.record_nbytes  # type: ignore[attr-defined, no-any-return]


def _type_of(format: Format, source: Source, name: str) -> GGMLQuantizationType:
    if format is not SIXTEEN_BIT:
        return GGMLQuantizationType[format.name.upper()]
    half = source.written_dtype(name) == torch.float16
    return GGMLQuantizationType.F16 if half else GGMLQuantizationType.BF16


def _family(spec: ModelSpec) -> Family:
    return FAMILIES[spec.architecture]


@cache
def _names(arch: gguf.MODEL_ARCH, n_blocks: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(arch, n_blocks)


def gguf_name(spec: ModelSpec, parameter: str) -> str | None:
    """The name of ``parameter`` in a GGUF file; None for a family or parameter without one."""
    if spec.architecture not in FAMILIES:
        return None
    found = _names(_family(spec).arch, spec.text.n_blocks).get_name(parameter, try_suffixes=(".weight", ".bias"))
    return None if found is None else str(found)


def _name_of(source: Source, parameter: str) -> str:
    found = gguf_name(source.spec, parameter)
    if found is None:
        raise fail(
            "gguf/name",
            parameter,
            saw=f"no name for it in {_family(source.spec).arch.name.lower()} files",
            wanted="every parameter has a place in the file",
            help="--container bitsandbytes",
        )
    return found


def recipe_of(spec: ModelSpec, name: str) -> dict[str, str]:
    """Weight -> format under llama.cpp's recipe ``name``."""
    names = {w.name: gguf_name(spec, w.name) or "" for w in spec.weights}
    matrices = [Matrix(names[w.name], w.n_cols) for w in spec.weights if names[w.name]]
    queries = next((w.n_rows for w in spec.weights if w.role == "q_proj"), 1)
    keys = next((w.n_rows for w in spec.weights if w.role == "k_proj"), queries)
    tied = "output.weight" not in names.values()
    chosen = recipe(name, matrices, spec.text.n_blocks, queries // keys, tied)
    return {weight: chosen.get(stored, SIXTEEN_BIT.name) for weight, stored in names.items()}


def _parameters(source: Source) -> list[str]:
    """All stored parameters, embedding first, then by block."""
    kept = [k.name for k in source.spec.kept if k.tied_to is None]
    weights = [w.name for w in source.spec.weights]
    order = {name: i for i, name in enumerate(source.tensor_of)}
    return sorted(kept + weights, key=lambda name: order[name])


def _layout(source: Source, formats: dict[str, Format]) -> list[_Entry]:
    """The tensors of the file in their order."""
    entries = []
    for parameter in _parameters(source):
        shape = source.spec.shape(parameter)
        if parameter in formats:
            format = formats[parameter]
            kind, nbytes = _type_of(format, source, parameter), _stored_nbytes(format, shape)
        else:
            kind, nbytes = GGMLQuantizationType.F32, 4 * prod(shape)
        entries.append(_Entry(_name_of(source, parameter), shape, kind, nbytes))
    for name, tensor in rope_tensors(_family(source.spec), source.config).items():
        entries.append(_Entry(name, tuple(tensor.shape), GGMLQuantizationType.F32, 4 * tensor.numel()))
    return entries


def _rotated_heads(parameter: str, config: object) -> int | None:
    """Number of heads whose rows ``parameter`` holds, if they are rotated."""
    module = parameter.rsplit(".", 1)[0]
    if module.endswith("q_proj"):
        return int(config.num_attention_heads)  # type: ignore[attr-defined]
    if module.endswith("k_proj"):
        return int(config.num_key_value_heads)  # type: ignore[attr-defined]
    return None


def rotated_as_pairs(rows: Tensor, n_heads: int) -> Tensor:
    """``rows`` [N, ...] with the two halves of every head interleaved: row i of the first half, then of the second."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def rotated_as_halves(rows: Tensor, n_heads: int) -> Tensor:
    """The inverse of ``rotated_as_pairs``."""
    pairs = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _file_type(plan: Plan) -> int:
    name = FILE_TYPES.get(plan.default_format, f"MOSTLY_{plan.default_format.upper()}")
    return int(getattr(LlamaFileType, name, LlamaFileType.GUESSED))


def _writer(source: Source, entries: list[_Entry], file_type: int) -> GGUFWriter:
    family, config = _family(source.spec), source.config
    writer = GGUFWriter(path=None, arch=gguf.MODEL_ARCH_NAMES[family.arch])
    directory = source.checkpoint.directory
    vocabulary = vocabulary_of(directory, tokenizer_of(directory), config.vocab_size)
    name = Path(source.checkpoint.config.get("_name_or_path") or directory.name).name
    write_config(writer, family, config, vocabulary.named(name), file_type)
    vocabulary.write(writer)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, raw_dtype=entry.type)
    return writer


def _write_header(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _header_nbytes(source: Source) -> int:
    """Bytes before the first tensor: the header is written for once, with the longest that never changes its length."""
    entries = _layout(source, dict.fromkeys((w.name for w in source.spec.weights), SIXTEEN_BIT))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "header.gguf"
        writer = _writer(source, entries, int(LlamaFileType.GUESSED))
        _write_header(writer, path)
        writer.close()
        return _padded(path.stat().st_size)
