"""A fresh process that scores answers about pictures: python -m bitwright.evaluate.picture_tasks_worker."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file

from bitwright.data.samples import samples_in
from bitwright.evaluate.process import begin, say_at
from bitwright.host.progress import Relay
from bitwright.runtimes.products import quick_products
from bitwright.runtimes.registry import load


def run(job: dict[str, Any]) -> list[dict[str, list[Any]]]:
    """For every candidate, of each sample: its answer's log-likelihood, and whether every token is the likeliest."""
    reporter = Relay(len(job["candidates"]))
    samples = samples_in(load_file(job["samples_file"]))
    found = []
    for candidate in job["candidates"]:
        say_at(job, candidate)
        model = load(candidate, job["device"], max(sample.n_tokens for sample in samples))
        stream = reporter.track(model.logits(samples), candidate["label"], len(samples))
        row: dict[str, list[Any]] = {"likelihoods": [], "greedy": []}
        with quick_products(torch.device(job["device"])):
            for parts, sample in zip(stream, samples, strict=True):
                logits = torch.cat([part.float().cpu() for part in parts])
                of_next = logits.log_softmax(-1).gather(1, sample.following[:, None])
                row["likelihoods"].append(float(of_next.sum()))
                row["greedy"].append(bool((logits.argmax(-1) == sample.following).all()))
        found.append(row)
        del model, stream
    return found


def main() -> None:
    job, out_path = begin()
    out_path.write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
