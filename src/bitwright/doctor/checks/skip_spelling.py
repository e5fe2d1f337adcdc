"""16-bit weights of a tower that transformers 5 takes for packed ones, since the skip list names them as transformers 4 did.

transformers 4 skipped a module whose name contained an entry of `llm_int8_skip_modules`. transformers 5 asks for more: an
entry matches from the start of the name that the running class gives the module, or as its end. Classes that see renamed their
modules meanwhile (`visual.blocks.0.mlp` became `model.visual.blocks.0.mlp`), so an entry for a whole module or tower matches
nothing. Its 16-bit weights are wrapped as 4-bit ones, and the first forward pass stops or answers nonsense. `--fix` names every
such linear by itself, which both versions match as the end of a name.

Source: `should_convert_module` of transformers 5.24; Unsloth's dynamic 4-bit checkpoints of Qwen2-VL and LLaVA.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.doctor.model import Correction, Model, bare
from bitwright.errors import Finding

PACKED = "U8"
LIST = "llm_int8_skip_modules"


def check(model: Model) -> Iterator[Finding]:
    missed = _missed(model)
    if missed:
        entry, modules = next(iter(missed.items()))
        yield Finding(
            "quantization/skip-spelling",
            "config.json",
            f"skips {entry!r}, which transformers 5 matches with nothing: {len(modules)} 16-bit weights are taken for 4-bit "
            f"ones, {modules[0]} among them",
            "every 16-bit linear of a tower is named by itself",
            "bitwright doctor MODEL --fix OUT, or transformers 4",
        )


def fix(model: Model) -> Correction:
    """Every linear that an old entry meant, by itself, beside the entries that are there."""
    missed, config = _missed(model), model.quantization
    if not missed or config is None:
        return {}
    added = [module for modules in missed.values() for module in modules]
    listed = list(dict.fromkeys([*config[LIST], *added]))
    return {"config.json": {**model.config, "quantization_config": config | {LIST: listed}}}


def _missed(model: Model) -> dict[str, list[str]]:
    """Entry -> the 16-bit linears that only transformers 4 finds by it."""
    config = model.quantization
    if config is None or not config.get("load_in_4bit") or "vision_config" not in model.config:
        return {}
    entries = _entries(config)
    found: dict[str, list[str]] = {}
    for name, ref in model.refs.items():
        module = name.removesuffix(".weight")
        linear = name.endswith(".weight") and len(ref.shape) == 2 and ref.dtype != PACKED and "embed" not in name
        if not linear or module.endswith("lm_head") or any(_matches(entry, module) for entry in entries):
            continue
        meant = next((entry for entry in entries if entry in module), None)
        if meant:
            found.setdefault(meant, []).append(module)
    return found


def _entries(config: dict[str, Any]) -> list[str]:
    listed = config.get(LIST)
    return [entry for entry in listed if isinstance(entry, str)] if isinstance(listed, list) else []


def _matches(entry: str, module: str) -> bool:
    """Whether transformers 5 skips ``module`` for ``entry``. The names of a class that sees begin with model, and those of its
    text with a part of their own: never with model.layers, as their checkpoints' did."""
    whole = entry.startswith("model.") and not entry.startswith("model.layers.")
    return module.endswith(entry) or (whole and f"{bare(module)}.".startswith(f"{bare(entry)}."))
