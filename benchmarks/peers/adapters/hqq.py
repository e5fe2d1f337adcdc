"""HQQ: half-quadratic optimisation of zero points, without data.

Its files in safetensors are not read back by hqq 0.2.8 (which looks for a pickle) nor by transformers 5.23 (not available
yet), so that ``load`` quantizes again with the same options; there is nothing random in it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """No calibration."""
    from hqq.models.hf.base import AutoHQQHFModel

    loaded = _quantized(model, options)
    if loaded.config.tie_word_embeddings:  # safetensors refuses shared memory
        loaded.lm_head.weight = torch.nn.Parameter(loaded.lm_head.weight.clone(), requires_grad=False)
    AutoHQQHFModel.save_to_safetensors(loaded, str(out))
    (out / "again.json").write_text(json.dumps({"model": str(model), "options": options}))


def load(out: Path) -> torch.nn.Module:
    """The same quantization again."""
    again = json.loads((out / "again.json").read_text())
    return _quantized(Path(again["model"]), again["options"]).eval()


def _quantized(model: Path, options: dict[str, Any]) -> torch.nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    config = BaseQuantizeConfig(nbits=options["bits"], group_size=options["group_size"])
    AutoHQQHFModel.quantize_model(loaded, quant_config=config, compute_dtype=torch.bfloat16, device="cpu")
    return loaded
