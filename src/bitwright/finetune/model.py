"""A model for training: each linear of its blocks frozen as it is stored, with a low-rank change beside it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.pytorch_utils import Conv1D

from bitwright.errors import fail
from bitwright.finetune.quant_linear import QuantLinear
from bitwright.finetune.weights import FrozenWeight, PackedWeight, PlainWeight
from bitwright.formats.base import Packed
from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.models.open import auto_class
from bitwright.models.stacks import stacks_of


def load(path: Path, device: torch.device, work: torch.dtype) -> Any:
    """The model at ``path`` as stock transformers loads it, with ``work`` as the type of what is computed. Frozen."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model.requires_grad_(False)
    model.config.use_cache = False
    embedding = model.get_input_embeddings()
    for module in model.modules():
        stays = module is embedding or module is model.get_output_embeddings() or isinstance(module, (nn.Linear, Conv1D))
        if not stays:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.data.to(work), requires_grad=False))
    embedding.register_forward_hook(lambda _, args, rows: rows.to(work).requires_grad_(torch.is_grad_enabled()))
    return model.to(device)


def adapt(model: Any, targets: tuple[str, ...], rank: int, alpha: float, rslora: bool) -> list[str]:
    """Put a QuantLinear in the place of the head and of every linear of the blocks; those of the latter whose name matches one
    of ``targets`` are trained.

    The names of these. Raises BitwrightError where none matches.
    """
    prefixes = tuple(f"{stack.path}." for stack in stacks_of(model, model.config))
    linear = (nn.Linear, Conv1D)
    found = [(n, module) for n, module in model.named_modules() if n.startswith(prefixes) and isinstance(module, linear)]
    trained = [name for name, _ in found if any(fnmatchcase(name, f"*{target}") for target in targets)]
    if not trained:
        raise fail(
            "finetune/targets",
            "--targets",
            saw=f"no linear is called {', '.join(targets)}",
            wanted=f"names such as {', '.join(sorted({name.rpartition('.')[2] for name, _ in found}))}",
            help="--targets '*'",
        )
    for name, module in found:
        own = rank if name in set(trained) else 0
        bias = None if module.bias is None else module.bias.data
        layer = QuantLinear(frozen(module), bias, own, alpha, rslora).to(module.weight.device)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, layer)
    model.set_output_embeddings(as_it_is(model.get_output_embeddings()))
    model.is_quantized, model.hf_quantizer = False, None  # what transformers' Trainer would refuse is gone
    return trained


def as_it_is(module: Any) -> QuantLinear:
    """A linear layer without anything that is trained."""
    return QuantLinear(frozen(module), None if module.bias is None else module.bias.data)


def frozen(module: Any) -> FrozenWeight:
    """The weight of a linear layer: the codes that bitsandbytes holds, or its values."""
    if isinstance(module, Conv1D):
        return PlainWeight(module.weight.data.t())
    if not isinstance(module, Linear4bit):
        return PlainWeight(module.weight.data)
    state = module.weight.quant_state
    name = f"{state.quant_type}-b{state.blocksize}" + ("-dq" if state.nested else "")
    tensors: dict[str, Tensor] = {"code": module.weight.data.reshape(-1)}
    if state.nested:
        offset = torch.tensor([float(state.offset)], dtype=torch.float64)
        tensors |= {"scale_code": state.absmax, "nested_scale": state.state2.absmax, "offset": offset}
    else:
        tensors["scale"] = state.absmax
    return PackedWeight(Packed(BLOCK_FORMATS[name], tuple(state.shape), tensors))


def head_of(model: Any) -> tuple[FrozenWeight, float, float]:
    """The output head, the factor of its logits, and their cap; 1 and 0 where the class has none."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    head = model.get_output_embeddings()
    weight = head.weight if isinstance(head, QuantLinear) else frozen(head)
    return weight, float(scale), float(getattr(config, "final_logit_softcapping", None) or 0.0)


def ends_of(path: Path, tokenizer: Any) -> set[int]:
    """The tokens that end a turn or a text, by the tokenizer and generation_config.json, where there is one."""
    try:
        known = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        known = None
    ends = known if isinstance(known, list) else [known]
    return {int(end) for end in (*ends, tokenizer.eos_token_id) if end is not None}


def require_trainable(path: Path) -> None:
    """Raise BitwrightError unless the model at ``path`` is one for text, in 16 bit or in 4 bits of bitsandbytes."""
    config = AutoConfig.from_pretrained(path)
    if auto_class(config) is not AutoModelForCausalLM:
        raise fail(
            "finetune/model",
            path,
            saw=f"{type(config).__name__}, a model that takes images",
            wanted="a text model; towers are not trained yet",
            help="name a text model",
        )
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    if stated.get("quant_method") == "bitsandbytes" and stated.get("load_in_4bit"):
        return
    raise fail(
        "finetune/model",
        path,
        saw=f"a checkpoint quantized by {stated.get('quant_method')}",
        wanted="a 16-bit model, or bitsandbytes in 4 bits",
        help="bitwright quantize SOURCE OUT writes one",
    )
