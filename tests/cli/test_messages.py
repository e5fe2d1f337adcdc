"""What a person gets who names the wrong thing: the problem first, and the command that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitwright.allocate.allocate import allocate
from bitwright.cli.main import app
from bitwright.containers.registry import container_of
from bitwright.host.sizes import size_nbytes
from bitwright.measure.subject import Subject
from bitwright.settings import Settings
from tests.conftest import Build


def message(*words: str) -> str:
    """What a command that must fail says."""
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return done.output


def test_a_size_without_a_unit() -> None:
    said = message("estimate", "--params", "7B", "--memory", "8")
    assert said.startswith("error[memory/unit]: 8: 8 bytes: the unit is missing")
    assert said.rstrip().endswith("help: 8GB")
    assert (size_nbytes("0"), size_nbytes("500B"), size_nbytes("2000000")) == (0, 500, 2_000_000)


def test_a_lora_adapter_in_place_of_a_model(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    for words in (("quantize", str(adapter), str(tmp_path / "out")), ("evaluate", str(adapter), str(adapter))):
        said = message(*words)
        assert "a LoRA adapter, which is only the change of a model" in said
        assert "merge_and_unload" in said
        assert "owner/base" in said


def test_a_finished_checkpoint_given_to_report(tmp_path: Path) -> None:
    (tmp_path / "bitwright.json").write_text("{}")
    assert f"help: open {tmp_path / 'report.html'}" in message("report", str(tmp_path))


def test_a_page_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "error[" in message("report", str(tmp_path), "-o", str(tmp_path / "nodir" / "x.html"))


@pytest.mark.parametrize("name", ["questions.csv", "nothing.jsonl", "nothing.csv"])
def test_a_wrong_file_of_tasks(build: Build, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.csv").write_text("a,b\n")
    said = message("evaluate", str(build("llama")), str(build("llama")), "--tasks", name)
    assert said.startswith(f"error[tasks/file]: {name}: ")
    assert '"choices"' in said


def test_a_plan_of_another_model(build: Build, tmp_path: Path) -> None:
    subject = Subject.open(build("llama"), Settings(container=container_of("bitsandbytes").name))
    plan = allocate(subject.blank_table(), "+40%", frontier=False)
    (tmp_path / "plan.json").write_text(plan.to_json())
    known = CliRunner().invoke(app, ["estimate", str(build("llama")), "--plan", str(tmp_path / "plan.json")])
    assert known.exit_code == 0, known.output
    other = build("llama", num_hidden_layers=4)
    said = message("estimate", str(other), "--plan", str(tmp_path / "plan.json"))
    assert said.startswith("error[estimate/plan]")
    assert "2 blocks" in said


def test_a_bare_doctor_says_how_it_is_used() -> None:
    assert "doctor [OPTIONS] [MODEL]" in message("doctor").replace("\n", " ")


def test_a_budget_and_a_recipe_at_once(tmp_path: Path) -> None:
    said = message("quantize", "demo", str(tmp_path / "x.gguf"), "--budget", "100MB", "--like", "Q4_K_M")
    assert said.startswith("error[budget/two]")
