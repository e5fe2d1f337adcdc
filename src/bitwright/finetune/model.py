"""A model for training: each linear of its blocks frozen as it is stored, with a low-rank change beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig
from transformers.pytorch_utils import Conv1D

from bitwright.errors import fail
from bitwright.finetune.loss import Head
from bitwright.finetune.quant_linear import QuantLinear
from bitwright.finetune.weights import FrozenWeight, PackedWeight, PlainWeight
from bitwright.formats.base import Packed
from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.models.logits import LogitRule
from bitwright.models.open import auto_class
from bitwright.models.spec import PROJECTOR, TEXT, Stack
from bitwright.models.stacks import stacks_of

HEAD_TOLERANCE = 0.05  # relative, between two ways to the same logits: 16-bit arithmetic
LINEAR = (nn.Linear, Linear4bit, Conv1D, QuantLinear)


def load(path: Path, device: torch.device, work: torch.dtype) -> Any:
    """The model at ``path`` as stock transformers loads it, with ``work`` as the type of what is computed. Frozen."""
    model: Any = auto_class(AutoConfig.from_pretrained(path)).from_pretrained(path, dtype=torch.bfloat16)
    model.requires_grad_(False)
    model.config.get_text_config().use_cache = False
    embedding, ends = model.get_input_embeddings(), (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        if module not in ends and type(module) not in LINEAR:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.data.to(work), requires_grad=False))
    embedding.register_forward_hook(lambda _, args, rows: rows.to(work))
    for stack in stacks_of(model, model.config):
        blocks = model.get_submodule(stack.path)
        blocks[0].register_forward_pre_hook(_as_leaf(blocks), with_kwargs=True)
    return model.to(device)


def _as_leaf(blocks: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """A hook of the first of ``blocks``: its input takes a gradient where any of them is trained, without which a block that is
    run again in the backward pass gives none."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if torch.is_grad_enabled() and not states.requires_grad and any(p.requires_grad for p in blocks.parameters()):
            states.requires_grad_(True)

    return hook


def adapt(
    model: Any, targets: tuple[str, ...], rank: int, alpha: float, rslora: bool, parts: tuple[str, ...] = (TEXT,)
) -> list[str]:
    """Put a QuantLinear in the place of every linear; those of ``parts`` whose name matches one of ``targets`` are trained.

    ``parts``: text, vision (all towers), projector. The names of what is trained. Raises BitwrightError where none matches.
    """
    stacks, head = stacks_of(model, model.config), model.get_output_embeddings()
    found = [(name, module) for name, module in model.named_modules() if type(module) in LINEAR and module is not head]
    own = {name: part_of(name, stacks) for name, _ in found}
    chosen = of_parts(own, parts)
    trained = set(matching(chosen, targets))
    device = model.get_input_embeddings().weight.device
    for name, module in found:
        bias = None if module.bias is None else module.bias.data
        layer = QuantLinear(frozen(module), bias, rank if name in trained else 0, alpha, rslora)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, layer.to(device))
    model.set_output_embeddings(as_it_is(head))
    model.is_quantized, model.hf_quantizer = False, None  # what transformers' Trainer would refuse is gone
    return [name for name in chosen if name in trained]


def of_parts(own: Mapping[str, str], parts: tuple[str, ...]) -> list[str]:
    """The linears of ``own``, each with the part that it belongs to, that are of ``parts``. Raises BitwrightError for none."""
    if found := [name for name, part in own.items() if part in parts]:
        return found
    known = sorted({part for part in own.values() if part})
    raise fail("finetune/parts", "--train", saw=",".join(parts), wanted=f"of {', '.join(known)}", help=f"--train {TEXT}")


def matching(names: Sequence[str], targets: tuple[str, ...]) -> list[str]:
    """Those of the linears ``names`` that one of ``targets`` stands for. Raises BitwrightError where none does."""
    found = [name for name in names if any(fnmatchcase(name, f"*{target}") for target in targets)]
    if not found:
        raise fail(
            "finetune/targets",
            "--targets",
            saw=f"no linear is called {', '.join(targets)}",
            wanted=f"names such as {', '.join(sorted({name.rpartition('.')[2] for name in names}))}",
            help="--targets '*'",
        )
    return found


def require_loadable(names: Sequence[str], model_type: str) -> None:
    """Raise BitwrightError where PEFT takes linears among ``names`` for experts of a mixture, and would load nothing into them.

    Source: _convert_peft_config_moe in peft/utils/transformers_weight_conversion.py, which goes by the ends of names.
    """
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:  # older ones convert nothing
        return
    kind = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {}).get(model_type, "")
    experts = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {}).get(kind, {})
    if taken := sorted({name for name in names if name.rpartition(".")[2] in experts}):
        left = sorted({name.rpartition(".")[2] for name in names} - set(experts))
        raise fail(
            "finetune/experts",
            "--targets",
            saw=f"{taken[0]}, which PEFT takes for an expert's in a model of this type",
            wanted="linears that PEFT loads an adapter into",
            help=f"--targets {','.join(left)}" if left else "--method qat trains the codes themselves",
        )


def part_of(name: str, stacks: Sequence[Stack]) -> str:
    """Which part of a model the linear ``name`` belongs to; none where it embeds patches, and outside a text model's blocks."""
    stack = next((stack for stack in stacks if name.startswith(f"{stack.path}.")), None)
    if stack is not None:
        return stack.name.partition("-")[0]
    return PROJECTOR if len(stacks) > 1 and "embed" not in name else ""


def as_it_is(module: Any) -> QuantLinear:
    """A linear layer without anything that is trained."""
    return QuantLinear(frozen(module), None if module.bias is None else module.bias.data)


def frozen(module: Any) -> FrozenWeight:
    """The weight of a linear layer: the codes that bitsandbytes holds, or its values."""
    if isinstance(module, QuantLinear):
        return module.weight
    if isinstance(module, Conv1D):
        return PlainWeight(module.weight.data.t())
    if not isinstance(module, Linear4bit):
        return PlainWeight(module.weight.data)
    state = module.weight.quant_state
    name = f"{state.quant_type}-b{state.blocksize}" + ("-dq" if state.nested else "")
    codes = module.weight.data.reshape(-1).view(torch.uint8)  # whatever type a checkpoint keeps them as (FSDP: bfloat16)
    tensors: dict[str, Tensor] = {"code": codes}
    if state.nested:
        offset = torch.tensor([float(state.offset)], dtype=torch.float64)
        tensors |= {"scale_code": state.absmax, "nested_scale": state.state2.absmax, "offset": offset}
    else:
        tensors["scale"] = state.absmax
    return PackedWeight(Packed(BLOCK_FORMATS[name], tuple(state.shape), tensors))


def head_of(model: Any) -> Head:
    """The output head, with what the class makes of its products."""
    head = model.get_output_embeddings()
    return Head(frozen(head), getattr(head, "bias", None), LogitRule.of(model.config))


@torch.no_grad()
def require_known_head(model: Any) -> None:
    """Raise BitwrightError unless the logits that our loss makes are those of the class, on two tokens."""
    ids = torch.tensor([[1, 2]], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    wanted = model(input_ids=ids, use_cache=False).logits[0].float()
    found = head_of(model).logits(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    model.train(was_training)
    if not bool((found - wanted).norm() <= HEAD_TOLERANCE * wanted.norm()):
        raise fail(
            "finetune/head",
            model.config.model_type,
            saw="logits that are more than a product, a factor and a cap",
            wanted="an output head whose logits can be made some tokens at a time",
            help="this class cannot be trained here yet",
        )


def ends_of(path: Path, tokenizer: Any) -> set[int]:
    """The tokens that end a turn or a text, by the tokenizer and generation_config.json, where there is one."""
    try:
        known = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        known = None
    ends = known if isinstance(known, list) else [known]
    return {int(end) for end in (*ends, tokenizer.eos_token_id) if end is not None}


def require_trainable(path: Path) -> None:
    """Raise BitwrightError unless the model at ``path`` is in 16 bit, or in 4 bits of bitsandbytes."""
    stated = getattr(AutoConfig.from_pretrained(path), "quantization_config", None)
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
