"""What a checkpoint stores beside 16-bit parameters is measured and written as it is: buffers, and tensors in 32 bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import bitwright
from bitwright import Settings
from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.containers.bitsandbytes import BITSANDBYTES
from bitwright.data.samples import Sample, batches
from bitwright.host.progress import Reporter
from bitwright.measure.head import Head
from bitwright.measure.trace import Trace
from bitwright.models.open import open_model
from bitwright.models.spec import BlockId, Role
from bitwright.plan import Choice, Plan, Rounding
from tests.conftest import Build
from tests.measure.streamed import boundaries

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
SMALL = Settings(sequences=8, length=32, held_out_sequences=4, held_out_length=48, dtype="float32", compare=False)
GEMMA4 = {  # every block multiplies its output with a number that is stored as a buffer
    "head_dim": 32,
    "global_head_dim": 32,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 512,
    "num_kv_shared_layers": 0,
    "enable_moe_block": False,
}


def changed(source: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    save_file(load_file(source / "model.safetensors") | tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_buffers_of_a_checkpoint_are_filled_and_written(build: Build, tmp_path: Path) -> None:
    scalars = {f"model.layers.{i}.layer_scalar": torch.tensor([0.25 + i]).bfloat16() for i in range(2)}
    source = changed(build("gemma4_text", **GEMMA4), tmp_path / "source", scalars)
    skeleton = open_model(Checkpoint.of_directory(source))
    assert {kept.name for kept in skeleton.spec.kept if kept.role is Role.BUFFER} == set(scalars)
    sample = Sample.of(torch.arange(5, 45))
    batch, trace = batches([sample], 2048)[0], Trace(skeleton, CPU, torch.float32)
    hidden = boundaries(trace, batch)[skeleton.spec.after_blocks]
    with torch.no_grad():
        found = torch.cat([logits for _, logits in Head(trace).logits(sample, hidden)])
        whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(sample.ids[None]).logits[0]
    assert torch.allclose(found, whole, atol=1e-5)
    out = tmp_path / "out"
    report = bitwright.quantize(source, out, "+40%", settings=SMALL, reporter=QUIET)
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in scalars.items())
    assert sum(t.numel() * t.element_size() for t in written.values()) == report.plan.nbytes


@pytest.mark.parametrize(("architecture", "narrow"), [("llama", True), ("qwen3", True), ("gemma3_text", False)])
def test_embedding_and_head_stay_narrow_and_answer_wide(build: Build, architecture: str, narrow: bool) -> None:
    """Not one that scales its rows; what comes out is wide, and nothing is left behind."""
    skeleton = open_model(Checkpoint.of_directory(build(architecture)))
    embedding, ids = skeleton.model.get_input_embeddings(), torch.arange(7)
    skeleton.fill_rest(CPU, torch.float32, head=False)
    assert embedding.weight.dtype == (torch.bfloat16 if narrow else torch.float32)
    assert embedding(ids).dtype == torch.float32
    skeleton.fill_head(CPU, torch.float32)
    head, states = skeleton.model.get_output_embeddings(), torch.randn(3, embedding.weight.shape[1], requires_grad=True)
    assert head.weight.dtype == embedding.weight.dtype
    assert (head.weight is embedding.weight) == skeleton.model.config.tie_word_embeddings
    given = torch.randn(3, len(head.weight))
    logits = head(states)
    (gradient,) = torch.autograd.grad(logits, states, given)
    assert torch.allclose(logits, states @ head.weight.float().t(), atol=1e-5)
    assert torch.allclose(gradient, given @ head.weight.float(), atol=1e-5)
    skeleton.release_rest()
    assert embedding.weight.is_meta
    assert head.weight.is_meta
    assert not embedding._forward_hooks
    assert "forward" not in vars(head)


def test_values_in_32_bit_are_measured_as_they_are_and_written_as_the_class_loads_them(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.input_layernorm.weight"
    norm = torch.rand(64) + 0.5  # numbers that bfloat16 does not have
    checkpoint = Checkpoint.of_directory(changed(build("llama"), tmp_path / "source", {name: norm}))
    skeleton = open_model(checkpoint)
    with skeleton.filled(BlockId("text", 0), CPU, torch.float32) as block:
        assert torch.equal(block.input_layernorm.weight, norm)
    assert skeleton.source.written_dtype(name) == torch.bfloat16
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["input_layernorm"])
    source = open_model(checkpoint).source
    assert source.written_dtype(name) == torch.float32
    assert source.kept_nbytes == source.spec.kept_nbytes + 2 * 64
    choices = tuple(Choice(w.name, "16bit", Rounding.NONE, w.nbytes, 0.0) for w in source.spec.weights)
    plan = Plan("x", "bitsandbytes", "16bit", "", None, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, choices)
    out = tmp_path / "out"
    out.mkdir()
    nbytes = BITSANDBYTES.write({out: plan}, source, lambda *_: pytest.fail("nothing is quantized"))[out]
    written = load_file(out / "model.safetensors")
    assert torch.equal(written[name], norm)
    assert nbytes == source.kept_nbytes + sum(w.nbytes for w in source.spec.weights)


def test_a_model_in_float16_is_planned_to_the_byte(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = bitwright.quantize(build("llama", dtype=torch.float16), out, "+40%", settings=SMALL, reporter=QUIET)
    written = load_file(out / "model.safetensors")
    assert sum(t.numel() * t.element_size() for t in written.values()) == report.plan.nbytes
    assert written["model.norm.weight"].dtype == torch.float16
