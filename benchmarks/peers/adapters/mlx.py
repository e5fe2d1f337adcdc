"""mlx-lm on a processor: to nearest, GPTQ, and dynamic_quant (4 bits, 5 where its sensitivities ask for them).

Its embedding stays in 16 bit, like everybody's here; its own default quantizes it too. mlx 0.32.4 multiplies at 8 GFLOP/s
on two AVX-512 cores (torch: about 200): methods with calibration get a part of the text and
calibrate in 32 bit, and files run decoded.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.utils import dequantize_model, quantize_model, save
from mlx_lm.utils import load as load_mlx
from torch import Tensor

GROUP = 64


class _Kept(nn.Embedding):
    """An embedding that no quantizer of mlx takes for a layer of its own."""

    @property
    def to_quantized(self) -> Any:
        raise AttributeError


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """Options: method plain, gptq or dynamic; bits of each weight on average for dynamic;
    sequences that calibrate."""
    loaded, tokenizer, config = load_mlx(str(model), return_config=True)
    data = mx.array(ids.numpy().astype(np.int32))
    _keep_embeddings(loaded)
    if options["method"] != "plain":
        data = data[: options["sequences"]]
        loaded.set_dtype(mx.float32)
    if options["method"] == "gptq":
        loaded, chosen = gptq_quantize(loaded, data, 4, GROUP, 8, GROUP)
        config["quantization"] = config["quantization_config"] = chosen
    else:
        predicate = _dynamic(loaded, data, options["bits"]) if options["method"] == "dynamic" else _plain
        loaded, config = quantize_model(loaded, config, group_size=GROUP, bits=4, quant_predicate=predicate)
    loaded.set_dtype(mx.bfloat16)
    save(str(out), str(model), loaded, tokenizer, config)


def _keep_embeddings(model: nn.Module) -> None:
    for _, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.__class__ = _Kept


def _plain(path: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized")


def _dynamic(model: nn.Module, data: mx.array, bits: float) -> Any:
    sensitivities = dict(estimate_sensitivities(model, data, 4, GROUP, 5, GROUP))
    sizes = {name: value.size for name, value in tree_flatten(model.parameters())}
    linear = sum(size for name, size in sizes.items() if name.removesuffix(".weight") in sensitivities)
    whole = (bits * linear + 16 * (sum(sizes.values()) - linear)) / sum(sizes.values())
    threshold = estimate_threshold(model, sensitivities, whole, 4, GROUP, 5, GROUP)

    def predicate(path: str, module: nn.Module) -> Any:
        if not hasattr(module, "to_quantized"):
            return False
        return {"bits": 5, "group_size": GROUP} if sensitivities[path] > threshold else True

    return predicate


def load(out: Path) -> Any:
    """mlx-lm, called like a model of transformers."""
    model, _ = load_mlx(str(out))
    model = dequantize_model(model)
    model.set_dtype(mx.float32)

    def run(ids: Tensor) -> Any:
        logits = model(mx.array(ids.numpy().astype(np.int32))).astype(mx.float32)
        return SimpleNamespace(logits=torch.from_numpy(np.array(logits)))

    return run
