"""Mistakes that only models that see have."""

import json
from pathlib import Path

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from bitwright.doctor.checks.skip_spelling import _matches
from bitwright.doctor.doctor import examine
from bitwright.doctor.fix import fixed_copy
from tests.vision import FAMILIES, built

RULE = "quantization/skip-spelling"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock 4-bit checkpoint whose vision MLPs are in 16 bit and named as transformers 4 matched them."""
    source, out = tmp_path_factory.mktemp("old") / "source", tmp_path_factory.mktemp("old") / "out"
    built("qwen2_vl").bfloat16().save_pretrained(source)
    mlps = [f"visual.blocks.{i}.mlp.{part}" for i in range(3) for part in ("fc1", "fc2")]
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", *mlps],
    )
    model = AutoModelForImageTextToText.from_pretrained(source, quantization_config=quantization)
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", *(f"visual.blocks.{i}.mlp" for i in range(3))]
    (out / "config.json").write_text(json.dumps(config))
    return out


def wrapped(directory: Path) -> set[str]:
    """16-bit weights that stand in modules for 4-bit ones."""
    model = AutoModelForImageTextToText.from_pretrained(directory)
    return {n for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit) and m.weight.dtype != torch.uint8}


def test_entries_that_only_transformers_4_matches_are_found_and_respelled(old: Path, tmp_path: Path) -> None:
    (finding,) = [finding for finding in examine(old) if finding.rule == RULE]
    assert "visual.blocks.0.mlp" in finding.saw
    assert "2 16-bit weights" in finding.saw
    assert len(wrapped(old)) == 6, "the mistake is real"
    fixed_copy(old, tmp_path / "fixed")
    assert RULE not in {finding.rule for finding in examine(tmp_path / "fixed")}
    assert wrapped(tmp_path / "fixed") == set()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "fixed").eval()
    sample = FAMILIES["qwen2_vl"].sample([(4, 4)], 0)
    with torch.no_grad():
        inputs = {name: tensor[None] for name, tensor in sample.inputs.items()}
        inputs |= {n: t.bfloat16() if t.is_floating_point() else t for n, t in sample.media.items()}
        assert bool(torch.isfinite(model(**inputs).logits).all())


@pytest.mark.parametrize(
    ("entry", "module", "skips"),
    [
        ("visual.blocks.0.mlp", "visual.blocks.0.mlp.fc1", False),
        ("model.visual.blocks.0.mlp", "visual.blocks.0.mlp.fc1", True),
        ("model.visual.blocks.1", "visual.blocks.11.mlp.fc1", False),
        ("visual.blocks.0.mlp.fc1", "visual.blocks.0.mlp.fc1", True),
        ("model.layers.1.mlp", "model.layers.1.mlp.up_proj", False),
        ("model.language_model.layers.1.mlp", "model.layers.1.mlp.up_proj", True),
        ("model.language_model.layers.1.mlp", "language_model.model.layers.1.mlp.up_proj", True),
    ],
)
def test_what_transformers_5_skips(entry: str, module: str, skips: bool) -> None:
    assert _matches(entry, module) is skips


def test_files_of_the_processor_are_missed(old: Path, tmp_path: Path) -> None:
    assert "files/no-processor" in {finding.rule for finding in examine(old)}
    for path in old.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert "files/no-processor" not in {finding.rule for finding in examine(tmp_path)}
