"""llama.cpp: its recipe of types, its encoders with an importance matrix of the calibration text, run by llama.cpp."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from benchmarks.llama_cpp_files import LLAMA_CPP, importance_matrix, llama_cpp_codes, plan_of
from bitwright.checkpoint.open import open_checkpoint
from bitwright.evaluate.llama_cpp import LlamaCpp
from bitwright.export.gguf import GGUF, recipe_of
from bitwright.models.skeleton import build_skeleton


def quantize(model: Path, ids: Tensor, out: Path, options: dict[str, Any]) -> None:
    """``options["recipe"]`` is a name that llama-quantize knows."""
    skeleton = build_skeleton(open_checkpoint(model), False, GGUF.stores_vocabulary)
    plan = plan_of(skeleton, recipe_of(skeleton.spec, options["recipe"]), LLAMA_CPP)
    out.mkdir(parents=True)
    GGUF.write(out / "model.gguf", skeleton, plan, llama_cpp_codes(skeleton, importance_matrix(skeleton, ids)))


def load(out: Path) -> Any:
    """The file in llama.cpp, called like a model of transformers."""
    runtime = LlamaCpp(out / "model.gguf", 4096)
    return lambda ids: SimpleNamespace(logits=runtime.logits(ids[0])[None])
