"""A fresh process that runs lm-evaluation-harness: python -m bitwright.evaluate.tasks_worker. The one place that loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from bitwright.data.tokenizer import tokenizer_of
from bitwright.evaluate.figures import task_scores
from bitwright.evaluate.process import begin, say_at
from bitwright.host.progress import Relay
from bitwright.host.schedule import TASKS
from bitwright.runtimes.products import quick_products
from bitwright.runtimes.registry import load

LONGEST = 2048  # tokens of a question with one of its choices
BATCH = 8
METRICS = ("acc_norm", "acc", "exact_match")  # the first that a task has is its figure


def wrapped(candidate: dict[str, Any], device: str) -> Any:
    """The candidate in its stock runtime, as a model of the harness."""
    path = Path(candidate["path"])
    tokenizer = tokenizer_of(path, candidate["trust_remote_code"]) if path.is_dir() else None
    return load(candidate, device, LONGEST).for_harness(tokenizer, LONGEST, BATCH)


def local_task(name: str, questions: list[dict[str, Any]]) -> ConfigurableTask:
    """Questions of a file as a task: each choice is scored as a continuation of the question."""
    return ConfigurableTask(
        config={
            "task": Path(name).stem,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(questions)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "answer",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
        }
    )


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Scores of every candidate; or the name of a task that the harness does not know, or that has no figure of ours."""
    names = [task["name"] for task in job["tasks"] if task["questions"] is None]
    reporter, manager = Relay(1), TaskManager(include_defaults=bool(names))  # thousands of files, read for seconds
    if unknown := [name for name in names if name not in manager.all_tasks]:
        return {"unknown": unknown[0]}
    loaded = manager.load(names)["tasks"] if names else {}
    if other := [name for name, task in loaded.items() if not {m for m in METRICS if m in task.aggregation()}]:
        return {"unknown": f"{other[0]}, which has none of {', '.join(METRICS)}"}
    tasks = [*names, *(local_task(t["name"], t["questions"]) for t in job["tasks"] if t["questions"] is not None)]
    found: list[dict[str, dict[str, list[float]]]] = []
    for candidate in reporter.track(job["candidates"], TASKS, len(job["candidates"])):
        say_at(job, candidate)
        model = wrapped(candidate, job["device"])
        with quick_products(torch.device(job["device"])):
            results = simple_evaluate(model, tasks=tasks, limit=job["limit"], task_manager=manager, bootstrap_iters=0)
        found.append({name: _figure(samples) for name, samples in results["samples"].items()})
        del model
    return {"scores": [[vars(s) for s in task_scores(figures, found[0])] for figures in found]}


def _figure(samples: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Metric -> value of each question. A task with several filters logs each question once for each: the first counts."""
    metric = next(m for m in METRICS if m in samples[0])
    first = [sample for sample in samples if sample.get("filter") == samples[0].get("filter")]
    ordered = sorted(first, key=lambda sample: int(sample["doc_id"]))
    return {metric: [float(sample[metric]) for sample in ordered]}


def main() -> None:
    job, out_path = begin()
    out_path.write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
