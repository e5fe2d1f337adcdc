"""HQQ: half-quadratic optimisation of zero points, without data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """No calibration."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    config = BaseQuantizeConfig(nbits=options["bits"], group_size=options["group_size"])
    AutoHQQHFModel.quantize_model(loaded, quant_config=config, compute_dtype=torch.bfloat16, device="cpu")
    if loaded.config.tie_word_embeddings:  # safetensors refuses shared memory
        loaded.lm_head.weight = torch.nn.Parameter(loaded.lm_head.weight.clone(), requires_grad=False)
    AutoHQQHFModel.save_to_safetensors(loaded, str(out))


def load(out: Path) -> torch.nn.Module:
    """hqq's own loader."""
    from hqq.models.hf.base import AutoHQQHFModel

    return AutoHQQHFModel.from_quantized(str(out), compute_dtype=torch.bfloat16, device="cpu").eval()
