"""A fresh process that loads checkpoints with the stock runtimes and compares them: python -m bitwright.evaluate.worker."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, GgufConfig
from transformers.utils import logging

from bitwright.evaluate import llama_cpp
from bitwright.evaluate.divergence import Divergence, TokenFigures, agreed, compare, summarize
from bitwright.progress import Reporter

FORWARD_ENTRIES = 1 << 27  # logits of one forward pass: 256 MiB in bfloat16
PROMPT_TOKENS = 64  # of each sequence, continued greedily
CHUNK_ENTRIES = 1 << 25  # logits compared at once: 128 MiB in float32


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


@torch.no_grad()
def logits_of(model: Any, ids: Tensor, device: str) -> Iterator[Iterable[Tensor]]:
    """Logits of each sequence of ``ids`` [S, T], in parts [t, V] that are small enough to be worked on in float32.

    As many sequences share a forward pass as FORWARD_ENTRIES allow, since a quantized model unpacks its weights once per pass.
    """
    if isinstance(model, llama_cpp.LlamaCpp):
        yield from (model.logit_parts(sequence) for sequence in ids)
        return
    vocabulary = model.config.get_text_config().vocab_size
    for batch in ids.split(max(1, FORWARD_ENTRIES // (ids.shape[1] * vocabulary))):
        for logits in model(batch.to(device), use_cache=False).logits:
            yield logits.split(max(1, CHUNK_ENTRIES // vocabulary))


def compare_sequence(log_probs: Tensor, parts: Iterable[Tensor], ids: Tensor) -> TokenFigures:
    """``compare`` part by part, so that the vocabulary never lives in float32 for a whole sequence."""
    figures, at = [], 0
    for part in parts:
        there = slice(at, at + len(part))
        following = ids[at + 1 : at + 1 + len(part)]
        figures.append(compare(log_probs[there].to(part.device), part, following.to(part.device)))
        at += len(part)
    return TokenFigures(*[torch.cat([getattr(f, field.name).cpu() for f in figures]) for field in fields(TokenFigures)])


@torch.no_grad()
def greedy_of(model: Any, prompts: Tensor, count: int, device: str) -> Tensor:
    """The ``count`` likeliest ids [P, count] that follow ``prompts`` [P, T], one after the other."""
    if isinstance(model, llama_cpp.LlamaCpp):
        return torch.stack([model.greedy(prompt, count) for prompt in prompts])
    ids = prompts.to(device)
    plain = GenerationConfig(do_sample=False, max_new_tokens=count, min_new_tokens=count, eos_token_id=None, pad_token_id=0)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    return torch.as_tensor(made)[:, prompts.shape[1] :].cpu()


def run(job: dict[str, Any]) -> list[Divergence]:
    """Compare every candidate of ``job`` with its reference, whose log-probabilities are kept in a temporary file."""
    reporter = Reporter(quiet=job["quiet"])
    ids = torch.tensor(job["ids"])
    device, count = job["device"], job["greedy"]
    prompts = ids[:, : min(PROMPT_TOKENS, ids.shape[1])]
    longest = max(ids.shape[1], prompts.shape[1] + count)
    results = []
    with tempfile.TemporaryDirectory(dir=job["scratch"]) as scratch:
        model = load(job["reference"], device, longest)
        cache = [Path(scratch) / f"{s}.pt" for s in range(len(ids))]
        for path, parts in reporter.track(
            zip(cache, logits_of(model, ids, device), strict=True), "evaluate reference", len(ids)
        ):
            torch.save(torch.cat([part.float().log_softmax(-1).half().cpu() for part in parts]), path)
        wanted = greedy_of(model, prompts, count, device) if count else None
        del model, parts
        for candidate in job["candidates"]:
            model = load(candidate, device, longest)
            figures = []
            stage = f"evaluate {candidate['label']}"
            for s, parts in enumerate(reporter.track(logits_of(model, ids, device), stage, len(ids))):
                figures.append(compare_sequence(torch.load(cache[s], weights_only=True), parts, ids[s]))
            line = summarize(candidate["label"], figures)
            if wanted is not None:
                line = replace(line, greedy=agreed(wanted, greedy_of(model, prompts, count, device)))
            results.append(line)
            del model, parts
    return results


def main() -> None:
    job_path, out_path = Path(sys.argv[1]), Path(sys.argv[2])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results = run(json.loads(job_path.read_text(encoding="utf-8")))
    out_path.write_text(json.dumps([asdict(result) for result in results]), encoding="utf-8")


if __name__ == "__main__":
    main()
