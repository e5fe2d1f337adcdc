"""python -m benchmarks.fused DIR [DIR ...] --reference SOURCE — whether vLLM computes with the weights that a file holds.

vLLM computes q, k and v in one linear, and gate and up in another. Its bitsandbytes loader quantizes the 16-bit weights of
such a linear to stock NF4 without a word, unless all of them are in 16 bit and llm_int8_skip_modules names that linear too.

Each directory is loaded by transformers and by vLLM, both computing in bfloat16, and gives one JSON line. The figures are root
mean squares over the tokens of held-out text, in nats. ``transformers`` and ``vllm``: the error of the next token's
log-probability against the 16-bit model in float32 transformers. ``vllm_noise``: the same of vLLM with that 16-bit model.
``vllm_to_transformers``: between the two runtimes with one checkpoint; about the noise where both compute with the same
weights. ``failed``: what vLLM said where it refuses a directory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from benchmarks.models import reference
from bitwright.data.documentation import DOCUMENTATION
from bitwright.data.held_out import held_out
from bitwright.data.samples import Sample
from bitwright.data.tokenizer import tokenizer_of
from bitwright.evaluate.evaluate import Candidate
from bitwright.host.places import cache_dir, without_place
from bitwright.runtimes.registry import load

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peers" / "requirements" / "vllm.txt"
TIMEOUT_S = 1800  # of vLLM with one checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="checkpoints that Bitwright wrote")
    parser.add_argument("--reference", required=True, metavar="SOURCE", help="the 16-bit model: a directory, or demo")
    parser.add_argument("--held-out", default=DOCUMENTATION, help="text that nothing was tuned on")
    parser.add_argument("--sequences", type=int, default=6)
    parser.add_argument("--length", type=int, default=68, help="tokens of a sequence, 1023 at most")
    options = parser.parse_args()
    logging.disable_progress_bar()
    source = reference(options.reference)
    samples = list(held_out(tokenizer_of(source), options.held_out, options.sequences, options.length).samples)
    texts = [sample.ids for sample in samples]
    python = environment(cache_dir() / "environments" / "vllm")
    true = in_transformers(source, "float32", texts)
    noise = in_vllm(python, source, texts)
    for directory in options.directories:
        print(json.dumps(line(python, directory, texts, true, noise)), flush=True)


def line(python: Path, directory: Path, texts: list[Tensor], true: Tensor, noise: Tensor) -> dict[str, Any]:
    """The figures of one checkpoint."""
    own = in_transformers(directory, "bfloat16", texts)
    error = rms(own - true)
    found = {"checkpoint": without_place(str(directory.absolute())), "n_tokens": len(true), "transformers": error}
    try:
        theirs = in_vllm(python, directory, texts)
    except RefusedError as refusal:
        return {**found, "failed": str(refusal)}
    return {
        **found,
        "vllm": rms(theirs - true),
        "vllm_noise": rms(noise - true),
        "ratio": rms(theirs - true) / error,
        "vllm_to_transformers": rms(theirs - own),
    }


def rms(errors: Tensor) -> float:
    """Root mean square.

    >>> rms(torch.tensor([3.0, -4.0, 0.0, 0.0]))
    2.5
    """
    return float(errors.square().mean().sqrt())


def in_transformers(path: Path, dtype: str, texts: list[Tensor]) -> Tensor:
    """Log-probability in transformers of every token but a text's first; float32 [T], all texts one after the other."""
    model = load(asdict(Candidate(path.name, str(path), dtype)), "cpu", max(map(len, texts)))
    found = []
    for ids, parts in zip(texts, model.logits([Sample.of(text) for text in texts]), strict=True):
        logits = torch.cat([part.float() for part in parts])[:-1]
        found.append(logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0])
    return torch.cat(found)


class RefusedError(Exception):
    """vLLM does not run a checkpoint."""


def in_vllm(python: Path, path: Path, texts: list[Tensor]) -> Tensor:
    """The same in vLLM, in a fresh process of its environment; raises RefusedError with what it said where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        job, out, log_path = (Path(folder) / name for name in ("job.json", "out.json", "log.txt"))
        model = str(path.absolute())
        job.write_text(json.dumps({"model": model, "sequences": [ids.tolist() for ids in texts]}), encoding="utf-8")
        command = [str(python), "-I", str(HERE / "fused_vllm.py"), str(job), str(out)]  # isolated: gguf.py lies here too
        with open(log_path, "w", encoding="utf-8") as log:
            try:
                subprocess.run(
                    command, env=settings(python), stdout=log, stderr=log, timeout=TIMEOUT_S, check=False, cwd=folder
                )
            except subprocess.TimeoutExpired:
                raise RefusedError(f"not done after {TIMEOUT_S} s") from None
        answer = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"error": last_line(log_path)}
        if "error" in answer:
            print(log_path.read_text(encoding="utf-8"), file=sys.stderr)
            raise RefusedError(answer["error"])
        return torch.tensor(answer["log_probabilities"])


def last_line(log: Path) -> str:
    """What a process wrote before it died."""
    return (log.read_text(encoding="utf-8").strip().splitlines() or ["the process died"])[-1]


def settings(python: Path) -> dict[str, str]:
    """Variables under which vLLM runs in one process, with OMP_NUM_THREADS threads, and talks to nobody."""
    return {
        **os.environ,
        "LD_PRELOAD": str(python.parent.parent / "lib" / "libiomp5.so"),  # as vLLM's installation page says
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_INT4_W4A8": "0",  # else activations are rounded to 8 bit where the processor has AMX
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def environment(directory: Path) -> Path:
    """The Python of vLLM's environment, installed on first use and again when its requirements change.

    The file lists all that vLLM's own dependencies are, but those that break it on a CPU; hence ``--no-deps``.
    """
    python, done, wanted = directory / "bin" / "python", directory / "installed.txt", REQUIREMENTS.read_text(encoding="utf-8")
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        venv.create(directory, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        for words in (["torch", "-c", str(REQUIREMENTS)], ["--no-deps", "-r", str(REQUIREMENTS)]):
            subprocess.run([*pip, *words], check=True, stdout=sys.stderr)
        done.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    main()
