"""llama.cpp's own GGUF files: its recipes, its encoders, and an importance matrix."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bitwright.containers.base import PackedOf
from bitwright.containers.gguf.container import GGUF
from bitwright.formats.base import SIXTEEN_BIT, Packed
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.host.progress import Reporter
from bitwright.models.source import Source
from bitwright.models.spec import Kind, Weight
from bitwright.plan import Choice, Plan, Rounding
from bitwright.runtimes.llama_cpp import library

LLAMA_CPP = Rounding.NEAREST  # how a plan calls what its encoders make


def plan_of(source: Source, formats: dict[str, str], rounding: Rounding) -> Plan:
    """A plan that stores every weight in the format named, without any measurement."""
    choices = []
    for w in source.spec.weights:
        name = formats[w.name]
        nbytes = GGUF.nbytes(w, GGUF.format(name), source)
        choices.append(Choice(w.name, name, Rounding.NONE if name == SIXTEEN_BIT.name else rounding, nbytes, 0.0))
    kept = GGUF.kept_nbytes(source)
    usual = Counter(choice.format for choice in choices).most_common(1)[0][0]
    return Plan(
        source=str(source.checkpoint.directory),
        container=GGUF.name,
        default_format=usual,
        budget="given",
        budget_nbytes=None,
        nbytes=kept + sum(c.nbytes for c in choices),
        kept_nbytes=kept,
        damage_nats=0.0,
        check_nats=0.0,
        check_stderr=0.0,
        gap=0.0,
        price_nats_per_mb=0.0,
        choices=tuple(choices),
    )


def llama_cpp_codes(source: Source, importance: dict[str, Tensor]) -> PackedOf:
    """Codes of a weight by ``ggml_quantize_chunk`` with its row of the importance matrix."""

    def packed_of(weight: Weight, format: str, rounding: Rounding) -> Packed:
        row = GGML_FORMATS[format]
        kind = int(GGMLQuantizationType[format.upper()])
        value = source.read(weight.name)
        packed = quantize(value, kind, row.record, row.record_nbytes, importance.get(weight.name))
        records = torch.from_numpy(packed).reshape(-1, row.record_nbytes)
        return Packed(row, (weight.n_rows, weight.n_cols), {"records": records})

    return packed_of


@torch.no_grad()
def importance_matrix(source: Source, ids: Tensor) -> dict[str, Tensor]:
    """Mean squared input of every linear over the text ``ids`` [S, T]; like llama.cpp's tool without embedding and head."""
    model = AutoModelForCausalLM.from_pretrained(source.checkpoint.directory, dtype=torch.float32).eval()
    sums: dict[str, Tensor] = {}
    for weight in source.spec.weights:
        linear = model.get_submodule(weight.module)
        if weight.kind is Kind.LINEAR:
            assert isinstance(linear, nn.Linear)
            sums[weight.name] = torch.zeros(weight.n_cols)
            linear.register_forward_pre_hook(partial(_add_squares, sums[weight.name]))
    for row in Reporter().track(ids, "importance matrix", len(ids)):
        model.base_model(row[None], use_cache=False)
    return {name: total / ids.numel() for name, total in sums.items()}


def _add_squares(into: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    into += inputs[0].flatten(0, -2).square().sum(0)


def quantize(weight: Tensor, type_id: int, record: int, record_nbytes: int, importance: Tensor | None) -> np.ndarray:
    """``weight`` float32 [N, K] as llama.cpp's own encoder writes it: uint8 [N, K / record * record_nbytes].

    ``importance`` [K] are mean squared inputs, llama.cpp's importance matrix.
    """
    source = np.ascontiguousarray(weight.float().numpy())
    rows, columns = source.shape
    out = np.zeros((rows, columns // record * record_nbytes), dtype=np.uint8)
    matrix = None if importance is None else np.ascontiguousarray(importance.float().numpy())
    library().ggml_quantize_init(type_id)
    written = library().ggml_quantize_chunk(
        type_id, source.ctypes.data, out.ctypes.data, 0, rows, columns, None if matrix is None else matrix.ctypes.data
    )
    if written != out.nbytes:
        raise AssertionError(f"type {type_id}: {written} bytes instead of {out.nbytes}")
    return out
