"""Tasks: local questions, two runtimes that agree, and files that are none."""

import json
import math
import random
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bitwright
from bitwright import BitwrightError, pipeline
from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.gguf.container import GGUF
from bitwright.errors import fail
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.process import WorkerError
from bitwright.evaluate.tasks import read_questions, score
from bitwright.evaluate.verdict import PartlyEvaluatedError
from bitwright.host.progress import Reporter
from bitwright.models.open import open_model
from bitwright.plan import Choice, Plan, Rounding
from bitwright.runtimes import llama_cpp
from tests.conftest import Build

WORDS = [name for name in sorted(topics) if name.isalpha()][:24]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions without sense, whose right answers are drawn: what is tested is the arithmetic."""
    draw = random.Random(0)
    rows = [
        {
            "question": " ".join(draw.choices(WORDS, k=6)),
            "choices": [" ".join(draw.choices(WORDS, k=3)) for _ in range(3)],
            "answer": draw.randrange(3),
        }
        for _ in range(24)
    ]
    path = tmp_path_factory.mktemp("tasks") / "sense.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def own_accuracies(directory: Path, questions: Path) -> tuple[list[bool], list[bool]]:
    """Right by total log-likelihood and by log-likelihood a character, computed from the definition."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    plain, per_character = [], []
    for row in map(json.loads, questions.read_text().splitlines()):
        start = tokenizer(f"Question: {row['question']}\nAnswer:").input_ids
        sums = []
        for choice in row["choices"]:
            ids = tokenizer(f"Question: {row['question']}\nAnswer: {choice}").input_ids
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logs[t - 1, ids[t]]) for t in range(len(start), len(ids))))
        plain.append(max(range(3), key=lambda i: sums[i]) == row["answer"])
        lengths = [len(choice) for choice in row["choices"]]
        per_character.append(max(range(3), key=lambda i: sums[i] / lengths[i]) == row["answer"])
    return plain, per_character


def test_a_score_is_the_share_of_right_answers_with_its_error(build: Build, questions: Path) -> None:
    directory = build("llama")
    candidates = [Candidate("a", str(directory), dtype="float32"), Candidate("b", str(build("llama", intermediate_size=96)))]
    (first,), (second,) = score(candidates, [str(questions)])
    _, right = own_accuracies(directory, questions)
    assert (first.task, first.metric, first.n_questions) == ("sense", "acc_norm", 24)
    assert first.value == pytest.approx(sum(right) / 24)
    assert first.stderr == pytest.approx(math.sqrt(first.value * (1 - first.value) / 23))
    assert (first.difference, first.difference_stderr) == (0, 0)
    assert second.difference == pytest.approx(second.value - first.value)
    assert 0 < second.difference_stderr < first.stderr + second.stderr


@pytest.mark.skipif(not llama_cpp.available(), reason="needs xllamacpp")
def test_llama_cpp_answers_as_transformers_does(build: Build, questions: Path, tmp_path: Path) -> None:
    directory = build("llama")
    source = open_model(open_checkpoint(directory), vocabulary=GGUF.vocabulary).source
    choices = tuple(Choice(w.name, "16bit", Rounding.NONE, 0, 0.0) for w in source.spec.weights)
    plan = Plan("x", "gguf", "16bit", "all", None, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, choices)
    GGUF.write({tmp_path / "model.gguf": plan}, source, lambda *_: pytest.fail("nothing is quantized"))
    both = [Candidate("hf", str(directory), dtype="float32"), Candidate("gguf", str(tmp_path / "model.gguf"))]
    (one,), (other,) = score(both, [str(questions)])
    assert abs(one.value - other.value) <= 1 / 24 + 1e-9, "at most one close call goes the other way"


def test_evaluate_carries_the_scores(build: Build, questions: Path) -> None:
    directory = str(build("llama"))
    entries = bitwright.evaluate(
        directory, [directory], sequences=2, length=32, tasks=(str(questions),), task_limit=5, reporter=Reporter(quiet=True)
    )
    assert [entry.tasks[0].n_questions for entry in entries] == [5, 5]
    assert entries[1].tasks[0].difference == 0
    with pytest.raises(BitwrightError) as caught:
        bitwright.evaluate(directory, [], sequences=2, length=32, tasks=("no_such_task",), reporter=Reporter(quiet=True))
    assert caught.value.finding.rule == "tasks/unknown"


def test_tasks_that_fail_cost_no_divergence(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = fail("evaluate/process", "model.gguf", saw="text from a GGUF file", wanted="choices", help="others").finding

    def fails(candidates: list[Candidate], *_: object, **__: object) -> list[object]:
        if candidates:
            raise WorkerError(finding, None)
        return []

    monkeypatch.setattr(pipeline, "score", fails)
    directory = str(build("llama"))
    with pytest.raises(PartlyEvaluatedError) as caught:
        bitwright.evaluate(directory, [directory], sequences=2, length=32, tasks=("x",), reporter=Reporter(quiet=True))
    assert caught.value.failures == (finding,)
    assert [entry.divergence.n_tokens > 0 for entry in caught.value.entries] == [True, True]


GOOD = {"question": "q", "choices": ["a", "b"], "answer": 1}


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1]",
        "3",
        "{}",
        "[" * 100_000,
        *(
            json.dumps(GOOD | change)
            for change in (
                {"answer": 2},
                {"answer": -1},
                {"answer": "1"},
                {"answer": True},
                {"choices": ["a"]},
                {"choices": "ab"},
                {"choices": ["a", 2]},
                {"question": 3},
                {"question": None},
            )
        ),
    ],
)
def test_lines_that_are_no_question_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(BitwrightError) as caught:
        read_questions(path)
    assert caught.value.finding.rule == "tasks/question"
    assert caught.value.finding.where.endswith("q.jsonl:3")


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.jsonl", "binary.jsonl", "missing.jsonl"):
        with pytest.raises(BitwrightError) as caught:
            read_questions(tmp_path / name)
        assert caught.value.finding.rule == "tasks/question"
