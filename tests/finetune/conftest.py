"""What the tests of training share: a table of sums, a small model and its quantization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import bitwright
from bitwright.finetune import finetune as job
from bitwright.finetune.answers import Answers, unlike
from bitwright.finetune.training import Training
from bitwright.host.progress import Reporter
from tests.conftest import TINY, Build

QUIET = Reporter(quiet=True)
TRAINING = Training(
    method="lora", rank=4, length=64, batch=4, max_steps=6, learning_rate=5e-3, device="cpu", dtype="float32", held_out=0.25
)
MODEL = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A .csv file of thirty questions and answers."""
    path = tmp_path_factory.mktemp("data") / "sums.csv"
    rows = [f"What is {a} + {b}?,It is {a + b}." for a in range(6) for b in range(5)]
    path.write_text("question,answer\n" + "\n".join(rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def quantized(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "out"
    bitwright.quantize(build("llama", **MODEL), out, "+30%", settings=replace(TINY, compare=False), reporter=QUIET)
    return out


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> list[Answers]:
    """What adapters answered before they were written, in order; it is compared with the answers of a fresh process."""
    found: list[Answers] = []

    def noted(before: Answers, trained: Answers, written: Answers) -> str:
        found.append(trained)
        return unlike(before, trained, written)

    monkeypatch.setattr(job, "unlike", noted)
    return found
