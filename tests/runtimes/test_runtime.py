"""What a stock runtime says: logits in parts, likeliest continuations, and memory that is given back."""

import gc
import weakref
from copy import copy
from dataclasses import asdict
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


def test_a_temperature_draws_from_all_tokens(build: Build) -> None:
    """transformers leaves all but the 50 likeliest out where nobody says otherwise."""
    model = AutoModelForCausalLM.from_pretrained(build("llama"), dtype=torch.float32).eval()
    head = model.get_output_embeddings().weight.data
    head.copy_(torch.linspace(-1e-3, 1e-3, len(head))[:, None])  # all nearly as likely, in one order or the reverse of it
    torch.manual_seed(0)
    prompt = Sample.of(torch.randint(3, 500, (8,)))
    found = {token for _ in range(4) for token in TransformersModel(model, "cpu").answer(prompt, 60, temperature=1.0)}
    assert len(found) > 100


@pytest.mark.parametrize("written", [False, True])
def test_a_widened_model_computes_in_float32_with_the_same_weights(build: Build, tmp_path: Path, written: bool) -> None:
    """The 4-bit weights are multiplied in float32 then, and a written file's others, though both are loaded as bfloat16."""
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    how |= {"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"}
    loaded = load(asdict(Candidate("stock", str(build("llama")), quantization=how)), "cpu", 16)
    if written:
        loaded.model.save_pretrained(tmp_path)
        loaded = load(asdict(Candidate("written", str(tmp_path))), "cpu", 16)
    linear = loaded.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, linear.in_features)
    state = copy(linear.weight.quant_state)
    state.dtype = torch.float32
    weight = bitsandbytes.functional.dequantize_4bit(linear.weight, state)

    @torch.no_grad()
    def error() -> float:
        return float((linear(x.to(loaded.model.dtype)).float() - x @ weight.t()).norm() / (x @ weight.t()).norm())

    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16, torch.uint8}
    assert error() > 1e-3
    loaded.widen()
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32, torch.uint8}
    assert error() < 1e-6
