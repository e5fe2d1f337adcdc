"""GGUF files for llama.cpp, Ollama and LM Studio: one file with weights, settings, tokenizer and chat template, and for a model
that sees a second one, ``mmproj``, with its vision tower and projector.

A weight's records are written as they were rounded; only whole rows change places, for families whose rotary dimensions lie in
another order. Vectors are stored in 32 bit, as llama.cpp's own converter does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.checkpoint.tensors import read_bytes
from bitwright.containers.base import Container
from bitwright.containers.gguf.adapter import write_adapter
from bitwright.containers.gguf.families import FAMILIES, SEEING, seeing_with, text_family
from bitwright.containers.gguf.file import GgufFile, header_nbytes
from bitwright.containers.gguf.layout import (
    SUFFIXES,
    Part,
    all_in_16_bit,
    files_of,
    gguf_name,
    is_tower,
    known_family,
    layout,
    names_of,
    of_tower,
    padded,
    parts_of,
    stored_nbytes,
    text_name,
    tower_parts,
)
from bitwright.containers.gguf.metadata import require_known_rope
from bitwright.containers.gguf.mmproj import PROJECTOR, VISION, taps_of
from bitwright.containers.gguf.recipes import BASES, Matrix, recipe
from bitwright.containers.gguf.rotary import Heads, rotated_as_halves, rotated_heads
from bitwright.containers.gguf.towers import require_tower
from bitwright.errors import fail
from bitwright.formats.base import SIXTEEN_BIT, Format, Packed
from bitwright.host.packages import pip_install
from bitwright.models.source import Source
from bitwright.models.spec import Kind, ModelSpec, Weight
from bitwright.plan import Plan
from bitwright.rounding.base import Rounder
from bitwright.rounding.ggml import GGML
from bitwright.rounding.iq import IQ
from bitwright.runtimes import llama_cpp

WIDE = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")  # rows of a multiple of 256
NARROW = ("iq4_nl", "q5_0", "q8_0")
NARROW_HEAD = ("iq4_nl", "q8_0")  # every token passes the head, and on processors q5_0 is as slow as q8_0 (docs/LOG.md)
STOCK = "Q4_K_M"


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
        if sees:
            eyes = llama_cpp.mmproj_of(Path(name)).name
            return f"""```
llama-mtmd-cli -m {name} --mmproj {eyes} --image PICTURE.jpg -p "What is in the picture?"
llama-server -m {name} --mmproj {eyes}
```

In LM Studio both files lie in one folder."""
        return f"""```
llama-cli -m {name}
llama-server -m {name}
ollama create {stem} -f {stem}.Modelfile && ollama run {stem}
```

In LM Studio: `lms import {name}`."""

    def loading(self, path: str, sees: bool = False) -> tuple[str, ...]:
        stem, eyes = Path(path).with_suffix(""), f" --mmproj {llama_cpp.mmproj_of(Path(path))}" if sees else ""
        lines = (f"llama-cli -m {path}{eyes}", f"llama-server -m {path}{eyes}")
        return lines if sees else (*lines, f"ollama create {stem.name} -f {stem}.Modelfile && ollama run {stem.name}")

    def write_adapter(
        self, place: Path, source: Source, changes: Mapping[str, tuple[Tensor, Tensor]], alpha: float, name: str
    ) -> str:
        if any(of_tower(source.spec, change) for change in changes):
            return "\nllama.cpp has no adapters for vision towers and projectors: what was learnt there is for PEFT alone.\n"
        write_adapter(place / llama_cpp.GGUF_ADAPTER, source, changes, alpha)
        return f"""
In llama.cpp and Ollama, beside the file that it was trained for:

```
llama-cli -m {name} --lora HERE/{llama_cpp.GGUF_ADAPTER}
printf 'FROM ./{name}\\nADAPTER ./HERE/{llama_cpp.GGUF_ADAPTER}\\n' > Modelfile && ollama create tuned -f Modelfile
```
"""

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
        return sum(padded(stored_nbytes(format, part.shape)) for part in parts_of(source, weight.name))

    def kept_nbytes(self, source: Source) -> int:
        weights = {part.name for w in source.spec.weights for part in parts_of(source, w.name)}
        total = 0
        for tower in files_of(source.spec):
            entries = layout(source, all_in_16_bit(source), tower)
            total += header_nbytes(source, tower) + sum(padded(e.nbytes) for e in entries if e.name not in weights)
        return total

    def require(self, source: Source) -> None:
        if known_family(source.spec) is None:
            kinds, towers = [stack.kind for stack in source.spec.stacks], SEEING.get(source.spec.architecture, ())
            of_class = f"a tower of {' or '.join(seeing.tower for seeing in towers)}, and a text of {', '.join(FAMILIES)}"
            raise fail(
                "gguf/family",
                source.checkpoint.source,
                saw=f"{source.spec.architecture} of {', '.join(kinds)}" if towers else source.spec.architecture,
                wanted=of_class if towers else f"one of {', '.join((*FAMILIES, *SEEING))}",
                help="--container bitsandbytes",
            )
        require_known_rope(source.config)
        require_tower(source)

    def notes(self) -> tuple[str, ...]:
        if llama_cpp.available():
            return ()
        return (f"llama.cpp is missing ({pip_install('xllamacpp')}): the file is measured as transformers decodes it",)

    def writer(self, out: Path, source: Source, plan: Plan) -> GgufFile:
        return GgufFile(out, source, plan, self.formats)

    def read(self, out: Path, weights: Iterable[Weight]) -> dict[str, Packed]:
        found: dict[str, Packed] = {}
        path_of = {False: out, True: llama_cpp.mmproj_of(out)}
        headers = {tower: read_gguf_header(path) for tower, path in path_of.items() if path.exists()}
        metadata = headers[False].metadata
        arch = str(metadata["general.architecture"])
        family = text_family(arch)
        rotated = {False: Heads.of(metadata, arch)} if family.pairs_rotated else {}
        seeing, second = None, {}
        if True in headers:
            second = headers[True].metadata
            seeing = seeing_with(str(second[PROJECTOR]))
            if seeing.pairs_rotated:
                rotated[True] = Heads.of(second, VISION)
        names = names_of(family.arch, int(metadata[f"{arch}.block_count"]))
        for weight in weights:
            tower, shape = is_tower(weight.group), (weight.n_rows, weight.n_cols)
            if tower and seeing is None:
                raise fail(
                    "gguf/mmproj",
                    path_of[True],
                    saw="no such file",
                    wanted="the vision tower of the model, beside its text",
                    help="copy it from where the text's file came from",
                )
            if tower and seeing:
                parts = tower_parts(seeing, weight.name, shape, taps_of(second)) or []
            else:
                parts = [Part(str(names.get_name(text_name(weight.name), try_suffixes=SUFFIXES)), shape)]
            tensors = [headers[tower].tensors[part.name] for part in parts]
            format = self.formats.get(tensors[0].type)
            if format is None:
                continue
            pieces = [read_bytes(path_of[tower], tensor.start, tensor.nbytes) for tensor in tensors]
            raw = pieces[0] if len(pieces) == 1 else bytearray().join(pieces)
            rows = torch.frombuffer(raw, dtype=torch.uint8).reshape(weight.n_rows, -1)
            if tower in rotated and (heads := rotated_heads(weight.name, rotated[tower])):
                rows = rotated_as_halves(rows, heads)
            records = rows.reshape(-1, format.record_nbytes)  # type: ignore[attr-defined]
            found[weight.name] = Packed(format, shape, {"records": records})
        return found


GGUF = Gguf()


def recipe_of(spec: ModelSpec, name: str) -> dict[str, str]:
    """Weight -> format under llama.cpp's recipe ``name``. A vision tower stays in 16 bit: its converter makes it so."""
    of_text = [w for w in spec.weights if not of_tower(spec, w.name)]
    names = {w.name: "" for w in spec.weights} | {w.name: gguf_name(spec, w.name) or "" for w in of_text}
    matrices = [Matrix(names[w.name], w.n_cols) for w in of_text if names[w.name]]
    queries = next((w.n_rows for w in of_text if w.role == "q_proj"), 1)
    keys = next((w.n_rows for w in of_text if w.role == "k_proj"), queries)
    tied = "output.weight" not in names.values()
    chosen = recipe(name, matrices, spec.text.n_blocks, queries // keys, tied)
    return {weight: chosen.get(stored, SIXTEEN_BIT.name) for weight, stored in names.items()}
