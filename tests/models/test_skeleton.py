"""Structure is read off the transformers class, whatever the class is."""

import json
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.errors import BitwrightError
from bitwright.models.open import open_model
from tests.conftest import ARCHITECTURES, Build


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_is_accounted_for(build: Build, architecture: str) -> None:
    path = build(architecture)
    spec = open_model(Checkpoint.of_directory(path)).spec
    model = AutoModelForCausalLM.from_pretrained(path)
    assert sum(int(str(row["parameters"])) for row in spec.coverage()) == sum(p.numel() for p in model.parameters())
    assert sum(float(str(row["share"])) for row in spec.coverage()) == pytest.approx(1.0)
    for weight in spec.weights:
        parameter = model.get_parameter(weight.name)
        assert (weight.n_rows, weight.n_cols) == tuple(parameter.t().shape if weight.view.transposed else parameter.shape)
        assert weight.shape == spec.shape(weight.name) == tuple(parameter.shape)
    tied = [kept for kept in spec.kept if kept.tied_to]
    assert bool(tied) == bool(model.config.tie_word_embeddings)
    assert all(weight.view.transposed == (architecture == "gpt2") for weight in spec.weights)
    assert spec.kept_nbytes == 2 * sum(prod(kept.shape) for kept in spec.kept if not kept.tied_to)


def test_fused_experts_are_refused_by_name(build: Build) -> None:
    path = build("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16)
    with pytest.raises(BitwrightError, match="model/not-understood") as caught:
        open_model(Checkpoint.of_directory(path))
    assert "experts" in caught.value.finding.where


def copy_with(source: Path, target: Path, tensors: dict[str, torch.Tensor] | None = None, **config: object) -> Checkpoint:
    target.mkdir()
    data = json.loads((source / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(data))
    save_file(tensors if tensors is not None else load_file(source / "model.safetensors"), target / "model.safetensors")
    return Checkpoint.of_directory(target)


def test_tensors_and_parameters_must_match(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    tensors = load_file(source / "model.safetensors")
    extra = copy_with(source, tmp_path / "extra", {**tensors, "model.layers.0.mystery.weight": torch.ones(3, 3)})
    with pytest.raises(BitwrightError, match="model/unknown-tensor"):
        open_model(extra)
    missing = {name: t for name, t in tensors.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(BitwrightError, match="model/missing-tensor"):
        open_model(copy_with(source, tmp_path / "missing", missing))
    with pytest.raises(BitwrightError, match="model/shape"):
        open_model(copy_with(source, tmp_path / "shape", intermediate_size=224))


def test_unknown_classes_are_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(BitwrightError, match="model/class"):
        open_model(copy_with(build("llama"), tmp_path / "unknown", model_type="never-heard-of-it"))


def test_code_in_a_model_directory_does_not_run(build: Build, tmp_path: Path) -> None:
    checkpoint = copy_with(build("llama"), tmp_path / "evil", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BitwrightError, match="model/class"):
        open_model(checkpoint)
    assert not (tmp_path / "ran").exists()
