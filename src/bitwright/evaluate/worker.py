"""A fresh process that loads checkpoints with the stock runtimes and compares them: python -m bitwright.evaluate.worker."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GgufConfig
from transformers.utils import logging

from bitwright.evaluate import llama_cpp
from bitwright.evaluate.divergence import Divergence, TokenFigures, compare, summarize
from bitwright.progress import Reporter

FORWARD_ENTRIES = 1 << 27  # logits of one forward pass: 256 MiB in bfloat16
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
def logits_of(model: Any, ids: Tensor, device: str) -> Iterator[Tensor]:
    """Logits [T, V] of each sequence of ``ids`` [S, T]; as many share a forward pass as FORWARD_ENTRIES allow, since a
    quantized model unpacks its weights once per pass."""
    if isinstance(model, llama_cpp.LlamaCpp):
        yield from (model.logits(sequence) for sequence in ids)
        return
    vocabulary = model.config.get_text_config().vocab_size
    for batch in ids.split(max(1, FORWARD_ENTRIES // (ids.shape[1] * vocabulary))):
        yield from model(batch.to(device), use_cache=False).logits


def compare_sequence(log_probs: Tensor, logits: Tensor, ids: Tensor) -> TokenFigures:
    """``compare`` in chunks of tokens, so that the vocabulary never lives in float32 for a whole sequence."""
    step = max(1, CHUNK_ENTRIES // logits.shape[1])
    parts = [
        compare(log_probs[s : s + step].to(logits.device), logits[s : s + step], ids[s + 1 : s + 1 + step].to(logits.device))
        for s in range(0, len(ids), step)
    ]
    joined = [torch.cat([getattr(p, name).cpu() for p in parts]) for name in ("kl", "same_top1", "nll_reference", "nll")]
    return TokenFigures(*joined)


def run(job: dict[str, Any]) -> list[Divergence]:
    """Compare every candidate of ``job`` with its reference, whose log-probabilities are kept in a temporary file."""
    reporter = Reporter(quiet=job["quiet"])
    ids = torch.tensor(job["ids"])
    device = job["device"]
    results = []
    with tempfile.TemporaryDirectory(dir=job["scratch"]) as scratch:
        model = load(job["reference"], device, ids.shape[1])
        cache = [Path(scratch) / f"{s}.pt" for s in range(len(ids))]
        for path, logits in reporter.track(
            zip(cache, logits_of(model, ids, device), strict=True), "evaluate reference", len(ids)
        ):
            step = max(1, CHUNK_ENTRIES // logits.shape[1])
            halves = [part.float().log_softmax(-1).half().cpu() for part in logits.split(step)]
            torch.save(torch.cat(halves), path)
        del model, logits
        for candidate in job["candidates"]:
            model = load(candidate, device, ids.shape[1])
            figures = []
            stage = f"evaluate {candidate['label']}"
            for s, logits in enumerate(reporter.track(logits_of(model, ids, device), stage, len(ids))):
                figures.append(compare_sequence(torch.load(cache[s], weights_only=True), logits, ids[s]))
            results.append(summarize(candidate["label"], figures))
            del model, logits
    return results


def main() -> None:
    job_path, out_path = Path(sys.argv[1]), Path(sys.argv[2])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results = run(json.loads(job_path.read_text(encoding="utf-8")))
    out_path.write_text(json.dumps([asdict(result) for result in results]), encoding="utf-8")


if __name__ == "__main__":
    main()
