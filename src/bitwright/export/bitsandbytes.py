"""Checkpoints that transformers loads through bitsandbytes: 4-bit blocks beside 16-bit weights.

Layout per quantized weight W (bitsandbytes 0.50, QuantState.as_dict): ``W`` uint8 [ceil(n / 2), 1], and beside it
``W.absmax``, ``W.quant_map``, with double quantization ``W.nested_absmax`` and ``W.nested_quant_map``, and
``W.quant_state.bitsandbytes__nf4`` with the rest as JSON bytes. Exporting permutes bits; it never rounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.checkpoint.tensors import NAMES
from bitwright.checkpoint.writer import TensorPlan, write_safetensors
from bitwright.errors import fail
from bitwright.export.container import CodesOf, Container
from bitwright.formats.codes import Codes, NestedScales, dynamic_map
from bitwright.formats.format import FORMATS, NESTED_BLOCK_SIZE, BlockFormat, Format, SixteenBit
from bitwright.formats.pack import pack_nibbles
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import ModelSpec, Weight
from bitwright.plan import Plan

WITHOUT_BLANKS = (",", ":")  # the library's own records are about as long as ours with their varying numbers
WIDEST_OFFSET = -9999999000000000.0  # no float32 takes more characters
COMPANIONS = ("generation_config.json", "chat_template.jinja", "LICENSE")


def nbytes(format: Format, n_rows: int, n_cols: int) -> int:
    """Bytes that a weight [n_rows, n_cols] takes in the file, quantization state included."""
    count = n_rows * n_cols
    if not isinstance(format, BlockFormat):
        return 2 * count
    blocks = -(-count // format.block_size)
    state = len(_state_json(format, (n_rows, n_cols), torch.bfloat16, 0.0))
    shared = -(-count // 2) + 16 * 4 + state
    if not format.double_quant:
        return shared + 4 * blocks
    return shared + blocks + 4 * -(-blocks // NESTED_BLOCK_SIZE) + 256 * 4


def unavailable(format: Format, n_rows: int, n_cols: int) -> str | None:
    """Blocks that run across rows: the file can hold them, but the AVX-512 kernel of bitsandbytes decodes them wrongly
    (seen in 0.50.2; docs/LOG.md)."""
    if isinstance(format, BlockFormat) and n_cols % format.block_size:
        return f"rows of {n_cols} columns are not a multiple of {format.block_size}"
    return None


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


def weight_tensors(name: str, codes: Codes, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that store ``codes`` as the weight called ``name``, decoded by the runtime to ``dtype``."""
    format, scales = codes.format, codes.scales
    levels = torch.tensor(format.levels, dtype=torch.float32)
    tensors = {name: pack_nibbles(codes.code)[:, None], f"{name}.quant_map": levels}
    offset = 0.0
    if isinstance(scales, NestedScales):
        offset = scales.offset
        tensors[f"{name}.absmax"] = scales.code
        tensors[f"{name}.nested_absmax"] = scales.nested_scale
        tensors[f"{name}.nested_quant_map"] = dynamic_map()
    else:
        tensors[f"{name}.absmax"] = scales.scale
    n_rows, n_cols = codes.shape
    state = _state_json(format, (n_rows, n_cols), dtype, offset)
    tensors[f"{name}.quant_state.bitsandbytes__{format.grid}"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    return tensors


def write(directory: Path, skeleton: Skeleton, plan: Plan, codes_of: CodesOf) -> int:
    """Write weights, config, tokenizer and companions into ``directory``; returns bytes of tensor data."""
    dtype = _dtype(skeleton)
    choices = {choice.weight: choice for choice in plan.choices}
    _require_same_names(skeleton, choices)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for kept in skeleton.spec.kept:
            if kept.tied_to is None:
                yield kept.name, skeleton.read(kept.name)
        for weight in skeleton.spec.weights:
            choice = choices[weight.name]
            if choice.format == "16bit":
                yield weight.name, skeleton.read(weight.name)
            else:
                codes = codes_of(weight, choice.format, choice.rounding)
                assert isinstance(codes, Codes)
                yield from weight_tensors(weight.name, codes, dtype).items()

    total = write_safetensors(directory, _layout(skeleton, choices, dtype), tensors())
    _write_config(directory, skeleton, plan, dtype)
    _copy_companions(directory, skeleton)
    return total


def _dtype(skeleton: Skeleton) -> torch.dtype:
    stored = {skeleton.checkpoint.refs[skeleton.stored_name[w.name]].dtype for w in skeleton.spec.weights}
    return torch.float16 if stored == {"F16"} else torch.bfloat16


def _layout(skeleton: Skeleton, choices: dict[str, Any], dtype: torch.dtype) -> list[TensorPlan]:
    """Headers of all tensors in the order in which they will be written."""

    def sixteen(name: str) -> TensorPlan:
        ref = skeleton.checkpoint.refs[skeleton.stored_name[name]]
        return TensorPlan(name, ref.dtype if ref.dtype in ("F16", "BF16") else NAMES[torch.bfloat16], ref.shape)

    plans = [sixteen(kept.name) for kept in skeleton.spec.kept if kept.tied_to is None]
    for weight in skeleton.spec.weights:
        format = FORMATS[choices[weight.name].format]
        if not isinstance(format, BlockFormat):
            plans.append(sixteen(weight.name))
            continue
        name, count = weight.name, weight.n_rows * weight.n_cols
        blocks = -(-count // format.block_size)
        plans += [TensorPlan(name, "U8", (-(-count // 2), 1)), TensorPlan(f"{name}.quant_map", "F32", (16,))]
        plans.append(TensorPlan(f"{name}.absmax", "U8" if format.double_quant else "F32", (blocks,)))
        if format.double_quant:
            plans.append(TensorPlan(f"{name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCK_SIZE),)))
            plans.append(TensorPlan(f"{name}.nested_quant_map", "F32", (256,)))
        state = len(_state_json(format, (weight.n_rows, weight.n_cols), dtype, 0.0))
        plans.append(TensorPlan(f"{name}.quant_state.bitsandbytes__{format.grid}", "U8", (state,)))
    return plans


def _require_same_names(skeleton: Skeleton, choices: dict[str, Any]) -> None:
    names = {weight.name for weight in skeleton.spec.weights}
    if names != set(choices):
        odd = sorted(names ^ set(choices))[0]
        raise fail(
            "plan/weights",
            odd,
            saw="in the plan or in the model, but not in both",
            wanted="a plan made for this model",
            help="bitwright quantize makes one",
        )


def skip_modules(skeleton: Skeleton, plan: Plan) -> list[str]:
    """Modules that the runtime must leave alone: 16-bit choices and every linear outside the blocks."""
    skipped = [choice.weight.removesuffix(".weight") for choice in plan.choices if choice.format == "16bit"]
    outside = [kept.name for kept in skeleton.spec.kept if kept.role in ("head", "outside")]
    return skipped + [name.removesuffix(".weight") for name in outside if name.endswith(".weight")]


def quantization_config(plan: Plan, skipped: list[str], dtype: torch.dtype) -> dict[str, Any]:
    """The block that transformers reads; grid and double quantization of each weight stand in its own state."""
    main = FORMATS[plan.default_format]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": main.grid if isinstance(main, BlockFormat) else "nf4",
        "bnb_4bit_use_double_quant": isinstance(main, BlockFormat) and main.double_quant,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": skipped,
    }


def _write_config(directory: Path, skeleton: Skeleton, plan: Plan, dtype: torch.dtype) -> None:
    config = dict(skeleton.checkpoint.config)
    config.pop("torch_dtype", None)
    config.pop("_name_or_path", None)  # where somebody's source lay
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["architectures"] = [skeleton.spec.architecture]
    config["quantization_config"] = quantization_config(plan, skip_modules(skeleton, plan), dtype)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_companions(directory: Path, skeleton: Skeleton) -> None:
    """Tokenizer and generation files, byte for byte as in the source; never code, pickles or weights."""
    source = skeleton.checkpoint.directory
    for path in sorted(source.iterdir()):
        tokenizer = path.suffix in (".json", ".model", ".txt", ".jinja") and path.name not in (
            "config.json",
            "bitwright.json",
            "report.json",
            "model.safetensors.index.json",
        )
        if path.is_file() and (tokenizer or path.name in COMPANIONS):
            (directory / path.name).write_bytes(path.read_bytes())


class Bitsandbytes(Container):
    name = "bitsandbytes"
    formats = tuple(name for name, format in FORMATS.items() if isinstance(format, BlockFormat | SixteenBit))
    stock_name = "stock NF4"
    stock_format = "nf4-b64"
    rounds_on_load = True

    def menu(self, weight: Weight) -> tuple[str, ...]:
        return ("nf4-b32-dq", "nf4-b64-dq")

    def stock(self, spec: ModelSpec) -> dict[str, str]:
        stock = FORMATS[self.stock_format]
        return {w.name: stock.name for w in spec.weights if not unavailable(stock, w.n_rows, w.n_cols)}

    def nbytes(self, format: Format, n_rows: int, n_cols: int) -> int:
        return nbytes(format, n_rows, n_cols)

    def kept_nbytes(self, skeleton: Skeleton) -> int:
        return skeleton.spec.kept_nbytes

    def unavailable(self, format: Format, n_rows: int, n_cols: int) -> str | None:
        return unavailable(format, n_rows, n_cols)

    def write(self, out: Path, skeleton: Skeleton, plan: Plan, codes_of: CodesOf) -> int:
        return write(out, skeleton, plan, codes_of)


BITSANDBYTES = Bitsandbytes()
