"""Evaluation itself: its time over the bare forward passes it needs, and its kept references against full distributions.

python -m benchmarks.evaluation [smollm2] [gemma] [--held-out FILE] [--sequences N]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from benchmarks.models import reference as reference_directory
from bitwright.data.held_out import held_out
from bitwright.data.samples import Sample
from bitwright.data.tokenizer import tokenizer_of
from bitwright.evaluate.divergence import summarize, token_figures
from bitwright.evaluate.reference import condense
from bitwright.evaluate.worker import compare_text, condense_text
from bitwright.runtimes.transformers import FORWARD_TOKENS, TransformersModel

REPEATS = 3
NOISE = 0.02  # of the candidate's weights, relative: a divergence of about that of 4 bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma"])
    parser.add_argument("--held-out", default="documentation")
    parser.add_argument("--sequences", type=int, default=8)
    options = parser.parse_args()
    for name in options.models:
        Console().print({"model": name, **figures(name, options)})


@torch.no_grad()
def figures(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Ratios of one model."""
    source = reference_directory(name)
    samples = list(held_out(tokenizer_of(source), options.held_out, options.sequences, 512).samples)
    ids = torch.stack([sample.ids for sample in samples])
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    candidate = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    loaded = {"reference": TransformersModel(reference, "cpu"), "candidate": TransformersModel(candidate, "cpu")}
    generator = torch.Generator().manual_seed(0)
    for parameter in candidate.parameters():
        if parameter.ndim == 2:
            parameter += NOISE * parameter.std() * torch.randn(parameter.shape, generator=generator)
    samples = [Sample.of(row) for row in ids]
    seconds: dict[str, list[float]] = {"bare": [], "evaluate": [], "bare candidate": [], "evaluate candidate": []}
    for _ in range(REPEATS):
        seconds["bare candidate"].append(timed(lambda: bare(candidate, ids)))
        seconds["bare"].append(seconds["bare candidate"][-1] + timed(lambda: bare(reference, ids)))
        start = time.perf_counter()
        kept = [condense_text(parts, row) for parts, row in zip(loaded["reference"].logits(samples), samples, strict=True)]
        middle = time.perf_counter()
        found = [
            compare_text(known, parts, row)
            for known, parts, row in zip(kept, loaded["candidate"].logits(samples), samples, strict=True)
        ]
        end = time.perf_counter()
        seconds["evaluate"].append(end - start)
        seconds["evaluate candidate"].append(end - middle)
    line = summarize(name, found)
    whole = []
    for parts, theirs, row in zip(loaded["reference"].logits(samples), loaded["candidate"].logits(samples), ids, strict=True):
        p, q = torch.cat(list(parts)), torch.cat(list(theirs))
        steps = [slice(s, s + 64) for s in range(0, len(row), 64)]
        whole += [token_figures(condense(p[s], row[:0], likeliest=p.shape[1]), q[s], row[:0]).kl for s in steps]
    full = float(torch.cat(whole).mean())
    ratio = {
        f"{what} over bare": statistics.median(seconds[what]) / statistics.median(seconds[bare_name])
        for what, bare_name in (("evaluate", "bare"), ("evaluate candidate", "bare candidate"))
    }
    return {
        "full KL": full,
        "kept over full": line.kl / full,
        "error expected from sampling": line.kl_sampling / full,
        "seconds per 1000 tokens": 1000 * statistics.median(seconds["evaluate"]) / ids.numel(),
        **ratio,
    }


def bare(model: torch.nn.Module, ids: torch.Tensor) -> None:
    """Logits of all tokens, thrown away: one sequence after the other, or as many together as evaluation takes."""
    for batch in ids.split(max(1, FORWARD_TOKENS // ids.shape[1])):
        for row in batch:
            model(row[None], use_cache=False)


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
