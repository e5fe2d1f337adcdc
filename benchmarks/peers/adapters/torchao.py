"""torchao: int4 weights in groups with zero points by HQQ, through transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, TorchAoConfig


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """No calibration."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    config = IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=PerGroup(options["group_size"]), intx_choose_qparams_algorithm="hqq_scale_only"
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, quantization_config=TorchAoConfig(config))
    loaded.save_pretrained(out)


def load(out: Path) -> torch.nn.Module:
    """transformers, as the file says."""
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
