"""llm-compressor: GPTQ and AWQ into compressed-tensors, 4 bits, symmetric.

Groups of 128 are refused for rows of 576 ("columns % group_size == 0"), so the group is an option. Without an accelerator AWQ
stops in ``pin_memory`` ("Cannot access accelerator device when none is available"); there that call does nothing here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """One shot over ``ids`` [S, T]; the head is left out, as its recipes do."""
    if not torch.accelerator.is_available():
        torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[assignment]
    from datasets import Dataset
    from llmcompressor import oneshot

    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": options["group_size"]}
    groups = {"linears": {"targets": ["Linear"], "weights": args}}
    if options["method"] == "gptq":
        from llmcompressor.modifiers.quantization import GPTQModifier

        recipe: Any = GPTQModifier(config_groups=groups, ignore=["lm_head"])
    else:
        from llmcompressor.modifiers.awq import AWQModifier

        recipe = AWQModifier(config_groups=groups, ignore=["lm_head"])
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    oneshot(
        model=loaded,
        dataset=rows,
        recipe=recipe,
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
        output_dir=str(out),
    )


def load(out: Path) -> torch.nn.Module:
    """transformers with compressed-tensors."""
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
