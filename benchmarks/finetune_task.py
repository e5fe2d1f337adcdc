"""python -m benchmarks.finetune_task — a task that is learnt in minutes: right answers before, with the adapter, and merged.

SmolLM2-135M as stock NF4 learns one-step sums of numbers below 100, told in words and answered in one fixed form: 2,000 rows,
one epoch. Answers are greedy, by stock transformers with stock PEFT, to 200 questions that were not learnt; one counts when
every character is right.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bitwright
from benchmarks.finetune import stock
from bitwright import Settings, Training
from bitwright.settings import Effort

STORIES = (
    "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have?",
    "There are {a} {thing} in a box. {name} puts in {b} more. How many {thing} are in the box?",
    "{name} had {c} {thing} and gave away {b}. How many {thing} are left?",
)
NAMES, THINGS = ("Mia", "Tom", "Ada", "Ben", "Zoe"), ("apples", "coins", "books", "stones", "cards")
ROWS, QUESTIONS, BATCH = 2000, 200, 50


def rows(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Questions and answers."""
    draw = random.Random(seed)
    for _ in range(count):
        story, a, b = draw.choice(STORIES), draw.randrange(2, 50), draw.randrange(2, 50)
        words = {"name": draw.choice(NAMES), "thing": draw.choice(THINGS), "a": a, "b": b, "c": a + b}
        result = a if "{c}" in story else a + b
        yield story.format(**words), f"The answer is {result} {words['thing']}."


def accuracy(path: Path, adapter: Path | None = None) -> float:
    """Share of right answers of the checkpoint at ``path``, with ``adapter``."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    questions, right = list(rows(1, QUESTIONS)), 0
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        asked = [[{"role": "user", "content": question}] for question, _ in part]
        ids = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            made = model.generate(**ids, max_new_tokens=16, do_sample=False)[:, ids["input_ids"].shape[1] :]
        told = tokenizer.batch_decode(made, skip_special_tokens=True)
        right += sum(words.strip() == answer for words, (_, answer) in zip(told, part, strict=True))
    return right / len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=0, help="fewer, to try it out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stock(folder / "model")
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows(0, ROWS)]
        (folder / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
        data, training = str(folder / "sums.jsonl"), Training(length=128, batch=16, learning_rate=1e-3, max_steps=options.steps)
        print(json.dumps({"before": accuracy(folder / "model")}), flush=True)
        outcome = bitwright.finetune(folder / "model", data, folder / "adapter", training=training)
        told = {"loss": [round(outcome.before.loss, 4), round(outcome.after.loss, 4)], "seconds": outcome.seconds}
        print(json.dumps({"adapter": accuracy(folder / "model", folder / "adapter")} | told), flush=True)
        settings = Settings(effort=Effort.QUICK, compare=False)
        merged = bitwright.merge(folder / "adapter", "demo", data, folder / "merged", settings=settings)
        line = {
            "merged": accuracy(folder / "merged"),
            "loss_merged": round(merged.merged.loss, 4),
            "kept": round(merged.kept, 3),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
