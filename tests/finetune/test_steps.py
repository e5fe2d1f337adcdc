"""A step of training: what texts lose together and alone, and the same gradient in whatever parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.errors import BitwrightError
from bitwright.evaluate.reference import condense
from bitwright.finetune import loss
from bitwright.finetune import train as loop
from bitwright.finetune.finetune import finetune
from bitwright.finetune.inputs import LABELS, Layout, packed, padded
from bitwright.finetune.model import adapt, load, require_known_head
from bitwright.finetune.tokens import Example
from bitwright.finetune.train import DISTRIBUTION, PartTrainer, loss_of
from bitwright.models.logits import LogitRule
from tests.conftest import Build
from tests.finetune.conftest import QUIET, TRAINING


def random_examples(count: int) -> list[Example]:
    torch.manual_seed(4)
    found = []
    for i in range(count):
        ids = torch.randint(5, 500, ((30, 11, 18, 9)[i % 4] + i // 4,))
        labels = torch.cat([ids[1:], torch.tensor([-100])])
        labels[: 2 + i] = -100
        found.append(Example(ids, labels, 0, i + 1))
    return found


TOGETHER = ("llama", "qwen3", "gemma3_text", "gpt2", "phi", "granite")
SHAPES: dict[str, dict[str, Any]] = {"phi": {"tie_word_embeddings": False}, "granite": {"logits_scaling": 4.0}}
APART: dict[str, dict[str, Any]] = {
    "qwen3_next": {},  # states
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # convolutions
    "opt": {},  # positions that are counted
    "bloom": {},  # slopes in place of positions
}


@pytest.mark.parametrize("architecture", [*TOGETHER, *APART])
def test_texts_of_a_batch_lose_what_they_lose_alone(build: Build, architecture: str) -> None:
    model = load(
        build(architecture, **SHAPES.get(architecture, APART.get(architecture, {}))), torch.device("cpu"), torch.float32
    )
    adapt(model, ("*",), 4, 8.0, False)
    texts = random_examples(4)
    require_known_head(model)
    layout = Layout.of(model, torch.float32)
    assert layout.shared == (architecture in TOGETHER)
    with torch.no_grad():
        alone = sum(float(loss_of(model, padded([text]), 1)) for text in texts)
        together = float(loss_of(model, layout(texts), 1))
        logits = model(input_ids=texts[0].ids[None]).logits[0].float()
        in_one_row = float(loss_of(model, packed(texts), 1))
    assert len(packed(texts)["input_ids"]) < len(texts), "no two texts share a row"
    assert together == pytest.approx(alone, rel=1e-5)
    assert (in_one_row == pytest.approx(alone, rel=1e-5)) == layout.shared
    own = torch.nn.functional.cross_entropy(logits, texts[0].labels, reduction="sum")
    assert float(loss_of(model, layout(texts[:1]), 1)) == pytest.approx(float(own), rel=1e-5)


def test_a_head_whose_logits_are_not_understood_is_not_trained(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(build("llama"), torch.device("cpu"), torch.float32)
    adapt(model, ("*",), 4, 8.0, False)
    monkeypatch.setattr(LogitRule, "of", lambda config: LogitRule(factor=2.0))
    with pytest.raises(BitwrightError, match="more than a product"):
        require_known_head(model)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_is_divided_by_all_its_labels(build: Build, tmp_path: Path, rows: int) -> None:
    """A text that is learnt whole has a label at the first place of its row."""
    texts = [Example(ids := torch.randint(5, 500, (6,)), torch.cat([ids[1:], torch.tensor([-100])]), 0, i) for i in range(6)]
    model = load(build("llama"), torch.device("cpu"), torch.float32)
    trainer = PartTrainer(model, loop.arguments(tmp_path, torch.device("cpu")), train_dataset=texts)
    parts = [packed(texts[start : start + rows]) for start in range(0, 6, rows)]
    counted = trainer.get_batch_samples(iter(parts), len(parts), torch.device("cpu"))[1]
    assert int(counted) == sum(text.n_labels for text in texts)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 5e-6)])
def test_a_step_of_several_parts_has_the_gradient_of_the_whole(quantized: Path, dtype: torch.dtype, most: float) -> None:
    model = load(quantized, torch.device("cpu"), dtype)
    adapt(model, ("*",), 4, 8.0, False)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(5))
    texts = random_examples(8)
    total = sum(text.n_labels for text in texts)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradient(parts: list[list[Example]]) -> list[torch.Tensor]:
        model.zero_grad()
        for part in parts:
            loss_of(model, packed(part), total).backward()
        return [parameter.grad.clone() for parameter in trained if parameter.grad is not None]

    whole, single = gradient([texts]), gradient([[text] for text in texts])
    difference = torch.stack([(a - b).norm() for a, b in zip(whole, single, strict=True)]).norm()
    assert difference <= most * torch.stack([a.norm() for a in whole]).norm()


def test_sixteen_texts_in_one_pass_and_in_sixteen_are_one_step(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the Trainer itself, with texts of different lengths."""
    rows = [{"prompt": f"{i} {'and so on ' * (i % 3)}", "completion": f"{i}" * (1 + i % 4)} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        PartTrainer,
        "require_finite_gradients",
        lambda self: seen.append(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.requires_grad])),
    )
    for batch, accumulate in ((16, 1), (1, 16)):
        training = replace(TRAINING, batch=batch, accumulate=accumulate, max_steps=1, held_out=0.0)
        out = tmp_path / f"of-{batch}"
        finetune(quantized, str(tmp_path / "rows.jsonl"), out, training=training, reporter=QUIET)
    one, many = seen
    assert (one - many).norm() <= 5e-6 * one.norm()


def test_training_from_distributions_takes_some_of_the_vocabulary(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a loss is of all of it, and labels always are."""
    monkeypatch.setattr(loss, "OTHERS", 80)
    model = load(build("llama"), torch.device("cpu"), torch.float32)
    adapt(model, ("*",), 0, 0.0, False)
    inputs = padded(random_examples(4)[:1])
    labels = inputs[LABELS].reshape(-1)
    told = condense(torch.randn(len(labels), 500), labels.clamp(min=0), 2, samples=0)
    torch.manual_seed(0)
    kept = {name: getattr(told, name)[None] for name in DISTRIBUTION}

    def losses(given: dict[str, torch.Tensor]) -> tuple[float, float]:
        with torch.no_grad():
            return float(loss_of(model.eval(), given)), float(loss_of(model.train(), given))

    whole, trained = losses(inputs | kept)
    assert 0 < abs(trained - whole) < 0.1 * whole
    whole, trained = losses(inputs)
    assert trained == whole
