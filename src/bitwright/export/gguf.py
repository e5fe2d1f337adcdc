"""GGUF files for llama.cpp, Ollama and LM Studio: one file with weights, settings, tokenizer and chat template.

A weight's records are written as they were rounded; only whole rows change places, for families whose rotary dimensions lie in
another order. Vectors are stored in 32 bit, as llama.cpp's own converter does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor

from bitwright.checkpoint.writer import beside
from bitwright.errors import fail
from bitwright.export.container import CodesOf, Container
from bitwright.export.gguf_families import FAMILIES, Family
from bitwright.export.gguf_metadata import require_known_rope, rope_tensors, write_config
from bitwright.export.gguf_recipes import BASES, Matrix, recipe
from bitwright.export.gguf_tokenizer import vocabulary_of
from bitwright.formats.codebook import CODEBOOK_FORMATS, CodebookFormat
from bitwright.formats.codes import Codes
from bitwright.formats.format import FORMATS, Format
from bitwright.formats.ggml import GGML_FORMATS, GgmlFormat
from bitwright.formats.pack import records_of
from bitwright.measure.prepare import tokenizer_of
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import HEAD, TIED, ModelSpec, Weight
from bitwright.plan import Plan

RECORDS = (GgmlFormat, CodebookFormat)  # formats that are stored as records
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
    name = "gguf"
    formats = ("16bit", *GGML_FORMATS, *CODEBOOK_FORMATS)
    stock_name = f"{STOCK}, to nearest"
    suffix = ".gguf"
    stores_vocabulary = True

    def menu(self, weight: Weight) -> tuple[str, ...]:
        if weight.n_cols % 256 == 0:
            return WIDE
        return NARROW_HEAD if weight.kind in (HEAD, TIED) else NARROW

    def stock(self, spec: ModelSpec) -> dict[str, str]:
        return {name: format for name, format in recipe_of(spec, STOCK).items() if format != "16bit"}

    def sizes(self, skeleton: Skeleton) -> dict[str, int]:
        kept, weights = self.kept_nbytes(skeleton), skeleton.spec.weights
        sizes = {}
        for name in BASES:
            chosen = recipe_of(skeleton.spec, name)
            sizes[name] = kept + sum(self.nbytes(FORMATS[chosen[w.name]], w.n_rows, w.n_cols) for w in weights)
        return sizes

    def nbytes(self, format: Format, n_rows: int, n_cols: int) -> int:
        return _padded(_stored_nbytes(format, (n_rows, n_cols)))

    def kept_nbytes(self, skeleton: Skeleton) -> int:
        entries = _layout(skeleton, dict.fromkeys((w.name for w in skeleton.spec.weights), "16bit"))
        weights = {_name_of(skeleton, w.name) for w in skeleton.spec.weights}
        return _header_nbytes(skeleton) + sum(_padded(e.nbytes) for e in entries if e.name not in weights)

    def unavailable(self, format: Format, n_rows: int, n_cols: int) -> str | None:
        return format.unavailable(n_cols) if isinstance(format, RECORDS) else None

    def require(self, skeleton: Skeleton) -> None:
        if skeleton.spec.architecture not in FAMILIES:
            raise fail(
                "gguf/family",
                skeleton.checkpoint.source,
                saw=skeleton.spec.architecture,
                wanted=f"one of {', '.join(FAMILIES)}",
                help="--container bitsandbytes",
            )
        require_known_rope(skeleton.model.config.get_text_config())

    def write(self, out: Path, skeleton: Skeleton, plan: Plan, codes_of: CodesOf) -> int:
        formats = {choice.weight: choice.format for choice in plan.choices}
        roundings = {choice.weight: choice.rounding for choice in plan.choices}
        weights = {w.name: w for w in skeleton.spec.weights}
        entries = _layout(skeleton, formats)
        writer = _writer(skeleton, entries, _file_type(plan))
        _write_header(writer, out)
        values_of = _values(skeleton, weights, formats, roundings, codes_of)
        for entry, (name, values) in zip(entries, values_of, strict=True):
            data = values.contiguous().cpu().view(torch.uint8).reshape(-1).numpy()
            if (name, data.nbytes) != (entry.name, entry.nbytes):
                raise AssertionError(f"{name}: {data.nbytes} bytes, planned {entry.name} with {entry.nbytes}")
            writer.write_tensor_data(data)
        writer.flush()
        for file in writer.fout or []:
            os.fsync(file.fileno())
        writer.close()
        beside(out, "Modelfile").write_text(f"FROM ./{out.name}\n", encoding="utf-8")
        return out.stat().st_size


GGUF = Gguf()


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _stored_nbytes(format: Format, shape: tuple[int, ...]) -> int:
    if isinstance(format, RECORDS):
        return prod(shape) // format.record * format.record_nbytes
    return 2 * prod(shape)


def _type_of(format: Format, skeleton: Skeleton, name: str) -> GGMLQuantizationType:
    if isinstance(format, RECORDS):
        return GGMLQuantizationType[format.name.upper()]
    stored = skeleton.checkpoint.refs[skeleton.stored_name[name]].dtype
    return GGMLQuantizationType.F16 if stored == "F16" else GGMLQuantizationType.BF16


def _family(spec: ModelSpec) -> Family:
    return FAMILIES[spec.architecture]


@cache
def _names(arch: gguf.MODEL_ARCH, n_blocks: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(arch, n_blocks)


def gguf_name(spec: ModelSpec, parameter: str) -> str | None:
    """The name of ``parameter`` in a GGUF file; None for a family or parameter without one."""
    if spec.architecture not in FAMILIES:
        return None
    found = _names(_family(spec).arch, spec.n_blocks).get_name(parameter, try_suffixes=(".weight", ".bias"))
    return None if found is None else str(found)


def _name_of(skeleton: Skeleton, parameter: str) -> str:
    found = gguf_name(skeleton.spec, parameter)
    if found is None:
        raise fail(
            "gguf/name",
            parameter,
            saw=f"no name for it in {_family(skeleton.spec).arch.name.lower()} files",
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
    chosen = recipe(name, matrices, spec.n_blocks, queries // keys, tied)
    return {weight: chosen.get(stored, "16bit") for weight, stored in names.items()}


def _parameters(skeleton: Skeleton) -> list[str]:
    """All stored parameters, embedding first, then by block."""
    kept = [k.name for k in skeleton.spec.kept if k.tied_to is None]
    weights = [w.name for w in skeleton.spec.weights]
    order = {name: i for i, name in enumerate(skeleton.stored_name)}
    return sorted(kept + weights, key=lambda name: order[name])


def _layout(skeleton: Skeleton, formats: dict[str, str]) -> list[_Entry]:
    """The tensors of the file in their order."""
    entries = []
    for parameter in _parameters(skeleton):
        shape = tuple(skeleton.model.get_parameter(parameter).shape)
        if parameter in formats:
            format = FORMATS[formats[parameter]]
            kind, nbytes = _type_of(format, skeleton, parameter), _stored_nbytes(format, shape)
        else:
            kind, nbytes = GGMLQuantizationType.F32, 4 * prod(shape)
        entries.append(_Entry(_name_of(skeleton, parameter), shape, kind, nbytes))
    for name, tensor in rope_tensors(_family(skeleton.spec), skeleton.model.config.get_text_config()).items():
        entries.append(_Entry(name, tuple(tensor.shape), GGMLQuantizationType.F32, 4 * tensor.numel()))
    return entries


def _values(
    skeleton: Skeleton, weights: dict[str, Weight], formats: dict[str, str], roundings: dict[str, str], codes_of: CodesOf
) -> Iterator[tuple[str, Tensor]]:
    """The tensors' values in the order of ``_layout``."""
    family, config = _family(skeleton.spec), skeleton.model.config.get_text_config()
    for parameter in _parameters(skeleton):
        if parameter in weights and formats[parameter] != "16bit":
            codes = codes_of(weights[parameter], formats[parameter], roundings[parameter])
            assert not isinstance(codes, Codes)
            values = records_of(codes).reshape(weights[parameter].n_rows, -1)
        else:
            values = skeleton.read(parameter)
            if parameter not in weights:
                values = values.float()
            if values.dim() == 1 and parameter.endswith("norm.weight"):
                values = values + family.norm_offset
        if family.pairs_rotated and (heads := _rotated_heads(parameter, config)):
            values = rotated_as_pairs(values, heads)
        yield _name_of(skeleton, parameter), values
    yield from rope_tensors(family, config).items()


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


def _file_type(plan: Plan) -> int:
    name = FILE_TYPES.get(plan.default_format, f"MOSTLY_{plan.default_format.upper()}")
    return int(getattr(LlamaFileType, name, LlamaFileType.GUESSED))


def _writer(skeleton: Skeleton, entries: list[_Entry], file_type: int) -> GGUFWriter:
    family, config = _family(skeleton.spec), skeleton.model.config.get_text_config()
    writer = GGUFWriter(path=None, arch=gguf.MODEL_ARCH_NAMES[family.arch])
    directory = skeleton.checkpoint.directory
    vocabulary = vocabulary_of(directory, tokenizer_of(directory), config.vocab_size)
    name = Path(skeleton.checkpoint.config.get("_name_or_path") or directory.name).name
    write_config(writer, family, config, vocabulary.named(name), file_type)
    vocabulary.write(writer)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, raw_dtype=entry.type)
    return writer


def _write_header(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _header_nbytes(skeleton: Skeleton) -> int:
    """Bytes before the first tensor: the header is written for once, with the longest that never changes its length."""
    entries = _layout(skeleton, dict.fromkeys((w.name for w in skeleton.spec.weights), "16bit"))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "header.gguf"
        writer = _writer(skeleton, entries, int(LlamaFileType.GUESSED))
        _write_header(writer, path)
        writer.close()
        return _padded(path.stat().st_size)
