"""A worker that dies names the model that it died of."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitwright.errors import BitwrightError
from bitwright.evaluate.evaluate import Candidate, Text, compare
from bitwright.evaluate.process import _end
from tests.conftest import Build


def test_the_guilty_one_is_named_and_the_reference_stays(build: Build, tmp_path: Path) -> None:
    source, broken = build("llama"), tmp_path / "broken"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(broken)
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    candidates = [Candidate("good", str(source)), Candidate("guilty", str(broken)), Candidate("later", str(source))]
    text = Text([torch.arange(3, 40).tolist()] * 2)
    with pytest.raises(BitwrightError, match="evaluate/process") as caught:
        compare(Candidate("16 bit", str(source)), candidates, text, quiet=True, references=tmp_path / "kept")
    assert caught.value.finding.where == f"guilty ({broken})"
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1


def test_ends_in_words() -> None:
    assert _end(3) == "exit code 3"
    assert _end(-9) == "ended by SIGKILL, as where memory runs out"
    assert _end(-6) == "ended by SIGABRT"
