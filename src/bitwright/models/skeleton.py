"""The model's own transformers class without its weights: read for structure, filled block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.errors import fail
from bitwright.models.spec import EMBEDDING, HEAD, TIED, Kept, ModelSpec, Weight

VOCABULARY = "vocabulary: "  # before the kind, in the role of a weight whose rows are tokens


@dataclass
class Skeleton:
    """A transformers model whose parameters are on the meta device until ``filled`` puts values there."""

    checkpoint: Checkpoint
    model: Any  # a transformers model; its attributes differ by class
    blocks: nn.ModuleList
    block_path: str
    spec: ModelSpec
    stored_name: dict[str, str] = field(repr=False)  # parameter name -> tensor name in the checkpoint
    _empty: dict[tuple[str, str], nn.Parameter] = field(default_factory=dict, repr=False)

    def read(self, parameter: str) -> Tensor:
        """The values of one parameter as stored; floating-point sources wider than 16 bit are rounded to bfloat16."""
        tensor = self.checkpoint.read(self.stored_name[parameter])
        return tensor.to(torch.bfloat16) if tensor.dtype in (torch.float32, torch.float64) else tensor

    @contextmanager
    def filled(self, prefix: str, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
        """The module at ``prefix`` with its weights on ``device``; they are released at the end."""
        module = self.model.get_submodule(prefix)
        empty: list[tuple[nn.Module, str, nn.Parameter]] = []
        for path, owner in module.named_modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                full = ".".join(part for part in (prefix, path, name) if part)
                value = self.read(full).to(device=device, dtype=dtype)
                empty.append((owner, name, parameter))
                owner._parameters[name] = nn.Parameter(value, requires_grad=False)
        try:
            yield module
        finally:
            for owner, name, parameter in empty:
                owner._parameters[name] = parameter

    def fill_rest(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put values into everything outside the blocks (embeddings, final norm, head) until ``release_rest``."""
        values: dict[int, nn.Parameter] = {}
        for path, owner in self.model.named_modules():
            if path == self.block_path or path.startswith(self.block_path + "."):
                continue
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if id(parameter) not in values:
                    full = f"{path}.{name}" if path else name
                    value = self.read(full).to(device=device, dtype=dtype)
                    values[id(parameter)] = nn.Parameter(value, requires_grad=False)
                self._empty.setdefault((path, name), parameter)
                owner._parameters[name] = values[id(parameter)]
        for owner in self.model.modules():
            for name, buffer in list(owner.named_buffers(recurse=False)):
                owner._buffers[name] = buffer.to(device)

    def release_rest(self) -> None:
        """Undo ``fill_rest``."""
        for (path, name), parameter in self._empty.items():
            self.model.get_submodule(path)._parameters[name] = parameter
        self._empty.clear()


def build_skeleton(checkpoint: Checkpoint, trust_remote_code: bool = False, vocabulary: bool = False) -> Skeleton:
    """Instantiate the class that the config names, without weights, and account for every parameter.

    With ``vocabulary`` embedding and head are weights to be quantized, otherwise they are kept.

    Raises BitwrightError for a class without decoder blocks, a parameter that is not understood (fused experts), a parameter
    without a tensor, or a tensor without a parameter.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=trust_remote_code)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise fail(
            "model/class",
            checkpoint.directory / "config.json",
            saw=str(error).strip().splitlines()[0],
            wanted="a decoder-only model class of transformers",
            help="if the model brings its own code and you trust it: --trust-remote-code",
        ) from error
    model.tie_weights()
    model.eval().requires_grad_(False)
    path, blocks = _find_blocks(checkpoint, model, config.get_text_config().num_hidden_layers)
    roles = _roles(model, path)
    if vocabulary:
        roles |= _vocabulary(model)
    stored = _match_names(checkpoint, model)
    spec = _describe(model, path, roles)
    return Skeleton(checkpoint, model, blocks, path, spec, stored)


def _find_blocks(checkpoint: Checkpoint, model: Any, n_blocks: int) -> tuple[str, nn.ModuleList]:
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_blocks:
            return path, module
    raise fail(
        "model/blocks",
        checkpoint.directory / "config.json",
        saw=f"{type(model).__name__} has no list of {n_blocks} blocks",
        wanted="a stack of decoder blocks",
        help="only decoder-only text models can be measured so far",
    )


def _match_names(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """Parameter name -> tensor name; the base model's prefix may be absent or extra, tied parameters share a tensor."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    stored: dict[str, str] = {}
    by_identity: dict[int, str] = {}
    pending = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found = next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in checkpoint.refs), None)
        if found is None:
            pending.append((name, parameter))
            continue
        stored[name] = by_identity[id(parameter)] = found
        saw, wanted = checkpoint.refs[found].shape, tuple(parameter.shape)
        if saw != wanted:
            raise fail(
                "model/shape",
                found,
                saw=f"shape {list(saw)}",
                wanted=f"config.json asks for shape {list(wanted)}",
                help="use the config.json that belongs to these weights",
            )
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
    _require_claimed(checkpoint, model, set(stored.values()), prefix)
    return stored


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


def _roles(model: Any, path: str) -> dict[str, str]:
    """Parameter name -> "weight" for what can be quantized, else the role of what is kept; refuses what it cannot tell."""
    roles: dict[str, str] = {}
    head = model.get_output_embeddings()
    for owner_path, owner in model.named_modules():
        for short, parameter in owner.named_parameters(recurse=False):
            name = f"{owner_path}.{short}" if owner_path else short
            in_block = name.startswith(path + ".")
            if in_block and short == "weight" and (type(owner) is nn.Linear or isinstance(owner, Conv1D)):
                roles[name] = "weight"
                continue
            role = _role_of_kept(owner, parameter, owner is head, in_block)
            if role is None:
                kind = "fused expert weights" if parameter.dim() == 3 else f"a parameter of {type(owner).__name__}"
                raise fail(
                    "model/not-understood",
                    name,
                    saw=f"{kind}, shape {list(parameter.shape)}, {2 * parameter.numel() / 1e6:.1f} MB in 16 bit",
                    wanted="every matrix inside a block is an nn.Linear or Conv1D",
                    help="this architecture is not supported yet; nothing was quantized",
                )
            roles[name] = role
    return roles


def _vocabulary(model: Any) -> dict[str, str]:
    """Parameter name -> kind, for the weights of input embedding and output head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    names = {id(module): path for path, module in model.named_modules()}
    found = {f"{names[id(embedding)]}.weight": VOCABULARY + (TIED if tied else EMBEDDING)}
    if head is not None:
        found[f"{names[id(head)]}.weight"] = VOCABULARY + (TIED if tied else HEAD)
    return found


def _describe(model: Any, path: str, roles: dict[str, str]) -> ModelSpec:
    weights: list[Weight] = []
    kept: list[Kept] = []
    seen: dict[int, str] = {}
    for name, role in roles.items():
        parameter = model.get_parameter(name)
        shape, nbytes = tuple(parameter.shape), parameter.numel() * 2
        if role.startswith(VOCABULARY) and id(parameter) not in seen:
            kind = role.removeprefix(VOCABULARY)
            weights.append(Weight(name, len(model.get_submodule(path)), shape[0], shape[1], False, nbytes, kind))
            seen[id(parameter)] = name
        elif role == "weight":
            transposed = isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D)
            n_rows, n_cols = (shape[1], shape[0]) if transposed else shape
            block = int(name[len(path) + 1 :].split(".")[0])
            weights.append(Weight(name, block, n_rows, n_cols, transposed, nbytes))
        else:
            role = "head" if role.startswith(VOCABULARY) else role  # of a head that shares the embedding's values
            kept.append(Kept(name, shape, role, nbytes, seen.get(id(parameter))))
            seen.setdefault(id(parameter), name)
    return ModelSpec(type(model).__name__, len(model.get_submodule(path)), tuple(weights), tuple(kept))


def _role_of_kept(owner: nn.Module, parameter: nn.Parameter, is_head: bool, in_block: bool) -> str | None:
    if is_head:
        return "head"
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if parameter.dim() <= 1:
        return "bias" if isinstance(owner, nn.Linear | Conv1D) else "norm"
    return None if in_block or not isinstance(owner, nn.Linear | Conv1D) else "outside"
