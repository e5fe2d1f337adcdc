"""What a stock runtime says: logits in parts, likeliest continuations, and memory that is given back."""

import gc
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForCausalLM

from bitwright.data.samples import Sample
from bitwright.evaluate.evaluate import Candidate
from bitwright.runtimes import transformers as runtime
from bitwright.runtimes.transformers import TransformersModel, load
from tests.conftest import ARCHITECTURES, Build


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_logits_in_parts_are_those_of_the_model(build: Build, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    assert architecture in ARCHITECTURES
    model = AutoModelForCausalLM.from_pretrained(build(architecture), dtype=torch.float32).eval()
    monkeypatch.setattr(runtime, "CHUNK_ENTRIES", 7 * model.config.vocab_size)
    ids = torch.randint(0, 500, (3, 40))
    with torch.no_grad():
        whole = model(ids).logits
    found = [list(parts) for parts in TransformersModel(model, "cpu").logits([Sample.of(row) for row in ids])]
    assert [len(part) for part in found[0]] == [7, 7, 7, 7, 7, 5]
    assert torch.allclose(torch.stack([torch.cat(parts) for parts in found]), whole, atol=1e-4)


def test_texts_of_any_length_are_answered_each_alone_and_in_order(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama"), dtype=torch.float32).eval()
    monkeypatch.setattr(runtime, "FORWARD_TOKENS", 80)
    texts = [torch.randint(0, 500, (length,)) for length in (40, 40, 40, 7, 40, 90, 2)]
    found = [torch.cat(list(parts)) for parts in TransformersModel(model, "cpu").logits([Sample.of(text) for text in texts])]
    assert [len(logits) for logits in found] == [len(text) for text in texts]
    with torch.no_grad():
        for text, logits in zip(texts, found, strict=True):
            assert torch.allclose(logits, model(text[None]).logits[0], atol=1e-4)


def test_a_model_is_released_without_the_garbage_collector(build: Build) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama"), dtype=torch.float32).eval()
    loaded = TransformersModel(model, "cpu")
    for parts in loaded.logits([Sample.of(row) for row in torch.randint(0, 500, (2, 16))]):
        list(parts)
    loaded.greedy(torch.randint(0, 500, (1, 8)), 3)
    gc.collect()
    gone = weakref.ref(model.base_model)
    gc.disable()
    try:
        del model, loaded
        assert gone() is None
    finally:
        gc.enable()


def test_greedy_takes_the_likeliest_whatever_the_model_prefers(build: Build) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama"), dtype=torch.float32).eval()
    prompts = torch.randint(0, 500, (2, 12))
    loaded = TransformersModel(model, "cpu")
    plain = loaded.greedy(prompts, 12)
    ids = prompts
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(plain, ids[:, 12:])
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.eos_token_id = [int(token) for token in plain.unique()]
    assert torch.equal(loaded.greedy(prompts, 12), plain)
    assert model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("tiles", [False, True])
def test_a_model_is_run_in_what_the_processor_is_quick_at(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiles: bool, written: bool
) -> None:
    """In float32 the 4-bit weights too are multiplied in float32, and a written file's others, though both are bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    how |= {"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"}
    candidate = Candidate("stock", str(build("llama")), quantization=how)
    if written:
        load(asdict(replace(candidate, dtype="bfloat16")), "cpu", 16).model.save_pretrained(tmp_path)
        candidate = Candidate("written", str(tmp_path))
    model = load(asdict(candidate), "cpu", 16).model
    quick = torch.bfloat16 if tiles else torch.float32
    assert {p.dtype for p in model.parameters()} == {quick, torch.uint8}
    linear = model.model.layers[0].mlp.up_proj
    x = torch.randn(3, linear.in_features)
    weight = bitsandbytes.functional.dequantize_4bit(linear.weight, linear.weight.quant_state).float()
    with torch.no_grad():
        error = (linear(x) - x @ weight.t()).norm() / (x @ weight.t()).norm()
    assert (error < 2e-3) == (not tiles), error
