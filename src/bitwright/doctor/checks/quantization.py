"""Quantized weights that do not fit what config.json says about them.

A skip list that names modules which do not exist skips nothing; packed weights without their statistics cannot be decoded;
packed weights without a `quantization_config` are read as if they were values.

Source: the layout that bitsandbytes writes through transformers (weights in uint8 beside `absmax` and `quant_state`).
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from bitwright.doctor.model import Model, bare
from bitwright.errors import Finding, Severity
from bitwright.models.fused import FUSED, fused_modules

STATISTICS = (".absmax", ".quant_map", ".quant_state.")
PACKED = ("U8", "I32", "U32")


def check(model: Model) -> Iterator[Finding]:
    config = model.quantization
    packed = [
        n for n, ref in model.refs.items() if n.endswith((".weight", ".qweight", ".weight_packed")) and ref.dtype in PACKED
    ]
    if config is None:
        if packed and not isinstance(model.config.get("quantization"), dict):  # as MLX calls it
            yield Finding(
                "quantization/no-config",
                packed[0],
                f"{len(packed)} packed weights, no quantization_config",
                "config.json says how they are packed",
                "copy quantization_config from where the model was quantized",
            )
        return
    modules = {name.rsplit(".", 1)[0] for name in model.refs}
    parts = modules | {part for name in modules for part in name.split(".")} | set(map(bare, modules))
    skipped = config.get("llm_int8_skip_modules") or config.get("modules_to_not_convert") or []
    for name in [name for name in skipped if isinstance(name, str)] if isinstance(skipped, list) else []:
        known = (
            ("*" in name and any(fnmatchcase(module, pattern) for module in modules for pattern in (name, f"{name}.*")))
            or name in parts
            or bare(name) in parts
            or any(module.endswith(f".{name}") or module.startswith(f"{name}.") for module in modules)
        )
        fused = name in FUSED or bare(name) in fused_modules(map(bare, modules))  # of vLLM, which knows no parts
        if not known and not fused and not (name == "lm_head" and model.ties_embeddings):
            yield Finding(
                "quantization/skip-list",
                "config.json",
                f"skips {name!r}, which no tensor belongs to",
                "names of modules",
                "correct the name or take it out",
                Severity.WARNING,
            )
    if config.get("quant_method") == "bitsandbytes" and config.get("load_in_4bit"):
        for name in packed:
            missing = [kind for kind in STATISTICS if not any(other.startswith(name + kind) for other in model.refs)]
            if missing:
                yield Finding(
                    "quantization/statistics",
                    name,
                    f"packed, without {', '.join(kind.strip('.') for kind in missing)}",
                    "the statistics that decode it",
                    "save the quantized model again with save_pretrained",
                )
                return
