"""Training on a GPU: what is kept elsewhere changes no gradient, other kernels hardly any, and every method learns."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright
from bitwright import Settings, Training
from bitwright.finetune import arena
from bitwright.finetune.arena import Arena
from bitwright.finetune.finetune import finetune
from bitwright.finetune.inputs import packed
from bitwright.finetune.model import adapt, load
from bitwright.finetune.tokens import Example
from bitwright.finetune.train import loss_of, recompute
from bitwright.host.progress import Reporter
from tests.conftest import VOCAB, Build

QUIET = Reporter(quiet=True)
MODEL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
TRAINING = Training(method="lora", rank=4, length=64, batch=4, max_steps=12, learning_rate=5e-3, device="cuda", held_out=0.25)
pytestmark = pytest.mark.gpu


def test_what_is_kept_in_the_processors_memory_changes_nothing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "LEAST_NBYTES", 1 << 12)
    model = load(build("llama", **MODEL, max_position_embeddings=4096), torch.device("cuda"), torch.bfloat16)
    adapt(model, ("*",), 4, 8.0, False)
    recompute(model)
    model.train()
    ids = torch.randint(0, VOCAB, (4096,))
    batch = {name: tensor.cuda() for name, tensor in packed([Example(ids, ids.roll(-1), 0, 1)]).items()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(place: Arena) -> tuple[list[torch.Tensor], int]:
        for _ in range(2):
            model.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            loss_of(model, batch, arena=place).backward()
        found = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        return found, torch.cuda.max_memory_allocated()

    (here, most), (away, less) = gradients(Arena()), gradients(Arena(offload=True))
    assert len(here) == len(parameters)
    assert all(torch.equal(one, other) for one, other in zip(here, away, strict=True))
    kept = 8 * len(ids) * 256 * torch.bfloat16.itemsize  # what the blocks were given
    assert most - less > 0.6 * kept


@pytest.mark.parametrize("given", [{}, {"offload": True}, {"liger": True}, {"optimizer": "adamw8bit"}], ids=str)
def test_an_adapter_learns(given: dict[str, Any], build: Build, data: str, tmp_path: Path) -> None:
    if "liger" in given and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel is not installed")
    found = finetune(build("llama", **MODEL), data, tmp_path / "a", training=replace(TRAINING, **given), reporter=QUIET)
    assert found.after.loss < found.before.loss - 0.3


@pytest.mark.parametrize("container", ["bitsandbytes", "compressed-tensors"])
def test_codes_learn(container: str, build: Build, data: str, tmp_path: Path) -> None:
    lengths: dict[str, Any] = {"sequences": 8, "length": 32, "held_out_sequences": 2, "held_out_length": 32}
    settings = Settings(**lengths, device="cuda", compare=False, calibration="documentation", container=container)
    source = build("llama", **MODEL)
    bitwright.quantize(source, tmp_path / "out", "+30%", settings=settings, reporter=QUIET)
    training = replace(TRAINING, method="qat", rank=0, learning_rate=3e-3, source=str(source))
    found = finetune(tmp_path / "out", data, tmp_path / "tuned", training=training, reporter=QUIET)
    assert found.after.loss < found.before.loss
