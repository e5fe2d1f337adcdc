"""Fine-tuned in the format that is written: the file answers as the trained model did, whatever its container."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright
from bitwright.checkpoint.output import beside
from bitwright.containers.registry import container_of
from bitwright.errors import BitwrightError
from bitwright.finetune.answers import Answers, by_program, held, unlike
from bitwright.finetune.finetune import finetune
from bitwright.finetune.finished import Finished
from bitwright.finetune.inputs import Layout
from bitwright.finetune.snapped import SnappedLinear
from bitwright.finetune.texts import texts_of
from bitwright.finetune.training import Training
from bitwright.formats.families import unpacked
from bitwright.host.progress import QUIET
from tests.conftest import TINY, Build

MODEL = {"hidden_size": 64, "intermediate_size": 128}
SETTINGS = replace(TINY, compare=False)
TRAINING = Training(
    method="qat", rank=8, length=64, batch=4, max_steps=30, learning_rate=5e-3, device="cpu", dtype="float32", held_out=0.25
)


@pytest.mark.parametrize(("container", "formats"), [("bitsandbytes", ()), ("gguf", ("q4_0", "q8_0"))])
def test_what_was_learnt_is_what_is_written(
    container: str, formats: tuple[str, ...], build: Build, data: str, tmp_path: Path
) -> None:
    source, suffix = build("llama", **MODEL), ".gguf" if container == "gguf" else ""
    model, out = tmp_path / f"model{suffix}", tmp_path / f"tuned{suffix}"
    settings = replace(SETTINGS, container=container, formats=formats)
    bitwright.quantize(source, model, "+30%", settings=settings, reporter=QUIET)
    for path in (model, out):
        path.with_name(f"{path.stem}.notes.txt").write_text(f"of {path.stem}")
    found = finetune(model, data, out, training=replace(TRAINING, source=str(source)), reporter=QUIET)
    assert out.with_name(f"{out.stem}.notes.txt").read_text() == f"of {out.stem}"  # no file of somebody else is touched
    assert found.written is not None
    in_memory = found.written.in_memory
    assert in_memory.loss < found.before.loss - 0.5
    assert found.written.by_program == found.after
    assert found.after.loss == pytest.approx(in_memory.loss, abs=0.03)  # runtimes compute in 16 bit
    assert f"(in memory {in_memory.loss:.3f}, {in_memory.right:.0%})" in beside(out, "README.md").read_text()
    weights = Finished.open(out, str(source), SETTINGS).subject.source.spec.weights
    old, new = (container_of(container).read(path, weights) for path in (model, out))
    assert {name: packed.format for name, packed in old.items()} == {name: packed.format for name, packed in new.items()}
    changed = [(unpacked(new[n]).chosen != unpacked(old[n]).chosen).reshape(-1) for n in old if "_proj" in n]
    assert found.moved == pytest.approx(float(torch.cat(changed).float().mean()))
    assert found.moved > 0.01
    assert "of the trained codes are others" in beside(out, "README.md").read_text()
    assert f"]({beside(out, 'loss.svg').name})" in beside(out, "README.md").read_text()
    assert beside(out, "loss.svg").exists()
    assert out.stat().st_size == pytest.approx(model.stat().st_size, rel=0.01)
    scaled = tmp_path / f"scaled{suffix}"
    training = replace(TRAINING, source=str(source), method="scales", rank=Training.rank, learning_rate=0.03)
    of_scales = finetune(model, data, scaled, training=training, reporter=QUIET)
    assert of_scales.after.loss < of_scales.before.loss - 0.1
    assert of_scales.n_trained < found.n_trained
    some = Finished.open(model, str(source), SETTINGS).model(torch.float32, rank=4, targets=("q_proj", "k_proj"))
    named = {name.rpartition(".")[2] for name, layer in some.named_modules() if isinstance(layer, SnappedLinear)}
    assert named == {"q_proj", "k_proj"}
    same = container_of(container).read(scaled, weights)
    assert all(torch.equal(unpacked(same[n]).chosen, unpacked(old[n]).chosen) for n in old)
    assert of_scales.moved == 0.0


def test_answers_in_memory_and_of_a_file_are_the_same(build: Build, data: str, tmp_path: Path) -> None:
    from bitwright.data.tokenizer import tokenizer_of
    from bitwright.finetune.model import adapt, load

    source = build("llama", torch.float32, **MODEL)
    kept = texts_of(data, source, tokenizer_of(source), TRAINING).kept
    model = load(source, torch.device("cpu"), torch.float32)
    adapt(model, ("*",), 0, 0.0, False)
    mine = held(model, kept, 3, Layout.of(model, torch.float32), QUIET, "now")
    of_file = by_program(source, kept, torch.device("cpu"), tmp_path, QUIET, "file")
    assert mine.loss == pytest.approx(of_file.loss, rel=2e-2)  # loaded in bfloat16
    assert mine.right == of_file.right == 0


def test_right_answers_are_counted_text_by_text(build: Build, data: str) -> None:
    from bitwright.data.tokenizer import tokenizer_of
    from bitwright.finetune.model import adapt, load

    source = build("llama", **MODEL)
    kept = texts_of(data, source, tokenizer_of(source), TRAINING).kept
    model = load(source, torch.device("cpu"), torch.float32)
    adapt(model, ("*",), 0, 0.0, False)
    with torch.no_grad():
        logits = [model(input_ids=example.ids[None]).logits[0] for example in kept]
    likeliest = [torch.where(e.labels >= 0, own.argmax(1), e.labels) for e, own in zip(kept, logits, strict=True)]
    known = [replace(e, labels=labels) if i % 2 else e for i, (e, labels) in enumerate(zip(kept, likeliest, strict=True))]
    answers = held(model, known, 3, Layout.of(model, torch.float32), QUIET, "now")
    assert answers.right == (len(kept) // 2) / len(kept)


def test_the_share_that_survived() -> None:
    before, best = Answers(2.0, 0.0), Answers(1.0, 0.5)
    assert Answers(1.02, 0.24).share_of(before, best) == pytest.approx(0.48)  # though the loss has kept 98 %
    assert Answers(1.1, 0.01).share_of(before, Answers(1.0, 0.02)) == pytest.approx(0.9)  # two in a hundred are chance
    assert unlike(before, best, best) == ""
    assert "1.000 nats and 50% right in memory, nan nats" in unlike(before, best, Answers(math.nan, 0.5))
    assert "1.020 nats and 24% right by its program" in unlike(before, best, Answers(1.02, 0.24))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"method": "scales", "rank": 8, "rslora": True}, ("--rank", "--rslora")),
        ({"method": "qat", "train": ("vision",)}, ()),
        ({"method": "qat", "rank": 0, "alpha": 8.0}, ("--alpha",)),
        ({"method": "qat", "rank": 8, "alpha": 8.0}, ()),
        ({"method": "lora", "train": ("vision",), "rank": 4, "rslora": True}, ()),
    ],
)
def test_options_that_the_method_does_not_use_are_named(asked: dict[str, Any], named: tuple[str, ...], tmp_path: Path) -> None:
    training = Training(**asked)
    assert training.unused() == named
    if named:
        with pytest.raises(BitwrightError, match="finetune/unused") as caught:
            finetune("demo", "q.csv", tmp_path / "out", training=training, reporter=QUIET)
        assert all(name in caught.value.finding.help for name in named)


@pytest.mark.parametrize("case", ["method", "not ours", "suffix"])
def test_what_cannot_be_trained_in_its_format(case: str, build: Build, data: str, tmp_path: Path) -> None:
    source, out, training = build("llama", **MODEL), tmp_path / "out", TRAINING
    if case == "method":
        training, rule = replace(TRAINING, method="magic"), "finetune/method"
    elif case == "not ours":
        rule = "result/not-ours"
    else:
        model = tmp_path / "model"
        settings = SETTINGS
        bitwright.quantize(source, model, "+30%", settings=settings, reporter=QUIET)
        source_name, source, out, rule = str(source), model, tmp_path / "out.gguf", "output/suffix"
        training = replace(TRAINING, source=source_name)
    with pytest.raises(BitwrightError) as caught:
        finetune(source, data, out, training=training, reporter=QUIET)
    assert caught.value.finding.rule == rule
