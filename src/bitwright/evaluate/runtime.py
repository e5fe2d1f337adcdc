"""Checkpoints in the runtime their users load them with, and what those runtimes say: logits, continuations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, GgufConfig

from bitwright.evaluate import llama_cpp

FORWARD_TOKENS = 2048  # of one forward pass: a quantized model unpacks its weights once for all of them
CHUNK_ENTRIES = 1 << 25  # logits that exist at once: 128 MiB in float32


def stock_nf4(skip_modules: list[str] | None) -> BitsAndBytesConfig:
    """What a user of bitsandbytes asks for: NF4, blocks of 64, bfloat16 arithmetic, everything else at its default."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skip_modules
    )


def load(candidate: dict[str, Any], device: str, n_tokens: int) -> Any:
    """The model as any user would load it: a .gguf file in llama.cpp where that is installed, else decoded by transformers;
    ``quantize`` asks bitsandbytes to quantize on the way."""
    options: dict[str, Any] = {"dtype": getattr(torch, candidate["dtype"])}
    path = candidate["path"]
    if path.endswith(".gguf"):
        if llama_cpp.available():
            return llama_cpp.LlamaCpp(Path(path), n_tokens)
        options |= {"gguf_file": Path(path).name, "quantization_config": GgufConfig(dequantize=True)}
        path = str(Path(path).parent)
    if candidate["quantize"]:
        options["quantization_config"] = stock_nf4(candidate["skip_modules"])
    if device != "cpu":
        options["device_map"] = device
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=candidate["trust_remote_code"], **options).eval()


def logits_of(model: Any, ids: Tensor, device: str) -> Iterator[Iterable[Tensor]]:
    """Logits of each sequence of ``ids`` [S, T], in parts [t, V] that are small enough to be worked on in float32.

    Several sequences share a forward pass. The output head runs part by part afterwards, so that the logits of a whole
    sequence never exist. Take a sequence's parts before the next sequence.
    """
    if isinstance(model, llama_cpp.LlamaCpp):
        yield from (model.logit_parts(sequence) for sequence in ids)
        return
    step = max(1, CHUNK_ENTRIES // model.config.get_text_config().vocab_size)
    for batch in ids.split(max(1, FORWARD_TOKENS // ids.shape[1])):
        with torch.no_grad():
            body = model.base_model(input_ids=batch.to(device), use_cache=False)
        for sequence in body.last_hidden_state:
            yield (_head(model, type(body)(last_hidden_state=part[None])) for part in sequence.split(step))


@torch.no_grad()
def _head(model: Any, recorded: Any) -> Tensor:
    """Logits [t, V] of what the body is recorded to return for one sequence: the class's own forward runs on the recording,
    so that scalings and caps of the logits are the library's."""
    body, hidden = model.base_model, recorded.last_hidden_state
    hooked = vars(body).get("forward")  # accelerate puts one there; a bound method of its own would keep the model alive
    body.forward = lambda *_, **__: recorded
    try:
        return model(input_ids=torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device), use_cache=False).logits[0]
    finally:
        del body.forward
        if hooked is not None:
            body.forward = hooked


@torch.no_grad()
def greedy_of(model: Any, prompts: Tensor, count: int, device: str) -> Tensor:
    """The ``count`` likeliest ids [P, count] that follow ``prompts`` [P, T], one after the other."""
    if isinstance(model, llama_cpp.LlamaCpp):
        return torch.stack([model.greedy(prompt, count) for prompt in prompts])
    ids = prompts.to(device)
    own = model.generation_config
    model.generation_config = GenerationConfig()  # generate() fills what is left open from it: penalties, ends
    try:
        plain = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    finally:
        model.generation_config = own
    return torch.as_tensor(made)[:, prompts.shape[1] :].cpu()
