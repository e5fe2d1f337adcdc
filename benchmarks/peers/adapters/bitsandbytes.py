"""bitsandbytes through transformers: NF4 and FP4 in blocks of 64, rounded to nearest while loading."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """No calibration; ``options`` name the levels and whether scales are quantized too."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options["quant_type"],
        bnb_4bit_use_double_quant=options["double_quant"],
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, quantization_config=config).save_pretrained(out)


def load(out: Path) -> torch.nn.Module:
    """transformers, as the file says."""
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
