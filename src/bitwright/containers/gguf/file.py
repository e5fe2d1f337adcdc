"""GGUF files being written: headers first, then tensors one by one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGUFWriter, LlamaFileType
from torch import Tensor

from bitwright.checkpoint.output import beside
from bitwright.containers.base import Writer, require_same_weights
from bitwright.containers.gguf.layout import (
    Entry,
    all_in_16_bit,
    family_of,
    files_of,
    layout,
    of_tower,
    padded,
    parameters_of,
    parts_of,
    seeing_of,
)
from bitwright.containers.gguf.metadata import rope_tensors, write_config
from bitwright.containers.gguf.mmproj import row_end, tower_heads, vision_writer, write_of_text
from bitwright.containers.gguf.rotary import rotated_as_pairs, rotated_heads
from bitwright.containers.gguf.tokenizer import vocabulary_of
from bitwright.data.tokenizer import tokenizer_of
from bitwright.formats.base import Format, Packed
from bitwright.models.source import Source
from bitwright.plan import Plan
from bitwright.runtimes import llama_cpp
from bitwright.runtimes.mtmd import ROW_END

FILE_TYPES = {
    "q2_k": "MOSTLY_Q2_K",
    "q3_k": "MOSTLY_Q3_K_M",
    "q4_k": "MOSTLY_Q4_K_M",
    "q5_k": "MOSTLY_Q5_K_M",
    "16bit": "MOSTLY_BF16",
    "mxfp4": "MOSTLY_MXFP4_MOE",
}


class GgufFile(Writer):
    """The text's file, and for a model that sees the one beside it; headers first, then tensors in the order of the model."""

    def __init__(self, out: Path, source: Source, plan: Plan, formats: dict[str, Format]) -> None:
        self.out, self.source = out, source
        self.family, self.seeing = family_of(source.spec), seeing_of(source.spec)
        self.rotated: dict[bool, object] = {False: source.config} if self.family.pairs_rotated else {}
        if self.seeing and self.seeing.pairs_rotated:
            self.rotated[True] = tower_heads(source)
        choices = require_same_weights(plan, source.spec)
        self.weights = {w.name: w for w in source.spec.weights}
        chosen = {name: formats[choice.format] for name, choice in choices.items()}
        self.files = {}
        for tower in files_of(source.spec):
            path = llama_cpp.mmproj_of(out) if tower else out
            self.files[tower] = OneFile(path, source, layout(source, chosen, tower), file_type_of(plan), tower)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(name for tower in self.files for name in parameters_of(self.source, tower))

    def put(self, parameter: str, value: Tensor | Packed) -> None:
        tower = of_tower(self.source.spec, parameter)
        if isinstance(value, Packed):
            values = value.tensors["records"].reshape(self.weights[parameter].n_rows, -1)
        else:
            values = value.to(self.source.written_dtype(parameter)) if parameter in self.weights else value.float()
            if values.dim() == 1 and parameter.endswith("norm.weight") and not tower:
                values = values + self.family.norm_offset
        if tower and self.seeing and self.seeing.offset_norm and parameter.endswith(self.seeing.offset_norm):
            values = values + 1
        if tower in self.rotated and (heads := rotated_heads(parameter, self.rotated[tower])):
            values = rotated_as_pairs(values, heads)
        for part in parts_of(self.source, parameter):
            self.files[tower].put(part.name, part.of(values))

    def close(self) -> int:
        for name, tensor in rope_tensors(self.family, self.source.config).items():
            self.files[False].put(name, tensor)
        if self.seeing and self.seeing.row_end:
            self.files[True].put(ROW_END, row_end(self.source, self.seeing.row_end))
        nbytes = sum(file.close() for file in self.files.values())
        beside(self.out, "Modelfile").write_text(
            "".join(f"FROM ./{file.path.name}\n" for file in self.files.values()), encoding="utf-8"
        )
        return nbytes

    def release(self) -> None:
        for file in self.files.values():
            file.release()


class OneFile:
    """One GGUF file being written, tensor by tensor."""

    def __init__(self, path: Path, source: Source, entries: list[Entry], file_type: int, tower: bool) -> None:
        self.path = path
        self._left = list(reversed(entries))
        self._writer = _writer(source, entries, file_type, tower)
        _write_header(self._writer, path)

    def put(self, name: str, values: Tensor) -> None:
        data = values.contiguous().cpu().view(torch.uint8).reshape(-1).numpy()
        entry = self._left.pop()
        if (name, data.nbytes) != (entry.name, entry.nbytes):
            raise AssertionError(f"{name}: {data.nbytes} bytes, planned {entry.name} with {entry.nbytes}")
        self._writer.write_tensor_data(data)

    def close(self) -> int:
        if self._left:
            raise AssertionError("not every planned tensor was written")
        self._writer.flush()
        for file in self._writer.fout or []:
            os.fsync(file.fileno())
        self.release()
        return self.path.stat().st_size

    def release(self) -> None:
        self._writer.close()


def file_type_of(plan: Plan) -> int:
    name = FILE_TYPES.get(plan.default_format, f"MOSTLY_{plan.default_format.upper()}")
    return int(getattr(LlamaFileType, name, LlamaFileType.GUESSED))


def _writer(source: Source, entries: list[Entry], file_type: int, tower: bool) -> GGUFWriter:
    family, config, directory = family_of(source.spec), source.config, source.checkpoint.directory
    name = Path(source.checkpoint.config.get("_name_or_path") or directory.name).name
    seeing = seeing_of(source.spec)
    if tower and seeing:
        writer = vision_writer(source, seeing, name, file_type)
    else:
        writer = GGUFWriter(path=None, arch=gguf.MODEL_ARCH_NAMES[family.arch])
        vocabulary = vocabulary_of(directory, tokenizer_of(directory), config.vocab_size)
        write_config(writer, family, config, vocabulary.named(name), file_type)
        write_of_text(writer, source)
        vocabulary.write(writer)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, raw_dtype=entry.type)
    return writer


def _write_header(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def header_nbytes(source: Source, tower: bool) -> int:
    """Bytes before the first tensor: the header is written for once, with the longest that never changes its length."""
    entries = layout(source, all_in_16_bit(source), tower)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "header.gguf"
        writer = _writer(source, entries, int(LlamaFileType.GUESSED), tower)
        _write_header(writer, path)
        writer.close()
        return padded(path.stat().st_size)
