"""A fresh process that loads checkpoints with the stock runtimes and compares them: python -m bitwright.evaluate.worker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bitwright.checkpoint.cached import alone
from bitwright.checkpoint.output import write_json
from bitwright.checkpoint.workdir import finite
from bitwright.data.samples import Sample, samples_in
from bitwright.data.viewer import ANSWER
from bitwright.evaluate.divergence import TokenFigures, agreed, summarize, token_figures
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.process import begin, say_at
from bitwright.evaluate.reference import DamagedError, Reference, condense
from bitwright.evaluate.reference import load as load_reference
from bitwright.evaluate.reference import save as save_reference
from bitwright.host.device import quick_dtype
from bitwright.host.heap import resident_nbytes
from bitwright.host.progress import Relay, Reporter
from bitwright.runtimes.products import quick_products
from bitwright.runtimes.registry import load

WORK_ENTRIES = 1 << 22  # worked on at once, 16 MiB in float32: what glibc reuses instead of asking the system for new pages
PROMPT_TOKENS = 64  # of each sequence, continued greedily


def condense_text(parts: Iterable[Tensor], sample: Sample) -> Reference:
    """``condense`` part by part, so that the vocabulary never lives in float32 for a whole sequence."""
    kept = [condense(part, following.to(part.device)) for part, _, following in _pieces(parts, sample)]
    return Reference.join(kept)


def compare_text(reference: Reference, parts: Iterable[Tensor], sample: Sample) -> TokenFigures:
    """``compare`` part by part."""
    figures = [
        token_figures(reference.part(where).to(part.device), part, following.to(part.device))
        for part, where, following in _pieces(parts, sample)
    ]
    return TokenFigures.join(figures)


def _pieces(parts: Iterable[Tensor], sample: Sample) -> Iterator[tuple[Tensor, slice, Tensor]]:
    """The parts of a sample's logits in pieces of WORK_ENTRIES, where each lies, and the ids that follow its positions."""
    at, following = 0, sample.following
    for part in parts:
        for piece in part.split(max(1, WORK_ENTRIES // part.shape[1])):
            yield piece, slice(at, at + len(piece)), following[at : at + len(piece)]
            at += len(piece)


def run(job: dict[str, Any]) -> Iterator[Divergence]:
    """Compare every candidate of ``job`` with its reference, which is loaded only where its kept file is not there yet."""
    reporter = Relay(len(job["candidates"]) + 1)
    texts, questions = (samples_in(load_file(job[name])) for name in ("samples_file", "prompts_file"))
    device, count = job["device"], job["greedy"]
    prompts = prompts_of([sample.ids for sample in texts if not sample.media] or [sample.ids for sample in texts])
    lengths = [sample.n_tokens for sample in texts] + [question.n_tokens + ANSWER for question in questions]
    longest = max(*lengths, prompts.shape[1] + count)
    kept = Path(job["reference_file"])
    with alone(kept):  # two first uses at once: one waits
        known = _kept(kept, reporter)
        if known is None:
            say_at(job, job["reference"])
            model = load(job["reference"], device, longest)
            stream = reporter.track(model.logits(texts), "16 bit", len(texts))
            found = [condense_text(parts, text) for parts, text in zip(stream, texts, strict=True)]
            save_reference(kept, found, model.greedy(prompts, count) if count else None)
            del model, stream, found
            known = load_reference(kept)
    reporter.finished = 1
    references, wanted = known
    for candidate in job["candidates"]:
        say_at(job, candidate)
        before = resident_nbytes()
        model = load(candidate, device, longest)
        loaded = max(0, resident_nbytes() - before)
        begin = time.perf_counter()
        answers = tuple(tuple(model.answer(question, ANSWER)) for question in questions if candidate["asked"])
        pace = sum(map(len, answers)) / max(time.perf_counter() - begin, 1e-9)
        if candidate["quick"] and quick_dtype(torch.device(device)) == torch.float32:
            model.widen()
        stream = reporter.track(model.logits(texts), candidate["label"], len(texts))
        with quick_products(torch.device(device)):
            figures = [compare_text(*one) for one in zip(references, stream, texts, strict=True)]
        line = summarize(candidate["label"], figures, tuple(job["domains"]), tuple(job["controls"]))
        if wanted is not None:
            line = replace(line, greedy=agreed(wanted, model.greedy(prompts, count)))
        if answers:
            line = replace(line, answers=answers, tokens_per_second=pace, loaded_nbytes=loaded)
        del model, stream
        yield line


def _kept(path: Path, reporter: Reporter) -> tuple[list[Reference], torch.Tensor | None] | None:
    """What is kept of the reference; None where there is nothing, or it is damaged."""
    if not path.exists():
        return None
    try:
        return load_reference(path)
    except DamagedError as error:
        reporter.say(f"note: {path.name} in the cache is damaged ({error}) and is made again")
        path.unlink()
        return None


def prompts_of(texts: list[Tensor]) -> Tensor:
    """The first PROMPT_TOKENS of every text that has so many, or as many as the longest has: [P, T]."""
    length = min(PROMPT_TOKENS, max(len(text) for text in texts))
    return torch.stack([text[:length] for text in texts if len(text) >= length])


def main() -> None:
    job, out_path = begin()
    found: list[object] = []
    for line in run(job):
        found.append(finite(asdict(line)))
        write_json(out_path, found)  # what is done stays when a later one ends the process


if __name__ == "__main__":
    main()
