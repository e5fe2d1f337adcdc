"""python -m benchmarks.finetune_task — a task that is learnt in minutes: right answers before, after, and of written files.

SmolLM2-135M learns one-step sums of numbers below 100, told in words and answered in one fixed form: 2,000 rows, one epoch.
Right answers are counted on 200 questions that were not learnt, in a fresh process of the file's own runtime; one counts when
greedy decoding gives every token of it and its end. Parts, any of which can be asked for alone:

  lora        an adapter beside stock NF4, by stock transformers with stock PEFT
  merge       that adapter merged into the 16-bit model, which is quantized anew: bitsandbytes +10 %, and GGUF of Q4_K_M's size
  nf4, gguf   trained in the format that is written (--method qat): bitsandbytes +10 %, and GGUF of Q4_K_M's size
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import bitwright
from benchmarks.finetune import stock
from benchmarks.models import reference
from bitwright import Settings, Training
from bitwright.errors import BitwrightError
from bitwright.finetune.answers import by_program
from bitwright.finetune.conversations import conversations
from bitwright.finetune.tokens import Example, examples
from bitwright.host.progress import Reporter
from bitwright.settings import Effort

STORIES = (
    "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have?",
    "There are {a} {thing} in a box. {name} puts in {b} more. How many {thing} are in the box?",
    "{name} had {c} {thing} and gave away {b}. How many {thing} are left?",
)
NAMES, THINGS = ("Mia", "Tom", "Ada", "Ben", "Zoe"), ("apples", "coins", "books", "stones", "cards")
ROWS, QUESTIONS = 2000, 200
PARTS = ("lora", "merge", "nf4", "gguf")
NF4, LIKE_Q4_K_M = ("bitsandbytes", "+10%"), ("gguf", "like Q4_K_M")
QUICK = Settings(effort=Effort.QUICK, compare=False)


def rows(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Questions and answers."""
    draw = random.Random(seed)
    for _ in range(count):
        story, a, b = draw.choice(STORIES), draw.randrange(2, 50), draw.randrange(2, 50)
        words = {"name": draw.choice(NAMES), "thing": draw.choice(THINGS), "a": a, "b": b, "c": a + b}
        result = a if "{c}" in story else a + b
        yield story.format(**words), f"The answer is {result} {words['thing']}."


def of_file(path: Path, unseen: list[Example], scratch: Path, adapter: Path | None = None) -> dict[str, Any]:
    """Share of right answers, and loss, of a written file as its program runs it, with the ``adapter`` over it."""
    reporter = Reporter(quiet=True)
    found = by_program(path, unseen, torch.device("cpu"), scratch, reporter, "answers", adapter=adapter)
    return {"right": found.right, "loss": round(found.loss, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=0, help="fewer, to try it out")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args()
    wanted = options.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows(0, ROWS)]
        (folder / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
        data, training = str(folder / "sums.jsonl"), Training(length=128, batch=16, learning_rate=1e-3, max_steps=options.steps)
        asked = [{"question": question, "answer": answer} for question, answer in rows(1, QUESTIONS)]
        unseen = examples(conversations(asked)[0], AutoTokenizer.from_pretrained(reference("smollm2")), 128)
        if "lora" in wanted or "merge" in wanted:
            stock(folder / "model")
            say("before", of_file(folder / "model", unseen, folder))
            bitwright.finetune(folder / "model", data, folder / "adapter", training=training)
            say("lora", of_file(folder / "model", unseen, folder, adapter=folder / "adapter"))
        if "merge" in wanted:
            for place, container, budget in ((folder / "merged", *NF4), (folder / "merged.gguf", *LIKE_Q4_K_M)):
                merge(place, container, budget, folder / "adapter", data, unseen)
        if "nf4" in wanted:
            in_format(folder / "plain", folder / "tuned", *NF4, data, training, unseen, folder)
        if "gguf" in wanted:
            in_format(folder / "plain.gguf", folder / "tuned.gguf", *LIKE_Q4_K_M, data, training, unseen, folder)


def merge(place: Path, container: str, budget: str, adapter: Path, data: str, unseen: list[Example]) -> None:
    """Put the adapter into the 16-bit model, quantize that to ``place``, and ask the file."""
    try:
        found = bitwright.merge(adapter, "demo", data, place, budget, settings=replace(QUICK, container=container))
    except BitwrightError as error:
        say(f"{container} merged", {"refused": error.finding.saw})
        return
    say(f"{container} merged", of_file(place, unseen, place.parent) | {"kept": round(found.kept, 3)})


def in_format(
    plain: Path, tuned: Path, container: str, budget: str, data: str, training: Training, unseen: list[Example], scratch: Path
) -> None:
    """Quantize, train the codes, and ask the file."""
    bitwright.quantize("demo", plain, budget, settings=replace(QUICK, container=container))
    say(f"{container} before", of_file(plain, unseen, scratch))
    outcome = bitwright.finetune(plain, data, tuned, training=replace(training, method="qat", source="demo"))
    say(f"{container} trained", of_file(tuned, unseen, scratch) | {"seconds": outcome.seconds})


def say(part: str, found: dict[str, Any]) -> None:
    print(json.dumps({"part": part} | found), flush=True)


if __name__ == "__main__":
    main()
