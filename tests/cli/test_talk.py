"""try, chat and cache from the shell."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bitwright
from bitwright.cli.main import app
from bitwright.host.progress import QUIET
from tests.conftest import TINY, Build

SETTINGS = replace(TINY, compare=False)


@pytest.fixture(scope="module")
def made(build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A result for transformers and one for llama.cpp."""
    folder, source = tmp_path_factory.mktemp("talk"), build("llama")
    found = {"bitsandbytes": folder / "out", "gguf": folder / "out.gguf"}
    bitwright.quantize(source, found["bitsandbytes"], "+40%", settings=SETTINGS, reporter=QUIET)
    gguf = replace(SETTINGS, container="gguf", formats=("q4_0", "q8_0"))
    bitwright.quantize(source, found["gguf"], "+40%", settings=gguf, reporter=QUIET)
    return found


@pytest.mark.parametrize("container", ["bitsandbytes", "gguf"])
def test_both_answers_are_shown(container: str, made: dict[str, Path], build: Build) -> None:
    out, source = str(made[container]), str(build("llama"))
    done = CliRunner().invoke(app, ["try", out, "Hello", "--source", source, "--tokens", "5", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "> Hello" in done.output
    assert "16 bit  " in done.output
    assert "tokens a second" in done.output
    told = CliRunner().invoke(app, ["try", out, "Hello", "--source", source, "--tokens", "5", "--device", "cpu", "--json"])
    found = json.loads(told.stdout)
    (answer,) = found["answers"]
    assert answer["prompt"] == "Hello"
    assert answer["16 bit"] in done.output
    assert set(found["models"]) == {"16 bit", made[container].name}


def test_without_a_prompt_a_few_questions(made: dict[str, Path], build: Build) -> None:
    words = ["try", str(made["bitsandbytes"]), "--source", str(build("llama")), "--tokens", "2", "--json", "--device", "cpu"]
    assert len(json.loads(CliRunner().invoke(app, words).stdout)["answers"]) > 2


@pytest.mark.parametrize("container", ["bitsandbytes", "gguf"])
def test_a_conversation_ends_with_an_empty_line(container: str, made: dict[str, Path], build: Build) -> None:
    words = ["chat", str(made[container]), "--source", str(build("llama")), "--tokens", "4", "--device", "cpu"]
    one, same, other = (
        CliRunner().invoke(app, [*words, *more], input="Hello\nAnd now?\n\n")
        for more in ([], [], ["--seed", "5", "--temperature", "3"])
    )
    assert one.exit_code == 0, one.output
    assert one.output.count("> ") == 3
    assert one.output == same.output  # the seed decides
    assert other.output != one.output
    assert CliRunner().invoke(app, words, input="").exit_code == 0  # Ctrl-D


def test_what_is_no_result_is_refused(build: Build) -> None:
    done = CliRunner().invoke(app, ["try", str(build("llama"))])
    assert done.exit_code == 2
    assert "no checkpoint that Bitwright wrote" in done.output


def test_the_cache_is_shown_and_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    assert "0.0 MB  in" in CliRunner().invoke(app, ["cache"]).output
    (tmp_path / "cache" / "gguf" / "model").mkdir(parents=True)
    (tmp_path / "cache" / "gguf" / "model" / "weights").write_bytes(b"x" * 2_000_000)
    (tmp_path / "elsewhere").write_text("not ours")
    (tmp_path / "cache" / "link").symlink_to(tmp_path / "elsewhere")
    shown = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)
    assert {entry["name"]: entry["nbytes"] for entry in shown["entries"]}["gguf"] == 2_000_000
    assert "2.0 MB  gguf" in CliRunner().invoke(app, ["cache", "--clean"]).output
    assert list((tmp_path / "cache").iterdir()) == []
    assert (tmp_path / "elsewhere").exists()


def test_version_and_examples() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"bitwright {bitwright.__version__}\n"
    for verb in ("quantize", "try", "chat", "repair", "finetune", "estimate", "doctor", "cache"):
        said = CliRunner().invoke(app, [verb, "--help"]).output
        assert f"Example: bitwright {verb}" in said
    assert "Machine" in CliRunner().invoke(app, ["quantize", "--help"]).output  # a panel
