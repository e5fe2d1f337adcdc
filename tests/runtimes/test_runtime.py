"""What a stock runtime says: logits in parts, likeliest continuations, and memory that is given back."""

import gc
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitwright.evaluate import runtime
from bitwright.evaluate.runtime import greedy_of, logits_of
from tests.conftest import ARCHITECTURES, Build


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_logits_in_parts_are_those_of_the_model(build: Build, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    assert architecture in ARCHITECTURES
    model = AutoModelForCausalLM.from_pretrained(build(architecture), dtype=torch.float32).eval()
    monkeypatch.setattr(runtime, "CHUNK_ENTRIES", 7 * model.config.vocab_size)
    ids = torch.randint(0, 500, (3, 40))
    with torch.no_grad():
        whole = model(ids).logits
    found = [list(parts) for parts in logits_of(model, ids, "cpu")]
    assert [len(part) for part in found[0]] == [7, 7, 7, 7, 7, 5]
    assert torch.allclose(torch.stack([torch.cat(parts) for parts in found]), whole, atol=1e-4)


def test_a_model_is_released_without_the_garbage_collector(build: Build) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama"), dtype=torch.float32).eval()
    for parts in logits_of(model, torch.randint(0, 500, (2, 16)), "cpu"):
        list(parts)
    greedy_of(model, torch.randint(0, 500, (1, 8)), 3, "cpu")
    gc.collect()
    gone = weakref.ref(model.base_model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_greedy_takes_the_likeliest_whatever_the_model_prefers(build: Build) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama"), dtype=torch.float32).eval()
    prompts = torch.randint(0, 500, (2, 12))
    plain = greedy_of(model, prompts, 12, "cpu")
    ids = prompts
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(plain, ids[:, 12:])
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.eos_token_id = [int(token) for token in plain.unique()]
    assert torch.equal(greedy_of(model, prompts, 12, "cpu"), plain)
    assert model.generation_config.repetition_penalty == 5.0
