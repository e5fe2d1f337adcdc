"""Odd directories before `quantize`: an error in four parts and exit code 2, before anything slow, and nothing half written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bitwright.cli.main import app
from tests.conftest import Build

Change = Callable[[Path], None]


def setting(file: str = "config.json", **values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**data, **values}))

    return change


def content(file: str, data: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(data) and None


def index(shard: str) -> Change:
    """An index in place of the one file."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))

    return change


def pipe(file: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return change


def endless_pattern(folder: Path) -> None:
    """A regular expression that takes exponentially many steps on ordinary words."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": r"(\w+\s?)+$"}, "behavior": "Isolated", "invert": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, data["pre_tokenizer"]]}
    path.write_text(json.dumps(data))


DEEP = b"[" * 100_000 + b"]" * 100_000
CASES: dict[str, Change] = {
    "a million layers": setting(num_hidden_layers=10**6),
    "layers as text": setting(num_hidden_layers="2"),
    "layers as a fraction": setting(num_hidden_layers=2.5),
    "no layers": setting(num_hidden_layers=0),
    "layers null": setting(num_hidden_layers=None),
    "NaN for a size": setting(hidden_size=float("nan")),
    "a negative size": setting(hidden_size=-64),
    "a list for a size": setting(intermediate_size={"a": 1}),
    "zero heads": setting(num_attention_heads=0),
    "heads that do not divide": setting(num_attention_heads=7),
    "a vocabulary beyond the matrix": setting(vocab_size=10**9),
    "a vocabulary of text": setting(vocab_size="many"),
    "another class": setting(model_type="bert", architectures=["BertModel"]),
    "no class": setting(model_type=["llama"]),
    "an activation that is none": setting(hidden_act="rm -rf"),
    "a million layer types": setting(layer_types=["full_attention"] * 200_000),
    "rope of another type": setting(rope_parameters="default"),
    "config a list": content("config.json", b"[1, 2]"),
    "config nested": content("config.json", DEEP),
    "config in UTF-16": content("config.json", '{"model_type": "llama"}'.encode("utf-16")),
    "config empty": content("config.json", b""),
    "config a pipe": pipe("config.json"),
    "tokenizer a list": content("tokenizer_config.json", b"[]"),
    "tokenizer nested": content("tokenizer.json", DEEP),
    "tokenizer cut short": content("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a'),
    "tokenizer of numbers": content("tokenizer.json", b"123"),
    "a pattern without end": endless_pattern,
    "weights cut short": lambda folder: os.truncate(folder / "model.safetensors", 2000),
    "weights a pipe": pipe("model.safetensors"),
    "weights text": content("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "an index of nothing": index("b"),
    "an index that leads out": index("../../etc/passwd"),
    "an index of long names": index("x" * 5000),
    "quantized already": setting(quantization_config={"quant_method": "bitsandbytes"}),
    "quantized in words": setting(quantization_config="nf4"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_words(build: Build, tmp_path: Path, name: str) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(build("llama"), source)
    CASES[name](source)
    result = CliRunner().invoke(app, ["quantize", str(source), str(out), "--calibration", "documentation", "--json"])
    assert result.exit_code == 2, (result.output, result.stderr)
    error = json.loads(result.stdout)["error"]
    assert all(error[part] for part in ("rule", "where", "saw", "wanted", "help"))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize(
    "words",
    [
        ["{out}", "--seed", "9" * 23],
        ["{out}", "--max-damage", "nan"],
        ["{out}", "--max-damage", "0.1", "--budget", "500MB"],
        ["{out}", "--budget", "9" * 400 + "GB"],
        ["{out}", "--dtype", "float8"],
        ["{out}", "--device", "meta"],
        ["{out}", "--workdir", "{file}"],
        ["{file}"],
        ["{out}", "--calibration", "x" * 5000],
        ["x" * 5000],
        ["{source}/out"],
        ["{source}"],
        ["."],
        ["{out}", "--held-out", "x" * 5000],
    ],
)
def test_odd_options_are_refused_in_words(build: Build, tmp_path: Path, words: list[str]) -> None:
    source, file = tmp_path / "source", tmp_path / "file"
    shutil.copytree(build("llama"), source)
    file.write_text("mine")
    known = {"{out}": str(tmp_path / "out"), "{file}": str(file), "{source}": str(source)}
    given = [known.get(word, word.replace("{source}", str(source))) for word in words]
    before = sorted(path.name for path in source.iterdir())
    result = CliRunner().invoke(app, ["quantize", str(source), *given])
    assert result.exit_code == 2, (result.output, result.stderr)
    assert "Traceback" not in result.output + result.stderr
    assert file.read_text() == "mine"
    assert sorted(path.name for path in source.iterdir()) == before
    assert not (tmp_path / "out").exists()


def test_a_source_with_a_name_longer_than_any_file_has(tmp_path: Path) -> None:
    for verb in (["quantize", "x" * 5000, str(tmp_path / "out")], ["estimate", "x" * 5000], ["doctor", "x" * 5000]):
        result = CliRunner().invoke(app, verb)
        assert result.exit_code == 2, (verb[0], result.output, result.stderr)


def test_a_model_that_no_format_can_store(build: Build, tmp_path: Path) -> None:
    thin = build("llama", hidden_size=2, num_attention_heads=1, num_key_value_heads=1, intermediate_size=1, head_dim=2)
    result = CliRunner().invoke(app, ["quantize", str(thin), str(tmp_path / "out"), "--calibration", "documentation", "--json"])
    assert result.exit_code == 2, (result.output, result.stderr)
    assert json.loads(result.stdout)["error"]["rule"] == "formats/none-fits"


def test_a_model_that_may_not_be_read_is_one_finding(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may read anything
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert [finding["rule"] for finding in json.loads(result.stdout)] == ["files/closed"]


def test_words_of_a_stranger_are_shown_as_text(build: Build, tmp_path: Path) -> None:
    """A name in config.json is no markup of ours, and moves no terminal."""
    source = tmp_path / "model"
    shutil.copytree(build("llama"), source)
    config = json.loads((source / "config.json").read_text())
    for method in ("[/x]", "\x1b[31m"):
        stated = {"quant_method": method, "bits": 4}
        (source / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
        result = CliRunner().invoke(app, ["estimate", str(source), "--memory", "1GB"])
        assert result.exit_code == 0, result.output
        assert "\x1b[31m" not in result.output


def test_a_corrected_copy_in_the_home_directory(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands ~ behind --fix=."""
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["doctor", str(build("llama")), "--fix=~/fixed"])
    assert "no such file" not in result.output
    assert (tmp_path / "fixed" / "config.json").exists()


def test_a_seed_beyond_every_generator_is_refused() -> None:
    result = CliRunner().invoke(app, ["chat", ".", "--seed", str(10**20)])
    assert result.exit_code == 2
    assert "'--seed'" in result.stderr


def test_who_has_read_enough_is_told_nothing(build: Build) -> None:
    words = [sys.executable, "-m", "bitwright", "doctor", "--explain"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.read(10)
    run.stdout.close()
    assert run.stderr.read() == b""
    assert run.wait() == 0
