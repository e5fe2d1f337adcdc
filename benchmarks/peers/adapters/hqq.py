"""HQQ: half-quadratic optimisation of zero points, without data, through transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, HqqConfig


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """No calibration."""
    config = HqqConfig(nbits=options["bits"], group_size=options["group_size"])
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )  # fmt: skip
    loaded.save_pretrained(out)


def load(out: Path) -> torch.nn.Module:
    """transformers, as the file says."""
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, device_map="cpu").eval()
