"""A worker that dies names the model that it died of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from bitwright.cli.main import app
from bitwright.data.probe import Probe
from bitwright.data.samples import Sample
from bitwright.evaluate import process
from bitwright.evaluate.evaluate import Candidate, PartlyComparedError, compare
from bitwright.evaluate.process import WorkerError, _end, run_worker
from bitwright.host.device import quick_dtype
from bitwright.host.progress import Reporter
from bitwright.plan import NOISE_FLOOR
from tests.conftest import Build
from tests.nursery import REAL


def test_the_guilty_one_is_named_and_the_others_are_compared(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_run", REAL)  # processes as people's runs start them
    source, broken = build("llama"), tmp_path / "broken"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(broken)
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    candidates = [Candidate("good", str(source)), Candidate("guilty", str(broken)), Candidate("later", str(source))]
    text = Probe.of([Sample.of(torch.arange(3, 40))] * 2)
    with pytest.raises(PartlyComparedError, match="evaluate/process") as caught:
        compare(Candidate("16 bit", str(source)), candidates, text, references=tmp_path / "kept")
    assert {i: found.where for i, found in caught.value.failures.items()} == {1: f"guilty ({broken})"}
    assert sorted(caught.value.divergences) == [0, 2]
    assert caught.value.divergences[0] == replace(caught.value.divergences[2], label="good")
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1


def test_only_the_noise_floor_has_the_noise_of_16_bits(build: Build) -> None:
    """Where the processor is not quick at bfloat16, all others are compared in float32."""
    source, text = build("llama"), Probe.of([Sample.of(torch.arange(3, 40))] * 2)
    candidates = [Candidate("floor", str(source), quick=False), Candidate("other", str(source))]
    floor, other = compare(Candidate("16 bit", str(source), dtype="float32"), candidates, text)
    assert floor.kl > 1e-7
    if quick_dtype(torch.device("cpu")) == torch.float32:
        assert abs(other.kl) < 0.01 * floor.kl
    else:
        assert other.kl == floor.kl


def test_a_process_reads_no_module_of_the_folder_and_names_no_model_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def dies(command: list[str], errors: Path, *_: object) -> int:
        commands.append(command)
        errors.write_text("out of memory")
        return -9

    monkeypatch.setattr(process, "_run", dies)
    (tmp_path / "at.txt").write_text("the one before")
    with pytest.raises(WorkerError) as caught:
        run_worker("bitwright.evaluate.worker", {}, tmp_path, ["this one"], Reporter(quiet=True), lambda *_: None)
    assert caught.value.finding.where == "this one"
    assert "-P" in commands[0]


def test_ends_in_words() -> None:
    assert _end(3) == "exit code 3"
    assert _end(-9) == "ended by SIGKILL, as where memory runs out"
    assert _end(-6) == "ended by SIGABRT"


def test_the_table_has_the_others_and_the_message_the_guilty_one(build: Build, tmp_path: Path) -> None:
    source, broken = build("llama"), tmp_path / "broken"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(broken)
    weights = load_file(broken / "model.safetensors")
    save_file(
        {name.replace("q_proj", "other"): tensor[..., :2].clone() for name, tensor in weights.items()},
        broken / "model.safetensors",
    )
    words = ["evaluate", str(source), str(broken), str(source), "--sequences", "6", "--length", "32", "--greedy", "0"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 2
    assert [entry["label"] for entry in json.loads(result.stdout)] == [NOISE_FLOOR, str(source)]
    assert "evaluate/process" in result.stderr
    assert str(broken) in result.stderr
