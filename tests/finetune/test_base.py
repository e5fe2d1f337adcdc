"""Adapters beside files of other programs, whose codes stay packed; llama.cpp loads what was learnt."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import bitwright
from bitwright.checkpoint.result import plan_of
from bitwright.cli.main import app
from bitwright.errors import BitwrightError
from bitwright.evaluate.evaluate import Candidate
from bitwright.finetune import finished
from bitwright.finetune.base import Base
from bitwright.finetune.finetune import finetune
from bitwright.finetune.merge import _like
from bitwright.finetune.model import adapt, load, require_loadable
from bitwright.finetune.quant_linear import QuantLinear
from bitwright.finetune.train import put_adapter
from bitwright.finetune.training import Training
from bitwright.finetune.weights import PackedWeight
from bitwright.formats.families import unpacked
from bitwright.host.progress import QUIET
from bitwright.runtimes.llama_cpp import LlamaCpp
from bitwright.runtimes.transformers import load as stock_load
from tests.conftest import TINY, Build
from tests.finetune.conftest import require_alike

MODEL = {"hidden_size": 64, "intermediate_size": 128}
TRAINING = Training(rank=4, length=64, max_steps=6, learning_rate=1e-2, device="cpu", dtype="float32", held_out=0.25)
CPU = torch.device("cpu")


@pytest.mark.parametrize("rslora", [False, True])
def test_llama_cpp_answers_with_the_adapter_as_the_trained_model_does(
    rslora: bool, build: Build, data: str, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    source, model, out = build("llama", **MODEL), tmp_path / "model.gguf", tmp_path / "adapter"
    settings = replace(TINY, compare=False, container="gguf", formats=("q4_0", "q8_0"))
    bitwright.quantize(source, model, "+30%", settings=settings, reporter=QUIET)
    training = replace(TRAINING, source=str(source), rslora=rslora)
    if rslora:
        words = ["--rslora", "--rank", "4", "--length", "64", "--max-steps", "6", "--learning-rate", "0.01"]
        words += ["--source", str(source), "--held-out", "0.25", "--device", "cpu", "--dtype", "float32"]
        shown = CliRunner().invoke(app, ["finetune", str(model), data, str(out), *words])
        assert shown.exit_code == 0, shown.output
        assert f"AutoModelForCausalLM.from_pretrained('{source}')" in shown.output.replace("\n", "")
        assert f"--lora {out}/adapter.gguf" in shown.output.replace("\n", "")
    else:
        found = finetune(model, data, out, training=training, reporter=QUIET)
        assert found.after.loss < found.before.loss - 0.3
        require_alike(found)
    assert "--lora HERE/adapter.gguf" in (out / "README.md").read_text()
    kept = _like(out, "", "gguf")
    assert kept is not None, "a merge keeps its formats: the file lies beside the adapter"
    assert kept.to_json() == plan_of(model).to_json()
    assert _like(out, "", "compressed-tensors") is None
    trained = Base.of(model, training).load(CPU, torch.float32)
    ids = torch.arange(5, 45)
    with torch.no_grad():
        plain = trained(input_ids=ids[None]).logits[0]
    adapt(trained, ("*",), training.rank, training.alpha, rslora)
    layers = [layer for layer in trained.model.layers.modules() if isinstance(layer, QuantLinear)]
    assert all(isinstance(layer.weight, PackedWeight) for layer in layers)
    put_adapter(trained, load_file(out / "adapter_model.safetensors"))
    with torch.no_grad():
        mine = trained(input_ids=ids[None]).logits[0]
    theirs = _with_adapter(model, out / "adapter.gguf", ids)
    assert (mine - plain).norm() > 0.1 * plain.norm()
    assert (theirs - mine).norm() < 0.05 * (mine - plain).norm()  # llama.cpp multiplies with activations in 8 bits


def _with_adapter(model: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of llama.cpp after ``ids`` with ``adapter``."""
    return torch.cat(list(LlamaCpp(model, len(ids), adapter=adapter).logit_parts(ids)))


def test_a_gguf_file_of_somebody_else_stays_packed(
    build: Build, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its codes are those in the file, and not 16-bit numbers made of them."""
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    source, model, out = build("llama", **MODEL), tmp_path / "model.gguf", tmp_path / "adapter"
    settings = replace(TINY, compare=False, container="gguf", formats=("q4_0", "q8_0"))
    bitwright.quantize(source, model, "+30%", settings=settings, reporter=QUIET)
    wanted = Base.of(model, replace(TRAINING, source=str(source))).load(CPU, torch.float32)
    for file in tmp_path.glob("model.*"):
        if file != model:
            file.unlink()  # what tells that it is ours
    found = finetune(model, data, out, training=TRAINING, reporter=QUIET)
    assert found.after.loss < found.before.loss - 0.2
    assert (out / "adapter.gguf").exists()
    loaded = Base.of(model, TRAINING).load(CPU, torch.float32)
    packed = [layer for layer in loaded.model.layers.modules() if isinstance(layer, QuantLinear)]
    assert all(isinstance(layer.weight, PackedWeight) for layer in packed)
    with torch.no_grad():
        ids = torch.arange(5, 45)[None]
        torch.testing.assert_close(loaded(input_ids=ids).logits, wanted(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(finished, "known_family", lambda _: None)
    said = Mock(wraps=QUIET)
    found = finetune(model, data, tmp_path / "wide", training=replace(TRAINING, max_steps=1), reporter=said)
    assert any("family whose names are not known here" in call.args[0] for call in said.say.call_args_list)
    require_alike(found)


def test_peft_loads_an_adapter_that_was_trained_beside_compressed_tensors(build: Build, data: str, tmp_path: Path) -> None:
    """What was trained beside packed integers is what PEFT makes of their values, in the stock class."""
    source, model, out = build("llama", **MODEL), tmp_path / "model", tmp_path / "adapter"
    settings = replace(TINY, compare=False, container="compressed-tensors", formats=("w4-g32", "w8-g32"), fused_groups=False)
    bitwright.quantize(source, model, "5bpw", settings=settings, reporter=QUIET)
    training = replace(TRAINING, source=str(source))
    found = finetune(model, data, out, training=training, reporter=QUIET)
    assert found.after.loss < found.before.loss - 0.2
    require_alike(found)
    mine, stock = Base.of(model, training).load(CPU, torch.float32), load(source, CPU, torch.float32)
    linears = [(name, layer) for name, layer in mine.named_modules() if isinstance(layer, QuantLinear)]
    assert any(isinstance(layer.weight, PackedWeight) for _, layer in linears)
    for name, layer in linears:
        if isinstance(layer.weight, PackedWeight):
            stock.get_submodule(name).weight.data = unpacked(layer.weight.packed).decode()
    adapt(mine, ("*",), training.rank, training.alpha, False)
    put_adapter(mine, load_file(out / "adapter_model.safetensors"))
    adapted: torch.nn.Module = PeftModel.from_pretrained(stock, out)
    with torch.no_grad():
        ids = torch.arange(5, 45)[None]
        torch.testing.assert_close(mine(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_linears_that_peft_takes_for_experts_are_refused() -> None:
    """A mixture of experts with a dense block: PEFT would lay nothing over its linears, and only warn."""
    require_loadable(["model.layers.0.mlp.gate_proj"], "llama")
    require_loadable(["model.layers.0.self_attn.q_proj"], "deepseek_v3")
    with pytest.raises(BitwrightError) as caught:
        require_loadable(["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj"], "deepseek_v3")
    assert caught.value.finding.rule == "finetune/experts"
    assert caught.value.finding.help == "--targets q_proj"


def test_an_adapter_of_which_peft_leaves_a_part_out_is_none(build: Build, data: str, tmp_path: Path) -> None:
    source, out = build("llama", **MODEL), tmp_path / "adapter"
    finetune(source, data, out, training=replace(TRAINING, method="lora", max_steps=1), reporter=QUIET)
    load_with_adapter = partial(stock_load, device="cpu", n_tokens=64)
    load_with_adapter(asdict(Candidate("x", str(source), adapter=str(out))))
    tensors = load_file(out / "adapter_model.safetensors")
    save_file(
        {name.replace("layers.0.mlp.up", "layers.9.mlp.up"): t for name, t in tensors.items()},
        out / "adapter_model.safetensors",
    )
    with pytest.raises(BitwrightError, match="evaluate/adapter"):
        load_with_adapter(asdict(Candidate("x", str(source), adapter=str(out))))
