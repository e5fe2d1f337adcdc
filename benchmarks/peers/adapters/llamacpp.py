"""llama.cpp: its recipe of types, its encoders with an importance matrix of the calibration text, run by llama.cpp."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.llama_cpp_files import LLAMA_CPP, importance_matrix, llama_cpp_codes, plan_of
from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.gguf.container import GGUF, recipe_of
from bitwright.models.open import open_model
from bitwright.runtimes.llama_cpp import LlamaCpp


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """``options["recipe"]`` is a name that llama-quantize knows."""
    source = open_model(open_checkpoint(model), vocabulary=GGUF.vocabulary).source
    plan = plan_of(source, recipe_of(source.spec, options["recipe"]), LLAMA_CPP)
    out.mkdir(parents=True)
    GGUF.write({out / "model.gguf": plan}, source, llama_cpp_codes(source, importance_matrix(source, ids)))


def load(out: Path) -> Any:
    """The file in llama.cpp, called like a model of transformers."""
    runtime = LlamaCpp(out / "model.gguf", 4096)
    return lambda ids: SimpleNamespace(logits=torch.cat(list(runtime.logit_parts(ids[0])))[None])
