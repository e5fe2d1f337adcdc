"""Which tensors a GGUF file holds: their names, types, sizes and order, for the text's file and for that of a tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bitwright.containers.gguf.families import FAMILIES, SEEING, Family, Seeing
from bitwright.containers.gguf.metadata import rope_tensors
from bitwright.errors import fail
from bitwright.formats.base import SIXTEEN_BIT, Format
from bitwright.models.source import Source
from bitwright.models.spec import TEXT, VOCABULARY, ModelSpec
from bitwright.runtimes.mtmd import ROW_END

ALIGNMENT = 32  # of tensor data in the file
MOST_BLOCKS = 128  # of a vision tower, whose tensors have names
INNER_MODELS = ("text_model", "language_model")  # where classes that see keep their text
SUFFIXES = (".weight", ".bias")
QKV, PATCHES, TAPS = ".qkv.", "patch_embed.proj.weight", "deepstack_visual_indexes"
MERGERS = re.compile(r"(deepstack_merger_list\.)(\d+)\.")


@dataclass(frozen=True)
class Part:
    """A tensor of the file, and where it lies in the parameter that it is taken from."""

    name: str
    shape: tuple[int, ...]
    at: tuple[Any, ...] = ()  # an index

    def of(self, values: Tensor) -> Tensor:
        """What of ``values``, of a parameter or of its rows' records, goes into this tensor."""
        return values[self.at] if self.at else values


@dataclass(frozen=True)
class Entry:
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    nbytes: int


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def stored_nbytes(format: Format, shape: tuple[int, ...]) -> int:
    if format is SIXTEEN_BIT:
        return 2 * prod(shape)
    return prod(shape) // format.record * format.record_nbytes  # type: ignore[attr-defined, no-any-return]


def _type_of(format: Format, source: Source, name: str) -> GGMLQuantizationType:
    if format is not SIXTEEN_BIT:
        return GGMLQuantizationType[format.name.upper()]
    half = source.written_dtype(name) == torch.float16
    return GGMLQuantizationType.F16 if half else GGMLQuantizationType.BF16


def seeing_of(spec: ModelSpec) -> Seeing | None:
    """How the tower of a model is written; None for one that has none, or one that llama.cpp does not know."""
    towers = [stack.kind for stack in spec.stacks[:-1]]
    return next((seeing for seeing in SEEING.get(spec.architecture, ()) if [seeing.tower] == towers), None)


def known_family(spec: ModelSpec) -> Family | None:
    """How the text of a model is written; None where llama.cpp does not know it, or we do not."""
    seeing = seeing_of(spec)
    if seeing is None:
        return FAMILIES.get(spec.architecture)
    return seeing.text or FAMILIES.get(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(spec.text.kind, ""))


def family_of(spec: ModelSpec) -> Family:
    """As ``known_family``. Raises KeyError where there is none."""
    if family := known_family(spec):
        return family
    raise KeyError(spec.architecture)


def files_of(spec: ModelSpec) -> tuple[bool, ...]:
    """The files of a model: that of its text, and, if it sees, that of its tower."""
    return (False, True) if seeing_of(spec) else (False,)


def of_tower(spec: ModelSpec, parameter: str) -> bool:
    """Whether ``parameter`` belongs to the second file."""
    return is_tower(spec.group(parameter))


def is_tower(group: str) -> bool:
    """Whether that part of a model is in the second file."""
    return group not in (TEXT, VOCABULARY)


def all_in_16_bit(source: Source) -> dict[str, Format]:
    return dict.fromkeys((w.name for w in source.spec.weights), SIXTEEN_BIT)


@cache
def names_of(arch: gguf.MODEL_ARCH, n_blocks: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(arch, n_blocks)


def text_name(parameter: str) -> str:
    """``parameter`` as the class of the text alone calls it."""
    for inner in INNER_MODELS:
        parameter = parameter.replace(f"model.{inner}.", "model.", 1)
    return parameter


def tower_name(seeing: Seeing, parameter: str, taps: Sequence[int] = ()) -> str | None:
    """The name of a tower's ``parameter`` in the second file; None where it has none.

    ``taps``: the blocks that a list of mergers belongs to. The file counts these by the block, not by the list.
    """
    for own, known in seeing.spelled:
        parameter = parameter.replace(own, known, 1)
    if taps and (listed := MERGERS.search(parameter)):
        parameter = parameter.replace(listed[0], f"{listed[1]}{taps[int(listed[2])]}.", 1)
    found = names_of(gguf.MODEL_ARCH.MMPROJ, MOST_BLOCKS).get_name(parameter, try_suffixes=SUFFIXES)
    return None if found is None else str(found)


def tower_parts(seeing: Seeing, parameter: str, shape: tuple[int, ...], taps: Sequence[int] = ()) -> list[Part] | None:
    """The tensors of the second file that a ``parameter`` of the tower becomes; None where it has no name."""
    if seeing.unused and seeing.unused in parameter:
        return []
    if seeing.cut_qkv and QKV in parameter:
        n = shape[0] // 3
        names = [tower_name(seeing, parameter.replace(QKV, f".{part}.")) for part in "qkv"]
        return [Part(str(name), (n, *shape[1:]), (slice(i * n, (i + 1) * n),)) for i, name in enumerate(names)]
    name = tower_name(seeing, parameter, taps)
    if name is None:
        return None
    if seeing.cut_frames and parameter.endswith(PATCHES):
        frames, flat = (name, f"{name}.1"), (*shape[:2], *shape[3:])
        return [Part(frame, flat, (slice(None), slice(None), i)) for i, frame in enumerate(frames)]
    return [Part(name, shape)]


def gguf_name(spec: ModelSpec, parameter: str) -> str | None:
    """The name of ``parameter`` in a GGUF file; None for a family or parameter without one."""
    if known_family(spec) is None:
        return None
    if (seeing := seeing_of(spec)) and of_tower(spec, parameter):
        return tower_name(seeing, parameter)
    names = names_of(family_of(spec).arch, spec.text.n_blocks)
    found = names.get_name(text_name(parameter), try_suffixes=SUFFIXES)
    return None if found is None else str(found)


def parts_of(source: Source, parameter: str) -> list[Part]:
    """The tensors that ``parameter`` becomes, in their order. Raises BitwrightError where the file has no place for it."""
    spec, shape = source.spec, source.spec.shape(parameter)
    if (seeing := seeing_of(spec)) and of_tower(spec, parameter):
        taps = source.checkpoint.config.get("vision_config", {}).get(TAPS, ())
        parts = tower_parts(seeing, parameter, shape, taps)
        if parts is not None:
            return parts
    return [Part(name_of(source, parameter), shape)]


def name_of(source: Source, parameter: str) -> str:
    found = gguf_name(source.spec, parameter)
    if found is None:
        raise fail(
            "gguf/name",
            parameter,
            saw=f"no name for it in {family_of(source.spec).arch.name.lower()} files",
            wanted="every parameter has a place in the file",
            help="--container bitsandbytes",
        )
    return found


def parameters_of(source: Source, tower: bool) -> list[str]:
    """All stored parameters of one file, embedding first, then by block."""
    kept = [k.name for k in source.spec.kept if k.tied_to is None]
    weights = [w.name for w in source.spec.weights]
    order = {name: i for i, name in enumerate(source.tensor_of)}
    own = [name for name in kept + weights if of_tower(source.spec, name) == tower]
    return sorted(own, key=lambda name: order[name])


def layout(source: Source, formats: dict[str, Format], tower: bool) -> list[Entry]:
    """The tensors of one file in their order."""
    entries = []
    for parameter in parameters_of(source, tower):
        for part in parts_of(source, parameter):
            if parameter in formats:
                format = formats[parameter]
                kind, nbytes = _type_of(format, source, parameter), stored_nbytes(format, part.shape)
            else:
                kind, nbytes = GGMLQuantizationType.F32, 4 * prod(part.shape)
            entries.append(Entry(part.name, part.shape, kind, nbytes))
    if tower:
        return [*entries, *_row_ends(source)]
    for name, tensor in rope_tensors(family_of(source.spec), source.config).items():
        entries.append(Entry(name, tuple(tensor.shape), GGMLQuantizationType.F32, 4 * tensor.numel()))
    return entries


def _row_ends(source: Source) -> list[Entry]:
    """What is put between two rows of an image, where the file holds it."""
    seeing, width = seeing_of(source.spec), source.spec.text.width
    return [Entry(ROW_END, (width,), GGMLQuantizationType.F32, 4 * width)] if seeing and seeing.row_end else []
