"""compressed-tensors checkpoints: loaded by stock transformers on its default path, equal to our own decoding, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import bitwright
from bitwright import BitwrightError, Settings
from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.containers.compressed_tensors import COMPRESSED_TENSORS
from bitwright.formats.base import SIXTEEN_BIT, Packed
from bitwright.host.progress import Reporter
from bitwright.models.open import open_model
from bitwright.models.source import Source
from bitwright.models.spec import Kind, Weight
from bitwright.plan import Choice, Plan, Rounding
from bitwright.rounding.group import GROUP
from tests.conftest import ARCHITECTURES, Build

SMALL = Settings(
    container="compressed-tensors",
    sequences=16,
    length=48,
    held_out_sequences=4,
    held_out_length=64,
    dtype="float32",
    calibration="documentation",
)
QUIET = Reporter(quiet=True)
MODEL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}


def source_of(directory: Path) -> Source:
    return open_model(Checkpoint.of_directory(directory), vocabulary=COMPRESSED_TENSORS.vocabulary).source


def plan_of(source: Source, formats: list[str]) -> Plan:
    """``formats`` in turn, fused weights not kept alike: transformers takes any mix."""
    choices = []
    for i, weight in enumerate(source.spec.weights):
        format = COMPRESSED_TENSORS.format(formats[i % len(formats)])
        if COMPRESSED_TENSORS.accepts(weight, format):
            format = SIXTEEN_BIT
        rounding = Rounding.NONE if format is SIXTEEN_BIT else Rounding.NEAREST
        size = COMPRESSED_TENSORS.nbytes(weight, format, source)
        choices.append(Choice(weight.name, format.name, rounding, size, 0.0))
    kept = COMPRESSED_TENSORS.kept_nbytes(source)
    total = kept + sum(choice.nbytes for choice in choices)
    numbers = (None, total, kept, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Plan("x", COMPRESSED_TENSORS.name, "w4-g32", "", *numbers, tuple(choices))


def packed_of(source: Source):
    def rounded(weight: Weight, format: str, rounding: Rounding) -> Packed:
        return Packed.of(GROUP.nearest(weight.view.matrix(source.read(weight.name)), COMPRESSED_TENSORS.format(format)))

    return rounded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_decodes_every_mix(build: Build, tmp_path: Path, architecture: str) -> None:
    """Every width and group size beside 16 bit, an 8-bit head where it has weights of its own; then read back."""
    source = source_of(build(architecture))
    plan = plan_of(source, ["w4-g32", "w8-g64", "16bit", "w3-g32", "w2-g64", "w8-g32"])
    written = COMPRESSED_TENSORS.write({tmp_path: plan}, source, packed_of(source))[tmp_path]
    tensors = load_file(tmp_path / "model.safetensors")
    assert written == plan.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        loaded(torch.arange(3, 9)[None])  # the first pass unpacks
    back = COMPRESSED_TENSORS.read(tmp_path, source.spec.weights)
    assert set(back) == {c.weight for c in plan.choices if c.format != "16bit"}
    for choice, weight in zip(plan.choices, source.spec.weights, strict=True):
        value = loaded.get_submodule(weight.module).weight
        if choice.format == "16bit":
            assert torch.equal(value, source.read(weight.name))
            continue
        codes = COMPRESSED_TENSORS.codes(packed_of(source)(weight, choice.format, choice.rounding))
        assert torch.equal(value, codes.decode(torch.bfloat16)), weight.name
        assert torch.equal(COMPRESSED_TENSORS.codes(back[weight.name]).decode(), codes.decode())


def test_the_whole_job_beats_rounding_to_nearest_and_the_best_uniform_format(build: Build, tmp_path: Path) -> None:
    source, out = build("llama", **MODEL), tmp_path / "out"
    report = bitwright.quantize(source, out, "+12%", settings=SMALL, reporter=QUIET, workdir=tmp_path / "work")
    stock = report.verdict.entry("W4A16, to nearest")
    assert report.result.nbytes == report.plan.nbytes <= 1.12 * stock.nbytes
    assert report.result.divergence.kl < 0.6 * stock.divergence.kl
    assert report.plan.broken_groups == ()
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    formats = {c.weight.removesuffix(".weight"): c.format for c in report.plan.choices}
    for group in config["config_groups"].values():
        names = {formats[target] for target in group["targets"]}
        assert names == {f"w{group['weights']['num_bits']}-g{group['weights']['group_size']}"}
    for layer in range(3):
        attention = {formats[f"model.layers.{layer}.self_attn.{name}_proj"] for name in "qkv"}
        assert len(attention) == 1, "one format for what is multiplied as one"
    table = bitwright.Sensitivity.load(tmp_path / "work" / "sensitivity.json")
    free = bitwright.allocate(table, "+12%", fused_groups=False)
    assert free.damage_nats <= report.plan.damage_nats * (1 + 1e-6)
    assert report.plan.fused_cost_nats == pytest.approx(report.plan.damage_nats - free.damage_nats, abs=1e-6)


def test_a_head_of_its_own_is_offered_in_8_bits_and_a_tied_one_is_kept(build: Build) -> None:
    own = source_of(build("llama"))
    head = next(weight for weight in own.spec.weights if weight.kind is Kind.HEAD)
    assert COMPRESSED_TENSORS.menu(head) == ("w8-g64",)
    assert head.name not in COMPRESSED_TENSORS.stock(own.spec)
    tied = source_of(build("qwen3"))
    assert all(weight.kind is Kind.LINEAR for weight in tied.spec.weights)


def test_without_the_package_it_says_so_first(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BitwrightError, match="container/package"):
        bitwright.quantize(build("llama"), tmp_path / "out", settings=SMALL, reporter=QUIET)
    assert not (tmp_path / "out").exists()
