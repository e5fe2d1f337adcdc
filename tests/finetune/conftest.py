"""What the tests of training share: a table of sums, a small model and its quantization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import bitwright
from bitwright.finetune.training import Outcome, Training
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


def require_alike(outcome: Outcome) -> None:
    """A fresh process of its program answers with an adapter as the model did in memory."""
    assert outcome.written is not None
    assert outcome.written.by_program.loss == pytest.approx(outcome.written.in_memory.loss, rel=0.02)
