"""Files that llama.cpp runs: every family against transformers, exact sizes, tokenizers, names and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitwright.checkpoint.open import open_checkpoint
from bitwright.evaluate.llama_cpp import LlamaCpp
from bitwright.export.gguf import GGUF
from bitwright.formats.format import FORMATS, quantized
from bitwright.measure.prepare import tokenizer_of
from bitwright.models.skeleton import Skeleton, build_skeleton
from bitwright.models.spec import Weight
from bitwright.plan import Choice, Plan
from bitwright.rounding.round import AnyCodes, round_nearest
from tests.conftest import Build

FAMILIES = {
    "llama": {"tie_word_embeddings": False, "attention_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True, "vocab_size": 520},  # its tokenizer class adds tokens
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {"pad_token_id": 0},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        "head_dim": 32,
        "sliding_window": 24,
        "query_pre_attn_scalar": 32,
    },
}


def skeleton_of(source: Path) -> Skeleton:
    return build_skeleton(open_checkpoint(source), vocabulary=True)


def plan_of(skeleton: Skeleton, format: str) -> Plan:
    choices = []
    for w in skeleton.spec.weights:
        name = "16bit" if GGUF.unavailable(FORMATS[format], w.n_rows, w.n_cols) else format
        nbytes = GGUF.nbytes(FORMATS[name], w.n_rows, w.n_cols)
        choices.append(Choice(w.name, name, "none" if name == "16bit" else "nearest", nbytes, 0.0))
    kept = GGUF.kept_nbytes(skeleton)
    total = kept + sum(c.nbytes for c in choices)
    return Plan("", "gguf", format, "", None, total, kept, 0, 0, 0, 0, 0, tuple(choices))


def write(source: Path, out: Path, format: str) -> Plan:
    skeleton = skeleton_of(source)

    def codes_of(weight: Weight, name: str, rounding: str) -> AnyCodes:
        return round_nearest(skeleton.read(weight.name), quantized(name))

    plan = plan_of(skeleton, format)
    assert GGUF.write(out, skeleton, plan, codes_of) == plan.nbytes == out.stat().st_size
    return plan


def log_probs(path: Path, ids: torch.Tensor) -> torch.Tensor:
    runtime = LlamaCpp(path, len(ids))
    try:
        return runtime.logits(ids).log_softmax(-1)
    finally:
        runtime.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_computes(build: Build, tmp_path: Path, family: str) -> None:
    """In 16 bit, over more tokens than a sliding window holds."""
    source = build(family, **FAMILIES[family])
    write(source, tmp_path / "model.gguf", "16bit")
    ids = torch.randint(3, 500, (96,), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        wanted = model(ids[None]).logits[0].log_softmax(-1)
    found = log_probs(tmp_path / "model.gguf", ids)
    assert float((wanted.exp() * (wanted - found)).sum(-1).mean()) < 2e-3
    assert float((wanted.argmax(-1) == found.argmax(-1)).float().mean()) > 0.9


TEXTS = (
    "The quick brown fox, 12345 times; don't stop.", "  spaces   and\n\n\tlines\n", "naïve café – 東京 🎉 Ω",
    "def f(x):\n    return x ** 2  # 3.14", "</s> is not special here", "", "a", " ", "I'LL we've it's",
)  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(build: Build, tmp_path: Path, family: str) -> None:
    source = build(family, **FAMILIES[family])
    write(source, tmp_path / "model.gguf", "16bit")
    tokenizer = tokenizer_of(source)
    runtime = LlamaCpp(tmp_path / "model.gguf")
    for text in TEXTS:
        assert runtime.tokenize(text) == tokenizer(text, split_special_tokens=True)["input_ids"], repr(text)
    runtime.close()
