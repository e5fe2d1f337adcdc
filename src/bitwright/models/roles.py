"""What each parameter of a model is for: read off the modules that own them."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bitwright.errors import fail
from bitwright.models.spec import PROJECTOR, TEXT, VOCABULARY, BlockId, Kept, Kind, ModelSpec, Role, Stack, View, Weight


def describe(model: Any, stacks: tuple[Stack, ...], vocabulary: frozenset[Kind]) -> ModelSpec:
    """All parameters of ``model``.

    Matrices of the blocks are weights, and linears between stacks; so are embedding and head where their kind is in
    ``vocabulary``. Raises BitwrightError for a parameter of a block that is not understood (fused experts).
    """
    weights: list[Weight] = []
    kept: list[Kept] = []
    seen: dict[int, str] = {}
    ends = _ends(model)
    parts = _parts(model, stacks)
    after = BlockId(stacks[-1].name, stacks[-1].n_blocks)
    for name, owner, parameter in _parameters(model):
        shape, nbytes = tuple(parameter.shape), parameter.numel() * 2
        block, kind = _block_of(name, stacks), ends.get(name)
        group = block.stack if block else VOCABULARY if kind else _part_of(name, parts)
        if id(parameter) in seen:
            role = Role.HEAD if kind else _role(name, owner, parameter, model, block)
            kept.append(Kept(name, shape, role, nbytes, seen[id(parameter)], group))
            continue
        seen[id(parameter)] = name
        if block and name.endswith(".weight") and (type(owner) is nn.Linear or isinstance(owner, Conv1D)):
            view = View(transposed=isinstance(owner, Conv1D))
            n_rows, n_cols = view.matrix(parameter).shape
            weights.append(Weight(name, block, n_rows, n_cols, nbytes, Kind.LINEAR, view))
        elif kind in vocabulary:
            weights.append(Weight(name, after, shape[0], shape[1], nbytes, kind))
        elif not kind and len(stacks) > 1 and _is_between(name, owner):
            weights.append(Weight(name, BlockId(PROJECTOR, 0), shape[0], shape[1], nbytes))
        else:
            kept.append(Kept(name, shape, _role(name, owner, parameter, model, block), nbytes, group=group))
    return ModelSpec(type(model).__name__, stacks, tuple(weights), tuple(kept))


def _is_between(name: str, owner: nn.Module) -> bool:
    """Whether ``name`` is the weight of a linear that lies behind a tower. One that embeds patches lies before."""
    return type(owner) is nn.Linear and name.endswith(".weight") and "embed" not in name


def _parts(model: Any, stacks: tuple[Stack, ...]) -> dict[str, str]:
    """Path of the model that a stack belongs to -> the stack's name."""
    models = [path for path, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    return {max((m for m in models if s.path.startswith(f"{m}." if m else "")), key=len): s.name for s in reversed(stacks)}


def _part_of(name: str, parts: dict[str, str]) -> str:
    """The part of the model that a parameter outside the blocks belongs to; between the parts, and in text models the text."""
    if len(parts) == 1:
        return TEXT
    inside = [path for path in parts if name.startswith(f"{path}.")]
    return parts[max(inside, key=len)] if inside else PROJECTOR


def with_buffers(spec: ModelSpec, model: Any, stored: Container[str]) -> ModelSpec:
    """``spec`` and the buffers of ``model`` that a checkpoint stores, which are among ``stored``."""
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in stored]
    parts = _parts(model, spec.stacks)
    kept = tuple(
        Kept(name, tuple(buffer.shape), Role.BUFFER, buffer.numel() * 2, group=_part_of(name, parts))
        for name, buffer in buffers
    )
    return replace(spec, kept=spec.kept + kept)


def _parameters(model: Any) -> Iterable[tuple[str, nn.Module, nn.Parameter]]:
    for path, owner in model.named_modules():
        for short, parameter in owner.named_parameters(recurse=False):
            yield (f"{path}.{short}" if path else short), owner, parameter


def _block_of(name: str, stacks: tuple[Stack, ...]) -> BlockId | None:
    for stack in stacks:
        if name.startswith(stack.path + "."):
            return BlockId(stack.name, int(name[len(stack.path) + 1 :].split(".")[0]))
    return None


def _ends(model: Any) -> dict[str, Kind]:
    """Parameter name -> kind, for the weights of input embedding and output head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    names = {id(module): path for path, module in model.named_modules()}
    found = {f"{names[id(embedding)]}.weight": Kind.TIED if tied else Kind.EMBEDDING}
    if head is not None:
        found[f"{names[id(head)]}.weight"] = Kind.TIED if tied else Kind.HEAD
    return found


def _role(name: str, owner: nn.Module, parameter: Tensor, model: Any, block: BlockId | None) -> Role:
    """Why ``parameter`` is kept; refuses what it cannot tell."""
    if owner is model.get_output_embeddings():
        return Role.HEAD
    if isinstance(owner, nn.Embedding):
        return Role.EMBEDDING
    if parameter.dim() <= 1:
        return Role.BIAS if isinstance(owner, nn.Linear | Conv1D) else Role.NORM
    if block is None:
        convolves = isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return Role.OUTSIDE if isinstance(owner, nn.Linear | Conv1D) else Role.CONVOLUTION if convolves else Role.RAW
    kind = "fused expert weights" if parameter.dim() == 3 else f"a parameter of {type(owner).__name__}"
    raise fail(
        "model/not-understood",
        name,
        saw=f"{kind}, shape {list(parameter.shape)}, {2 * parameter.numel() / 1e6:.1f} MB in 16 bit",
        wanted="every matrix inside a block is an nn.Linear or Conv1D",
        help="this architecture is not supported yet; nothing was quantized",
    )
