"""vLLM's log-probabilities, inside its own environment: python -I fused_vllm.py JOB OUT (benchmarks.fused starts it).

JOB names a checkpoint directory and token sequences. OUT gets the natural log-probability of every token but a sequence's
first, in one list, or {"error"}.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

LONGEST = 1024  # tokens of a sequence
CACHE_NBYTES = 1 << 28  # of keys and values; left open, vLLM takes 92 % of the machine's memory or refuses to start


def log_probabilities(model: str, sequences: list[list[int]]) -> list[float]:
    """What the model says about the tokens of ``sequences``, in bfloat16 and without compilation."""
    llm = LLM(
        model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=LONGEST,
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=CACHE_NBYTES,
        distributed_executor_backend="uni",
    )
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in sequences], wanted)
    return [
        found[token].logprob
        for ids, answer in zip(sequences, answers, strict=True)
        for token, found in zip(ids[1:], answer.prompt_logprobs[1:], strict=True)
    ]


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """The log-probabilities, or what went wrong and in which function."""
    try:
        return {"log_probabilities": log_probabilities(job["model"], job["sequences"])}
    except Exception as error:  # noqa: BLE001 - that vLLM refuses a checkpoint is a result
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1].name
        return {"error": f"{type(error).__name__} in {where}: {' '.join(str(error).split())}"[:400]}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(answer(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
