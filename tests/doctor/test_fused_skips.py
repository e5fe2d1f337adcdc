"""16-bit weights that vLLM would quantize anew are found, and the names that it looks for are added."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import bitwright
from bitwright.doctor.doctor import examine
from bitwright.doctor.fix import fixed_copy
from bitwright.host.progress import Reporter
from tests.conftest import TINY, Build

ATTENTION = "model.layers.0.self_attn"


def checkpoint(directory: Path, packed: set[str], skipped: list[str]) -> Path:
    """A bitsandbytes checkpoint of one attention layer of which the projections ``packed`` are in 4 bit."""
    directory.mkdir(exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for part in "qkv":
        name = f"{ATTENTION}.{part}_proj.weight"
        if part not in packed:
            tensors[name] = torch.ones(8, 8, dtype=torch.bfloat16)
            continue
        tensors[name] = torch.zeros(32, 1, dtype=torch.uint8)
        tensors |= {f"{name}.absmax": torch.zeros(1), f"{name}.quant_map": torch.zeros(16)}
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(8, dtype=torch.uint8)
    save_file(tensors, directory / "model.safetensors")
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": skipped}
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    return directory


def rules(directory: Path) -> set[str]:
    return {finding.rule for finding in examine(directory) if finding.rule.startswith("quantization/")}


PARTS = [f"{ATTENTION}.{part}_proj" for part in "qkv"]


@pytest.mark.parametrize(
    ("packed", "skipped", "expected"),
    [
        ({"q", "k", "v"}, [], set()),
        ({"q", "k"}, PARTS[2:], {"quantization/fused-mixed"}),
        ({"q", "k"}, [*PARTS[2:], f"{ATTENTION}.qkv_proj"], {"quantization/fused-mixed"}),
        (set(), PARTS, {"quantization/fused-unlisted"}),
        (set(), [*PARTS, f"{ATTENTION}.qkv_proj"], set()),
        (set(), ["self_attn"], set()),  # a part of the path, as dynamic files of others have it
        (set(), [ATTENTION], set()),
    ],
)
def test_what_vllm_would_round_anew_is_named(tmp_path: Path, packed: set[str], skipped: list[str], expected: set[str]) -> None:
    assert rules(checkpoint(tmp_path / "model", packed, skipped)) == expected


def test_the_names_that_are_missing_are_added(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", set(), PARTS)
    fixed_copy(directory, tmp_path / "fixed")
    assert rules(tmp_path / "fixed") == set()
    config = json.loads((tmp_path / "fixed" / "config.json").read_text())["quantization_config"]
    assert config["llm_int8_skip_modules"] == [*PARTS, f"{ATTENTION}.qkv_proj"]


def test_what_we_write_is_sound_unless_the_groups_are_let_go(build: Build, tmp_path: Path) -> None:
    settings = replace(TINY, formats=("nf4-b32-dq",), held_out_sequences=4, held_out_length=48, compare=False)
    quiet = Reporter(quiet=True)
    pins = tuple(f"{part}=16bit" for part in PARTS)
    report = bitwright.quantize(build("llama"), tmp_path / "alike", "+40%", pins=pins, settings=settings, reporter=quiet)
    assert rules(tmp_path / "alike") == set()
    sixteen = {choice.weight.removesuffix(".weight") for choice in report.plan.choices if choice.format == "16bit"}
    assert sixteen.issuperset(PARTS), "as pinned"
    fused = {
        f"model.layers.{i}.{whole}_proj"
        for i in range(2)
        for whole, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up")))
        if sixteen.issuperset(f"model.layers.{i}.{whole.split('.')[0]}.{part}_proj" for part in parts)
    }
    config = json.loads((tmp_path / "alike" / "config.json").read_text())["quantization_config"]
    assert set(config["llm_int8_skip_modules"]) == sixteen | fused | {"lm_head"}
