"""optimum-quanto: qint4 weights, rounded to nearest in groups of 128."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """No calibration; the head stays in 16 bit."""
    import json

    from optimum.quanto import freeze, qint4, quantization_map
    from optimum.quanto import quantize as quantize_module
    from safetensors.torch import save_file

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    quantize_module(loaded, weights=qint4, exclude="lm_head")
    freeze(loaded)
    out.mkdir(parents=True)
    loaded.config.save_pretrained(out)
    tied = {"lm_head.weight"} if loaded.config.tie_word_embeddings else set()
    tensors = {name: value.contiguous() for name, value in loaded.state_dict().items() if name not in tied}
    save_file(tensors, out / "model.safetensors")
    (out / "quanto.json").write_text(json.dumps(quantization_map(loaded)))


def load(out: Path) -> torch.nn.Module:
    """quanto's requantize, from the map and the tensors it saved."""
    import json

    from optimum.quanto import requantize
    from safetensors.torch import load_file
    from transformers import AutoConfig

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out), dtype=torch.bfloat16)
    tensors = load_file(out / "model.safetensors")
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    requantize(model, tensors, json.loads((out / "quanto.json").read_text()), device=torch.device("cpu"))
    return model.eval()
