"""Activations of a vision tower that float16 cannot hold: runtimes that cast to it then answer with gibberish.

bfloat16 and float32 reach 3e38, float16 65,504. Towers are known to come near that (Qwen2.5-VL's down projections, Gemma 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bitwright.checkpoint.workdir import WorkDir
from bitwright.measure import store
from bitwright.models.spec import ModelSpec

LARGEST = 65504.0  # of float16
NAMED = 3  # modules that the note names


@contextmanager
def largest_outputs(block: nn.Module) -> Iterator[dict[str, float]]:
    """The largest absolute output of every linear of ``block`` and of itself, by name, as far as they are called meanwhile."""
    found: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor):
                found[name] = max(found.get(name, 0.0), float(value.abs().amax()))

        return hook

    watched = {name: module for name, module in block.named_modules() if not name or isinstance(module, nn.Linear)}
    handles = [module.register_forward_hook(note(name)) for name, module in watched.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def float16_notes(work: WorkDir, spec: ModelSpec) -> tuple[str, ...]:
    """A note where a tower's activations on the calibration pictures are too large for float16."""
    beyond: dict[str, float] = {}
    path = {stack.name: stack.path for stack in spec.stacks}
    for block in spec.blocks():
        if work.has(piece := store.largest_piece(block)):
            for name, value in work.load_json(piece).items():
                if value > LARGEST:
                    beyond[f"{path[block.stack]}.{block.index}{f'.{name}' if name else ''}"] = value
    if not beyond:
        return ()
    worst = sorted(beyond, key=lambda name: -beyond[name])[:NAMED]
    named = ", ".join(f"{name} ({beyond[name]:.3g})" for name in worst)
    return (f"activations of the vision tower beyond {LARGEST:.0f}, which float16 cannot hold: {named}; run it in bfloat16",)
