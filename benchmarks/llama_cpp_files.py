"""llama.cpp's own GGUF files: its recipes, its encoders, and an importance matrix."""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bitwright.evaluate.llama_cpp import quantize
from bitwright.export.container import CodesOf
from bitwright.export.gguf import GGUF
from bitwright.formats.format import FORMATS
from bitwright.formats.ggml import GGML_FORMATS
from bitwright.formats.ggml_bytes import from_bytes
from bitwright.formats.pack import AnyCodes
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import Weight
from bitwright.plan import Choice, Plan
from bitwright.progress import Reporter

LLAMA_CPP = "llama.cpp"  # the rounding of a choice that its encoders carry out


def plan_of(skeleton: Skeleton, formats: dict[str, str], rounding: str) -> Plan:
    """A plan that stores every weight in the format named, without any measurement."""
    choices = []
    for w in skeleton.spec.weights:
        name = formats[w.name]
        nbytes = GGUF.nbytes(FORMATS[name], w.n_rows, w.n_cols)
        choices.append(Choice(w.name, name, "none" if name == "16bit" else rounding, nbytes, 0.0))
    kept = GGUF.kept_nbytes(skeleton)
    usual = Counter(choice.format for choice in choices).most_common(1)[0][0]
    return Plan(
        source=str(skeleton.checkpoint.directory),
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


def llama_cpp_codes(skeleton: Skeleton, importance: dict[str, Tensor]) -> CodesOf:
    """Codes of a weight by ``ggml_quantize_chunk`` with its row of the importance matrix."""

    def codes_of(weight: Weight, format: str, rounding: str) -> AnyCodes:
        row = GGML_FORMATS[format]
        kind = int(GGMLQuantizationType[format.upper()])
        value = skeleton.read(weight.name)
        packed = quantize(value, kind, row.record, row.record_nbytes, importance.get(weight.name))
        return from_bytes(row, (weight.n_rows, weight.n_cols), torch.from_numpy(packed).reshape(-1, row.record_nbytes))

    return codes_of


@torch.no_grad()
def importance_matrix(skeleton: Skeleton, ids: Tensor) -> dict[str, Tensor]:
    """Mean squared input of every linear over the text ``ids`` [S, T]; like llama.cpp's tool without embedding and head."""
    model = AutoModelForCausalLM.from_pretrained(skeleton.checkpoint.directory, dtype=torch.float32).eval()
    sums: dict[str, Tensor] = {}
    for weight in skeleton.spec.weights:
        linear = model.get_submodule(weight.module)
        if weight.kind == "linear":
            assert isinstance(linear, nn.Linear)
            sums[weight.name] = torch.zeros(weight.n_cols)
            linear.register_forward_pre_hook(partial(_add_squares, sums[weight.name]))
    for row in Reporter().track(ids, "importance matrix", len(ids)):
        model.base_model(row[None], use_cache=False)
    return {name: total / ids.numel() for name, total in sums.items()}


def _add_squares(into: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    into += inputs[0].flatten(0, -2).square().sum(0)
