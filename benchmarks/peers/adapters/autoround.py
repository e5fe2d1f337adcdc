"""AutoRound: round to nearest (iters 0), learned rounding (iters 200), and AutoScheme, which mixes 4 and 8 bits or more."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """Tune on ``ids`` [S, T] as they are and save in AutoRound's own format."""
    from auto_round import AutoRound, AutoScheme

    scheme: Any = "W4A16"
    if "avg_bits" in options:
        scheme = AutoScheme(avg_bits=options["avg_bits"], options=("W2A16", "W4A16", "W8A16"))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    tuner = AutoRound(
        loaded, AutoTokenizer.from_pretrained(model), scheme=scheme, iters=options["iters"], dataset=rows, seqlen=ids.shape[1],
        nsamples=len(ids), batch_size=8, device_map="cpu",
    )  # fmt: skip
    tuner.quantize_and_save(output_dir=str(out), format="auto_round")


def load(out: Path) -> torch.nn.Module:
    """transformers, with auto_round imported."""
    from auto_round import AutoRoundConfig  # noqa: F401

    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, device_map="cpu").eval()
