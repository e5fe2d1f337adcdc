"""The stacks of blocks of a model, found by reading its class: the text decoder, and the towers that see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from bitwright.errors import fail
from bitwright.models.spec import TEXT, Stack

DEPTHS = ("num_hidden_layers", "depth", "num_global_layers")  # as configurations call the length of a stack
VISION = "vision"


def stacks_of(model: Any, config: Any) -> tuple[Stack, ...]:
    """Every stack, in the order in which a forward pass meets them: the text decoder is the last.

    A stack is a list of modules as long as the configuration of the part that owns it says that a stack is. Raises
    BitwrightError when there is none for the text.
    """
    text = config.get_text_config()
    found = list(_lists(model, config))
    decoder = next((path for path, owner, blocks in found if _is_text(owner, text) and len(blocks) == _depth_of(text)), None)
    if decoder is None:
        raise fail(
            "model/blocks",
            type(model).__name__,
            saw=f"no list of {_depth_of(text)} blocks",
            wanted="a stack of decoder blocks",
            help="only models whose text is decoded by a list of blocks can be measured",
        )
    towers = [(path, type(owner).model_type, blocks) for path, owner, blocks in found if path != decoder]
    stacks = [Stack(_name(path, len(towers)), path, len(blocks), _width(blocks), kind) for path, kind, blocks in towers]
    blocks = model.get_submodule(decoder)
    return (*stacks, Stack(TEXT, decoder, len(blocks), int(text.hidden_size), type(text).model_type))


def _lists(model: Any, config: Any) -> Iterator[tuple[str, Any, nn.ModuleList]]:
    """Path, configuration of the owner, and blocks of every outermost list that is as long as its owner's stacks are."""
    owners: dict[str, Any] = {"": config}
    taken: list[str] = []
    for path, module in model.named_modules():
        if hasattr(module, "config"):
            owners[path] = module.config
        if not isinstance(module, nn.ModuleList) or path.startswith(tuple(f"{other}." for other in taken)):
            continue
        owner = owners[max((p for p in owners if p == "" or path.startswith(f"{p}.")), key=len)]
        depths = {getattr(owner, name, None) for name in DEPTHS}
        if len(module) in depths:
            taken.append(path)
            yield path, owner, module


def _is_text(owner: Any, text: Any) -> bool:
    return owner is text or type(owner) is type(text)


def _depth_of(text: Any) -> int:
    return int(text.num_hidden_layers)


def _name(path: str, n_towers: int) -> str:
    """``vision``; of several towers each with the name of the module that holds its list."""
    return VISION if n_towers == 1 else f"{VISION}-{path.split('.')[-2]}"


def _width(blocks: nn.ModuleList) -> int:
    """Features of a block's input: what its first matrix reads."""
    for module in blocks[0].modules():
        if isinstance(module, nn.Linear):
            return module.in_features
        if isinstance(module, Conv1D):
            return int(module.weight.shape[0])
    return 0
