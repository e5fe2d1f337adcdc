"""Bytes against files that the libraries write, and the words of the verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from typer.testing import CliRunner

from bitwright import BitwrightError
from bitwright.checkpoint.open import open_checkpoint
from bitwright.cli.main import app
from bitwright.containers.gguf.container import GGUF
from bitwright.doctor.model import Model
from bitwright.estimate.estimate import Estimate
from bitwright.estimate.estimate import estimate as of_source
from bitwright.estimate.families import parts
from bitwright.estimate.sketch import sketch
from bitwright.estimate.source import Source
from bitwright.estimate.storage import PLAIN_4_BIT, SIXTEEN, stored_nbytes
from bitwright.models.open import open_model
from bitwright.plan import Plan
from tests.conftest import Build

WIDE = {"hidden_size": 256, "intermediate_size": 512}


def estimate(config: dict[str, Any], **options: Any) -> Estimate:
    return of_source(Source(config, parts(config)), **options)


def sizes(directory: Path) -> dict[str, int]:
    config = Model(directory).config
    return stored_nbytes(parts(config), config)


def written(directory: Path) -> int:
    return sum(tensor.nbytes for path in directory.glob("*.safetensors") for tensor in load_file(path).values())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_sixteen_bit_is_the_file(build: Build, architecture: str) -> None:
    directory = build(architecture)
    assert sizes(directory)[SIXTEEN] == written(directory)
    assert sizes(directory)["FP32"] == 2 * written(directory)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_nf4_is_what_bitsandbytes_writes(build: Build, tmp_path: Path, architecture: str) -> None:
    directory = build(architecture, **WIDE)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(tmp_path / "out")
    assert sizes(directory)[PLAIN_4_BIT] == pytest.approx(written(tmp_path / "out"), rel=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "phi3", "gemma3_text"])
@pytest.mark.parametrize("recipe", ["Q4_0", "Q4_K_M"])
def test_gguf_is_what_the_recipe_writes(build: Build, architecture: str, recipe: str) -> None:
    directory = build(architecture, **WIDE)
    source = open_model(open_checkpoint(directory), vocabulary=GGUF.vocabulary).source
    matrices = GGUF.sizes(source)[recipe] - GGUF.kept_nbytes(source)  # each padded to 32 bytes
    vectors = sum(4 * part.n_parameters for part in parts(Model(directory).config) if not part.name)
    assert 0 <= matrices - (sizes(directory)[recipe] - vectors) < 32 * len(source.spec.weights)


LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def test_what_fits_and_how_long() -> None:
    found = estimate(LLAMA_8B, memory=8 * 10**9, context=8192)
    assert found.n_parameters == found.n_active == 8_030_261_248  # as its model card says
    lines = {line.format: line for line in found.lines}
    assert lines[SIXTEEN].cache_nbytes == 8192 * 32 * 2 * 8 * 128 * 2
    assert not lines[SIXTEEN].fits
    assert lines["Q4_K_M"].fits
    assert lines["Q4_K_M"].disk_nbytes == pytest.approx(4.92e9, rel=0.01)
    assert 8192 < (lines["Q4_K_M"].longest_context or 0) < 131072
    assert found.best is not None
    assert all(line.disk_nbytes <= found.best.disk_nbytes for line in found.lines if line.fits)
    none = estimate(LLAMA_8B, memory=10**9)
    assert none.best is None
    assert all(line.longest_context == 0 for line in none.lines)
    half = estimate(LLAMA_8B, context=8192, cache_bits=8).lines[0].cache_nbytes
    assert 2 * half == lines[SIXTEEN].cache_nbytes


def test_the_verb_answers_without_torch_in_words_and_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    done = CliRunner().invoke(app, ["estimate", str(tmp_path), "--memory", "8GB", "--context", "8192"])
    assert done.exit_code == 0, done.output
    assert "8.030 billion parameters" in done.output
    assert "best choice within 8GB:" in done.output
    told = json.loads(CliRunner().invoke(app, ["estimate", str(tmp_path / "config.json"), "--json"]).stdout)
    assert told["n_parameters"] == 8_030_261_248


@pytest.mark.parametrize(
    ("words", "expected"),
    [(("7B", 32, 4096), 7.0e9), (("8B", 32, 4096, 32, 8), 8.0e9), (("350M", 24, 1024, 16, 16, 0, 50_000, True), 3.5e8)],
)
def test_a_sketch_has_the_parameters_that_were_asked_for(words: tuple[Any, ...], expected: float) -> None:
    config = sketch(*words)
    assert sum(part.n_parameters for part in parts(config)) == pytest.approx(expected, rel=0.01)
    assert config["intermediate_size"] % 32 == 0


@pytest.mark.parametrize(
    ("words", "rule"),
    [(("many", 32, 4096), "estimate/params"), (("1B", 32, 8192), "estimate/sketch"), (("", 1, 1), "estimate/params")],
)
def test_a_sketch_that_cannot_be(words: tuple[Any, ...], rule: str) -> None:
    with pytest.raises(BitwrightError) as caught:
        sketch(*words)
    assert caught.value.finding.rule == rule


def test_a_plan_is_one_more_line(tmp_path: Path) -> None:
    plan = Plan("x", "bitsandbytes", "nf4-b32-dq", "+10%", None, 5 * 10**9, 0, 0.0, 0.0, 0.0, 0.0, 0.0, ())
    (tmp_path / "plan.json").write_text(plan.to_json())
    words = [
        "estimate",
        "--params",
        "8B",
        "--kv-heads",
        "8",
        "--memory",
        "8GB",
        "--plan",
        str(tmp_path / "plan.json"),
        "--json",
    ]
    told = json.loads(CliRunner().invoke(app, words).stdout)
    assert told["lines"][-1]["format"].endswith("plan.json")
    assert told["lines"][-1]["disk_nbytes"] == 5 * 10**9
    for wrong in (["estimate"], ["estimate", "x", "--params", "7B"]):
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 2
        assert "error[estimate/model]" in done.stderr
