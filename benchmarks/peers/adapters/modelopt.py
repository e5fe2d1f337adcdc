"""NVIDIA ModelOpt: auto_quantize over int4 groups, int8 rows and no quantization, weights alone.

It is kept with its quantizers by ModelOpt's own checkpointing, which stores 16-bit weights, so that bytes are counted from the
formats that it chose.
"""

import copy
import json
from math import prod
from pathlib import Path
from typing import Any

import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

mto.enable_huggingface_checkpointing()


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """Options: bits of each weight of the blocks (its own count, without scales) and the group of int4.

    Its budget counts the head too, which stays in 16 bit here as in its recipes.
    """
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    int4, int8 = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG), copy.deepcopy(mtq.INT8_WEIGHT_ONLY_CFG)
    for entry in int4["quant_cfg"]:
        if "block_sizes" in (entry.get("cfg") or {}):
            entry["cfg"]["block_sizes"] = {-1: options["group_size"]}
    linears = [module.weight for module in loaded.modules() if isinstance(module, torch.nn.Linear)]
    head, every = loaded.lm_head.weight.numel(), sum(weight.numel() for weight in linears)
    searched, _ = mtq.auto_quantize(
        loaded,
        {"effective_bits": (options["bits"] * (every - head) + 16 * head) / every},
        [int4, int8],
        data_loader=list(ids[:, None]),
        forward_step=lambda m, batch: m(batch, labels=batch),
        loss_func=lambda output, batch: output.loss,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(ids),
        num_score_steps=len(ids),
    )
    searched.save_pretrained(out)
    (out / "nbytes.json").write_text(json.dumps(_counted(searched, options["group_size"])))


def _counted(model: torch.nn.Module, group_size: int) -> int:
    """Codes, 16-bit scales of groups and rows, and everything else in 16 bit; a tied head once."""
    total = sum(2 * p.numel() for p in model.parameters())
    for module in model.modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is None or not quantizer.is_enabled:
            continue
        rows, entries = module.weight.shape[0], prod(module.weight.shape)
        scales = entries // group_size if quantizer.num_bits == 4 else rows
        total += entries * quantizer.num_bits // 8 + 2 * scales - 2 * entries
    return total


def nbytes(out: Path) -> int:
    """As counted when it was made."""
    return int(json.loads((out / "nbytes.json").read_text()))


def load(out: Path) -> torch.nn.Module:
    """transformers with ModelOpt's quantizers."""
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
