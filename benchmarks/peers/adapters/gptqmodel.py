"""GPTQModel: GPTQ into its own layout.

On two cores it stops with "requests 2 workers but parent 'cpu' only has 1" unless the number of workers is set."""

import os
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

from gptqmodel import GPTQModel, QuantizeConfig
from torch import Tensor


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """Options: the group size."""
    config = QuantizeConfig(bits=4, group_size=options["group_size"])
    loaded = GPTQModel.load(str(model), config, device="cpu")
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    loaded.quantize(rows, batch_size=1)
    loaded.save(str(out))


def load(out: Path) -> torch.nn.Module:
    """GPTQModel, as the file says."""
    return GPTQModel.load(str(out), device="cpu").model.eval()
