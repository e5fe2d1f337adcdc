"""AutoRound (Intel): rounding by signed gradients, to nearest at iters=0, mixed schemes by AutoScheme.

Its files with groups of 128 do not run for rows of 576 (the backend that it then picks stops with "unsupported operand type(s)
for +: 'NoneType' and 'str'"), so the group is an option.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound, AutoScheme
from auto_round.calib_dataset import register_dataset
from auto_round.schemes import preset_name_to_scheme
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

SCHEMES = ("W2A16", "W4A16", "W8A16")
CALIBRATION = "harness-ids"


def _tokenizer(model: Path) -> Any:
    """The checkpoint's tokenizer, or an empty one: the calibration is in ids already."""
    if any(model.glob("tokenizer*")):
        return AutoTokenizer.from_pretrained(model)
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))


def _register(ids: Tensor) -> None:
    """Makes `ids` a calibration set of AutoRound's registry: AutoScheme takes only the name of one."""

    @register_dataset(CALIBRATION)
    def _ids(*_args: Any, **_kwargs: Any) -> Dataset:
        return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """Options: group_size; avg_bits for AutoScheme over 2, 4 and 8 bits, else 4 bits; any other keyword of AutoRound."""
    options = dict(options)
    avg_bits, group_size = options.pop("avg_bits", None), options.pop("group_size")
    _register(ids)
    schemes = [replace(preset_name_to_scheme(name), group_size=group_size) for name in SCHEMES]
    scheme: Any = schemes[1]
    if avg_bits is not None:
        scheme = AutoScheme(avg_bits=avg_bits, options=schemes, seqlen=ids.shape[1])
    with tempfile.TemporaryDirectory() as scores:
        os.environ["AR_AUTO_SCHEME_CACHE"] = scores  # scores kept from another calibration set must not be taken
        rounder = AutoRound(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
            _tokenizer(model),
            scheme=scheme,
            dataset=CALIBRATION,
            nsamples=ids.shape[0],
            seqlen=ids.shape[1],
            device_map="cpu",
            **options,
        )
        rounder.quantize_and_save(str(out), format="auto_round")


def load(out: Path) -> torch.nn.Module:
    """transformers' AutoModelForCausalLM, which reads AutoRound's format with auto-round installed."""
    folder = next(out.rglob("config.json")).parent  # AutoRound adds a folder of its own
    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.bfloat16).eval()
