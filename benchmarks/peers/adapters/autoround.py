"""AutoRound (Intel): rounding by signed gradients, to nearest at iters=0, mixed schemes by AutoScheme."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound, AutoScheme
from auto_round.calib_dataset import register_dataset
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
    """Options: bits, group_size, sym, iters; avg_bits with schemes (AutoScheme); format; any other keyword of AutoRound."""
    options = dict(options)
    avg_bits, schemes = options.pop("avg_bits", None), options.pop("schemes", SCHEMES)
    form = options.pop("format", "auto_round")
    _register(ids)
    if avg_bits is None:
        scheme: Any = {
            "bits": options.pop("bits", 4),
            "group_size": options.pop("group_size", 128),
            "sym": options.pop("sym", True),
            "data_type": "int",
            "act_bits": 16,
        }
    else:
        scheme = AutoScheme(avg_bits=avg_bits, options=list(schemes), seqlen=min(ids.shape[1], 256))
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
        rounder.quantize_and_save(str(out), format=form)


def load(out: Path) -> torch.nn.Module:
    """transformers' AutoModelForCausalLM, which reads AutoRound's format with auto-round installed."""
    folder = next(out.rglob("config.json")).parent  # AutoRound adds a folder of its own
    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.bfloat16).eval()
