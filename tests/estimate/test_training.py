"""Training: states of a real optimizer, factors of LoRA, activations, and the verb."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from bitwright.cli.main import app
from bitwright.doctor.model import Model
from bitwright.estimate.families import parts
from bitwright.estimate.parts import LINEAR
from bitwright.estimate.storage import stored_nbytes
from bitwright.estimate.training import (
    CHECKPOINTED,
    FAKE_NBYTES,
    KEPT,
    MIXED,
    OPTIMIZERS,
    PURE_16,
    activation_nbytes,
    adapter_parameters,
    training,
)
from tests.conftest import Build

LLAMA_8B = ["estimate", "--params", "8B", "--kv-heads", "8"]


@pytest.mark.parametrize(("dtype", "optimizer"), [(torch.float32, MIXED), (torch.bfloat16, PURE_16)])
def test_full_training_holds_what_adamw_holds(build: Build, dtype: torch.dtype, optimizer: str) -> None:
    directory = build("llama")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    adamw = torch.optim.AdamW(model.parameters())
    ids = torch.ones(1, 8, dtype=torch.long)
    model(ids, labels=ids).loss.backward()
    adamw.step()
    held = sum(p.nbytes + p.grad.nbytes for p in model.parameters() if p.grad is not None)
    held += sum(v.nbytes for state in adamw.state.values() for v in state.values() if v.dim())
    n_parameters = sum(part.n_parameters for part in parts(Model(directory).config))
    assert held == n_parameters * OPTIMIZERS[optimizer]


def test_adapters_are_two_factors_for_every_linear(build: Build) -> None:
    directory = build("llama")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    linears = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    expected = sum(8 * (m.in_features + m.out_features) for m in linears)
    found = parts(Model(directory).config)
    assert adapter_parameters(found, 8) == expected
    assert len(linears) == sum(part.count for part in found if part.role == LINEAR)


def test_recomputation_costs_one_input_a_layer() -> None:
    text = {"hidden_size": 10, "num_hidden_layers": 4, "vocab_size": 3}
    assert activation_nbytes(text, 7, 2, KEPT) == 34 * 7 * 2 * 10 * 4 + 16 * 14 * 3
    assert activation_nbytes(text, 7, 2, CHECKPOINTED) == (2 * 4 + 34) * 7 * 2 * 10 + 16 * 14 * 3


def test_quantization_aware_training_keeps_a_copy_and_a_mask() -> None:
    """What the backward pass of a linear layer over a rounded weight keeps more than over the weight itself."""

    def kept(rounds: bool) -> int:
        weight = torch.randn(96, 64, dtype=torch.bfloat16, requires_grad=True)
        x = torch.randn(8, 64, dtype=torch.bfloat16, requires_grad=True)
        saved: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            scale, zero = torch.full((96,), 0.2), torch.zeros(96, dtype=torch.int32)
            used = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -8, 7) if rounds else weight
            y = torch.nn.functional.linear(x, used)
        y.sum().backward()
        return sum(saved.values())

    assert kept(True) - kept(False) == FAKE_NBYTES * 96 * 64


def test_the_order_of_the_methods(build: Build) -> None:
    config = Model(build("llama")).config
    found = parts(config)
    lines = {
        line.method: line
        for line in training(
            found,
            config,
            stored_nbytes(found, config),
            n_tokens=8,
            batch=1,
            rank=4,
            optimizer=MIXED,
            activations=CHECKPOINTED,
            memory=None,
        )
    }
    assert lines["QLoRA, rank 4"].memory_nbytes < lines["LoRA, rank 4"].memory_nbytes < lines["full"].memory_nbytes
    linears = sum(part.n_parameters for part in found if part.role == LINEAR)
    copies = lines["QAT"].activations_nbytes - lines["full"].activations_nbytes
    assert copies == 3 * linears // config["num_hidden_layers"]
    assert lines["LoRA, rank 4"].trained_nbytes == 16 * adapter_parameters(found, 4)


def test_the_verb() -> None:
    done = CliRunner().invoke(app, [*LLAMA_8B, "--train", "--memory", "24GB", "--context", "2048"])
    assert done.exit_code == 0, done.output
    assert [line.split()[-1] for line in done.output.splitlines() if line.startswith(("full", "QLoRA"))] == ["no", "yes"]
    told = json.loads(CliRunner().invoke(app, [*LLAMA_8B, "--train", "--json"]).stdout)
    assert [line["method"] for line in told["training"]] == ["full", "LoRA, rank 16", "QLoRA, rank 16", "QAT"]
    wrong = CliRunner().invoke(app, [*LLAMA_8B, "--train", "--optimizer", "magic"])
    assert wrong.exit_code == 2
    assert "error[estimate/optimizer]" in wrong.stderr
