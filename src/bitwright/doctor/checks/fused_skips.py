"""16-bit weights of a bitsandbytes checkpoint that vLLM quantizes anew, without a word.

vLLM multiplies query, key and value projections as one matrix, and gate and up projections too. It looks for the name of the
whole (`qkv_proj`, `gate_up_proj`) in the list of modules to skip. Where the list holds only the parts, or where a part is
quantized, every 16-bit part is rounded to plain NF4 while loading. transformers loads the same files as they are.

Source: vllm-bnb-plugin 0.0.3 (`_quantized_4bit_generator`) and `is_layer_skipped_bnb` of vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Correction, Model
from bitwright.errors import Finding, Severity
from bitwright.models.fused import fused_modules

PACKED = "U8"


def check(model: Model) -> Iterator[Finding]:
    mixed, unlisted = _harmed(model)
    if mixed:
        yield Finding(
            "quantization/fused-mixed",
            mixed[0],
            f"in 16 bit while its neighbours are in 4 bit; {len(mixed)} such weights, which vLLM rounds to NF4",
            "weights that vLLM multiplies as one are all in 16 bit, or none is",
            "serve it with transformers, or quantize again with fused groups kept alike, as bitwright quantize does",
            Severity.WARNING,
        )
    if unlisted:
        yield Finding(
            "quantization/fused-unlisted",
            "config.json",
            f"skips the parts of {unlisted[0]} but not its name; {len(unlisted)} such modules, which vLLM rounds to NF4",
            "fused names stand in llm_int8_skip_modules beside their parts",
            f"add {unlisted[0]!r} and its like",
            Severity.WARNING,
        )


def fix(model: Model) -> Correction:
    """Fused names beside their parts."""
    _, unlisted = _harmed(model)
    if not unlisted or model.quantization is None:
        return {}
    skipped = [*(model.quantization.get("llm_int8_skip_modules") or []), *unlisted]
    return {"config.json": {**model.config, "quantization_config": model.quantization | {"llm_int8_skip_modules": skipped}}}


def _harmed(model: Model) -> tuple[list[str], list[str]]:
    """16-bit modules beside quantized ones, and fused modules that are all 16 bit and not in the list."""
    config = model.quantization
    if config is None or config.get("quant_method") != "bitsandbytes" or not config.get("load_in_4bit"):
        return [], []
    packed = {name.removesuffix(".weight"): ref.dtype == PACKED for name, ref in model.refs.items() if name.endswith(".weight")}
    skipped = config.get("llm_int8_skip_modules")
    names = {name for name in skipped if isinstance(name, str)} if isinstance(skipped, list) else set()
    mixed: list[str] = []
    unlisted: list[str] = []
    for whole, parts in fused_modules(packed).items():
        wide = [part for part in parts if not packed[part]]
        if wide and len(wide) < len(parts):
            mixed += wide
        elif wide and not _is_skipped(whole, names):
            unlisted.append(whole)
    return mixed, unlisted


def _is_skipped(module: str, names: set[str]) -> bool:
    """Whether vLLM leaves ``module`` alone: a name of the list is a part of its path, or the path down to some level."""
    parts = module.split(".")
    paths = {".".join(parts[: i + 1]) for i in range(len(parts))}
    return bool(names & (paths | set(parts)))
