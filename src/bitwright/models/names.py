"""Which tensor of a checkpoint holds which parameter of a model."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.errors import fail


def match_names(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """Parameter or stored buffer -> tensor name; the base model's prefix may be absent or extra, names may be those of an older
    layout that transformers translates, tied ones share a tensor.

    Raises BitwrightError for a parameter without a tensor, a tensor without a parameter, and shapes that differ.
    """
    prefix = getattr(model, "base_model_prefix", "") + "."
    renamed = _renamed(checkpoint, model)
    stored: dict[str, str] = {}
    by_identity: dict[int, str] = {}
    pending = []

    def find(name: str) -> str | None:
        return next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in checkpoint.refs), renamed.get(name))

    for name, parameter in model.named_parameters(remove_duplicate=False):
        found = find(name)
        if found is None:
            pending.append((name, parameter))
            continue
        stored[name] = by_identity[id(parameter)] = found
        _require_shape(checkpoint, found, tuple(parameter.shape))
    for name, parameter in pending:
        if id(parameter) not in by_identity:
            raise fail(
                "model/missing-tensor",
                name,
                saw="the checkpoint has no such tensor",
                wanted=f"a tensor for every parameter of {type(model).__name__}",
                help="download the checkpoint again",
            )
        stored[name] = by_identity[id(parameter)]
    transient = _transient_buffers(model)
    for name, buffer in model.named_buffers():
        found = find(name)
        if found is not None and name not in transient:
            _require_shape(checkpoint, found, tuple(buffer.shape))
            stored[name] = found
    computed = {tensor for name, tensor in renamed.items() if name in transient}
    _require_claimed(checkpoint, model, set(stored.values()) | computed, prefix)
    return stored


def _renamed(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """Name in the model -> tensor, for tensors that transformers itself renames while it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    if not renamings:
        return {}
    known = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    found = {name: rename_source_key(name, renamings, [], prefix, known)[0] for name in checkpoint.refs}
    return {new: name for name, new in found.items() if new != name and new in known}


def _transient_buffers(model: nn.Module) -> set[str]:
    """Buffers that a model computes itself and does not save."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }


def _require_shape(checkpoint: Checkpoint, tensor: str, wanted: tuple[int, ...]) -> None:
    saw = checkpoint.refs[tensor].shape
    if saw != wanted:
        raise fail(
            "model/shape",
            tensor,
            saw=f"shape {list(saw)}",
            wanted=f"config.json asks for shape {list(wanted)}",
            help="use the config.json that belongs to these weights",
        )


def _require_claimed(checkpoint: Checkpoint, model: nn.Module, claimed: set[str], prefix: str) -> None:
    buffers = {name for name, _ in model.named_buffers()}
    ignored = [re.compile(p) for p in (getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    for name in checkpoint.refs:
        known = name in claimed or name in buffers or prefix + name in buffers
        if not known and not any(p.search(name) for p in ignored) and not name.endswith("rotary_emb.inv_freq"):
            raise fail(
                "model/unknown-tensor",
                name,
                saw=f"{type(model).__name__} has no parameter of this name",
                wanted="every tensor of the checkpoint is understood",
                help="this architecture needs a newer transformers, or is not supported yet",
            )
