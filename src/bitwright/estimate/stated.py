"""What a config.json says of how its weights are quantized, in a few words (no torch).

The words come from strangers' files: whatever is in them, nothing here raises.
"""

from __future__ import annotations

from typing import Any

from bitwright.models.settings import Config

PLACES = ("quantization_config", "compression_config", "quantization")  # transformers, older compressed-tensors, mlx
NAMES = {
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "mxfp4": "MXFP4",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "auto-round": "AutoRound",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "ModelOpt",
    "quark": "Quark",
    "torchao": "torchao",
    "eetq": "EETQ INT8",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "bitnet": "BitNet",
}
LONGEST = 40  # characters of a stranger's word


def stated_format(config: Config) -> str | None:
    """The format that ``config`` states, such as "FP8" or "GPTQ, 4 bit"; None where it states none.

    >>> stated_format({"quantization_config": {"quant_method": "gptq", "bits": 4}})
    'GPTQ, 4 bit'
    """
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        for place in PLACES:
            stated = part.get(place)
            if isinstance(stated, dict):
                return _named(stated)
            if stated is not None and place == PLACES[0]:
                return f"quantized ({str(stated)[:LONGEST]})"
    return None


def _named(stated: dict[str, Any]) -> str:
    method = str(stated.get("quant_method") or "")[:LONGEST]
    name, numbers = NAMES.get(method.lower(), method), _numbers(method.lower(), stated)
    return ", ".join(word for word in (name, numbers) if word) or "quantized"


def _numbers(method: str, stated: dict[str, Any]) -> str:
    """Bits or the kind of number, as the method writes it down."""
    if method == "bitsandbytes":
        kind = str(stated.get("bnb_4bit_quant_type") or "fp4")[:LONGEST].upper()
        return "INT8" if stated.get("load_in_8bit") else kind if stated.get("load_in_4bit") else ""
    if method == "compressed-tensors":
        return _compressed(stated)
    if method == "modelopt":
        inner = stated.get("quantization")
        return str(stated.get("quant_algo") or (inner.get("quant_algo") if isinstance(inner, dict) else "") or "")[:LONGEST]
    bits = stated.get("bits", stated.get("w_bit", stated.get("nbits")))
    return f"{str(bits)[:LONGEST]} bit" if isinstance(bits, int | float) and not isinstance(bits, bool) else ""


def _compressed(stated: dict[str, Any]) -> str:
    """The weights of all groups: integers of so many bits, or floats."""
    layout, groups = str(stated.get("format") or ""), stated.get("config_groups")
    if layout.startswith(("nvfp4", "mxfp4", "mxfp8")):
        return layout.partition("-")[0].upper()
    found = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            bits = str(weights.get("num_bits"))[:LONGEST]
            found.append(f"FP{bits}" if weights.get("type") == "float" else f"{bits} bit")
    return " + ".join(sorted(set(found)))
