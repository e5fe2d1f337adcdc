"""Checkpoints that transformers loads through bitsandbytes: 4-bit blocks beside 16-bit weights.

Layout per quantized weight W (bitsandbytes 0.50, QuantState.as_dict): ``W`` uint8 [ceil(n / 2), 1], and beside it
``W.absmax``, ``W.quant_map``, with double quantization ``W.nested_absmax`` and ``W.nested_quant_map``, and
``W.quant_state.bitsandbytes__nf4`` with the rest as JSON bytes. Exporting permutes bits; it never rounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bitwright.checkpoint.headers import TensorRef
from bitwright.checkpoint.tensors import read_tensor
from bitwright.checkpoint.writer import TensorPlan
from bitwright.containers.directory import DirectoryContainer, left_in_16bit, tensors_of
from bitwright.formats.base import SIXTEEN_BIT, Format, Packed
from bitwright.formats.bnb4.codes import dynamic_map
from bitwright.formats.bnb4.format import BLOCK_FORMATS, NESTED_BLOCK_SIZE, BlockFormat
from bitwright.models.fused import fused_modules
from bitwright.models.source import Source
from bitwright.models.spec import Kind, ModelSpec, Weight
from bitwright.plan import Plan
from bitwright.rounding.base import Rounder
from bitwright.rounding.bnb4 import BNB4
from bitwright.sensitivity import Group, Shares

WITHOUT_BLANKS = (",", ":")  # the library's own records are about as long as ours with their varying numbers
WIDEST_OFFSET = -9999999000000000.0  # no float32 takes more characters
PACKED_ROWS = 32
STATE = "quant_state.bitsandbytes__"


class Bitsandbytes(DirectoryContainer):
    """NF4 and FP4. The block size stands in every weight's own state, so that one checkpoint mixes them freely.

    The stock quantizer leaves the output head in 16 bit; a head that is not the embedding too can be quantized like any linear.
    """

    name = "bitsandbytes"
    rounders: ClassVar[tuple[Rounder, ...]] = (BNB4,)
    stock_name = "stock NF4"
    packages = "bitsandbytes"
    tags = ("bitsandbytes", "4-bit")
    stock_format = BLOCK_FORMATS["nf4-b64"]
    serves = ("vLLM",)
    vocabulary: ClassVar[frozenset[Kind]] = frozenset({Kind.HEAD})

    def menu(self, weight: Weight) -> tuple[str, ...]:
        return ("nf4-b32-dq", "nf4-b64-dq")

    def plan_notes(self, spec: ModelSpec, plan: Plan) -> tuple[str, ...]:
        heads = [weight for weight in spec.vocabulary if plan.choice(weight.name).format != SIXTEEN_BIT.name]
        if not heads:
            return super().plan_notes(spec, plan)
        return (
            f"the output head is quantized: transformers reads that, vLLM does not; --set {heads[0].module}=16bit for vLLM",
        )

    def accepts(self, weight: Weight, format: Format) -> str | None:
        """Rows that are no multiple of 32 stop bitsandbytes 0.50 on processors that multiply bfloat16."""
        if format is not SIXTEEN_BIT and weight.n_rows % PACKED_ROWS:
            return f"{weight.n_rows} rows are not a multiple of {PACKED_ROWS}"
        return format.unavailable(weight.n_cols)

    def stock(self, spec: ModelSpec) -> dict[str, str]:
        stock = self.stock_format
        return {w.name: stock.name for w in spec.weights if w.kind is Kind.LINEAR and not self.accepts(w, stock)}

    def groups(self, spec: ModelSpec) -> tuple[Group, ...]:
        """vLLM re-quantizes a 16-bit weight to stock NF4 while loading unless its whole fused module is skipped."""
        fused = fused_modules(weight.module for weight in spec.weights)
        return tuple(
            Group(name, tuple(f"{part}.weight" for part in parts), Shares.SIXTEEN_BIT) for name, parts in fused.items()
        )

    def on_load(self, spec: ModelSpec, plan: Plan) -> dict[str, Any]:
        sixteen = any(choice.format == SIXTEEN_BIT.name for choice in plan.choices)
        return stock_nf4(left_in_16bit(spec, plan) if sixteen else None)

    def quantization_config(self, source: Source, plan: Plan) -> dict[str, Any]:
        """Grid and double quantization of each weight stand in its own state; here is what most of them have."""
        main = BLOCK_FORMATS.get(plan.default_format, self.stock_format)
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": main.grid,
            "bnb_4bit_use_double_quant": main.double_quant,
            "bnb_4bit_compute_dtype": str(source.dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": skip_modules(source.spec, plan),
        }

    def layout(self, weight: Weight, format: BlockFormat, source: Source) -> list[TensorPlan]:
        return layout(weight.tensor, weight.n_rows, weight.n_cols, format, source.dtype)

    def stored(self, weight: Weight, packed: Packed, source: Source) -> dict[str, Tensor]:
        return weight_tensors(weight.tensor, packed, source.dtype)

    def taken(self, weight: Weight, refs: Mapping[str, TensorRef], config: Any) -> Packed | None:
        state = next((name for name in refs if name.startswith(f"{weight.tensor}.{STATE}")), None)
        if state is None:
            return None
        read = json.loads(bytes(read_tensor(refs[state]).numpy().tobytes()))
        nested = "nested_blocksize" in read
        name = f"{read['quant_type']}-b{read['blocksize']}" + ("-dq" if nested else "")
        parts = {"code": weight.tensor, "scale_code" if nested else "scale": f"{weight.tensor}.absmax"}
        if nested:
            parts["nested_scale"] = f"{weight.tensor}.nested_absmax"
        tensors = tensors_of(refs, parts)
        tensors["code"] = tensors["code"].reshape(-1)
        if nested:
            tensors["offset"] = torch.tensor([read["nested_offset"]], dtype=torch.float64)
        return Packed(BLOCK_FORMATS[name], (weight.n_rows, weight.n_cols), tensors)


BITSANDBYTES = Bitsandbytes()


def stock_nf4(skip_modules: list[str] | None) -> dict[str, Any]:
    """What a user of bitsandbytes asks for: NF4, blocks of 64, bfloat16 arithmetic, everything else at its default."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_skip_modules": skip_modules,
    }


def skip_modules(spec: ModelSpec, plan: Plan) -> list[str]:
    """Modules that a runtime must leave alone, and the fused modules that are made of nothing else.

    transformers ignores the fused names; vLLM knows no others. ``lm_head`` is always there: with any list of ours
    transformers' own exclusion of the head no longer holds.
    """
    skipped = left_in_16bit(spec, plan)
    quantized = {w.module for w in spec.vocabulary} - set(skipped)
    if "lm_head" not in skipped and not quantized:
        skipped.append("lm_head")
    spelled = dict.fromkeys(name for weight in spec.weights for name in (weight.module, weight.tensor.removesuffix(".weight")))
    return skipped + [name for name, parts in fused_modules(spelled).items() if set(parts) <= set(skipped)]


def layout(name: str, n_rows: int, n_cols: int, format: BlockFormat, dtype: torch.dtype) -> list[TensorPlan]:
    """Headers of the tensors that store a weight [n_rows, n_cols], in their order."""
    count = n_rows * n_cols
    blocks = -(-count // format.block_size)
    plans = [TensorPlan(name, "U8", (-(-count // 2), 1)), TensorPlan(f"{name}.quant_map", "F32", (16,))]
    plans.append(TensorPlan(f"{name}.absmax", "U8" if format.double_quant else "F32", (blocks,)))
    if format.double_quant:
        plans.append(TensorPlan(f"{name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCK_SIZE),)))
        plans.append(TensorPlan(f"{name}.nested_quant_map", "F32", (256,)))
    state = len(_state_json(format, (n_rows, n_cols), dtype, 0.0))
    plans.append(TensorPlan(f"{name}.{STATE}{format.grid}", "U8", (state,)))
    return plans


def weight_tensors(name: str, packed: Packed, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that store ``packed`` as the weight called ``name``, decoded by the runtime to ``dtype``."""
    format, parts = packed.format, packed.tensors
    assert isinstance(format, BlockFormat)
    n_rows, n_cols = packed.shape
    tensors = {name: parts["code"][:, None], f"{name}.quant_map": torch.tensor(format.levels, dtype=torch.float32)}
    offset = 0.0
    if format.double_quant:
        offset = float(parts["offset"])
        tensors[f"{name}.absmax"] = parts["scale_code"]
        tensors[f"{name}.nested_absmax"] = parts["nested_scale"]
        tensors[f"{name}.nested_quant_map"] = dynamic_map()
    else:
        tensors[f"{name}.absmax"] = parts["scale"]
    state = _state_json(format, (n_rows, n_cols), dtype, offset)
    tensors[f"{name}.{STATE}{format.grid}"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    return tensors


def _state_json(format: BlockFormat, shape: tuple[int, int], dtype: torch.dtype, offset: float) -> bytes:
    state: dict[str, Any] = {
        "quant_type": format.grid,
        "blocksize": format.block_size,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape),
    }
    if not format.double_quant:
        return json.dumps(state).encode()  # byte for byte as long as the library's own
    shortest = float(str(np.float32(offset)))  # the runtime reads it as float32
    state |= {"nested_blocksize": NESTED_BLOCK_SIZE, "nested_dtype": "float32", "nested_offset": shortest}
    widest = json.dumps(state | {"nested_offset": WIDEST_OFFSET}, separators=WITHOUT_BLANKS)
    return json.dumps(state, separators=WITHOUT_BLANKS).ljust(len(widest)).encode()  # as many bytes whatever the offset
