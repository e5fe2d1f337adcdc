"""torchao: int4 weights in groups with scales by HQQ, through transformers.

The layouts that pack two codes into a byte need an accelerator; on a processor codes are stored in int8. They are counted as
if they were packed.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
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


def nbytes(out: Path) -> int:
    """Of the files, with codes of half a byte."""
    total = 0
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                tensor = file.get_tensor(name)
                total += tensor.numel() * tensor.element_size() // (2 if name.endswith("qdata") else 1)
    return total


def load(out: Path) -> torch.nn.Module:
    """transformers, as the file says."""
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
