"""A weight that is replaced alone costs what the whole model in memory says, and its estimates stay under what was seen."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from bitwright.data.folds import Folds
from bitwright.data.samples import Sample
from bitwright.evaluate.divergence import token_figures
from bitwright.evaluate.reference import condense
from bitwright.host.progress import QUIET
from bitwright.measure import alone, ceilings
from bitwright.measure.ceilings import Alone, alone_notes, bounded
from bitwright.measure.measure import Measurement, measure
from bitwright.measure.subject import Subject
from bitwright.plan import Rounding
from bitwright.sensitivity import Sensitivity
from bitwright.settings import Settings
from tests.conftest import Build, byte_tokenizer
from tests.vision import FAMILIES, built

SETTINGS = Settings(device="cpu", dtype="float32", sequences=8, length=24, seed=3)


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "LARGE", 0.0)


def by_the_whole_model(model: Any, found: Measurement, one: Alone) -> float:
    """KL over the samples with the weight replaced in the loaded model."""
    source = found.subject.source
    weight = next(w for w in source.spec.weights if w.name == one.weight)
    packed = found.packed_of(weight, one.format, one.rounding)
    codes = found.subject.container.rounder(packed.format).codes
    value = weight.view.matrix(codes.decode_packed(packed.format, packed.shape, packed.tensors, torch.float32))
    parameter = model.get_parameter(one.weight)
    before = parameter.detach().clone()
    figures = []
    with torch.no_grad():
        for sample in found.folds.choosing[: ceilings.SAMPLES]:
            reference = condense(logits_of(model, sample), sample.ids[sample.positions])
            parameter.copy_(value)
            figures.append(token_figures(reference, logits_of(model, sample), sample.ids[sample.positions]).kl)
            parameter.copy_(before)
    return float(torch.cat(figures).double().mean())


def logits_of(model: Any, sample: Sample) -> torch.Tensor:
    inputs = {name: tensor[None] for name, tensor in sample.inputs.items()} | sample.media
    logits: torch.Tensor = model(**inputs, use_cache=False).logits[0, sample.positions].float()
    return logits


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_it_is_what_the_whole_model_says(architecture: str, build: Build, tmp_path: Path) -> None:
    path = build(architecture)
    text = tmp_path / "text.txt"
    text.write_text("some words to calibrate on, and a few more of them. " * 200)
    container = "gguf" if architecture == "gemma3_text" else "bitsandbytes"  # there the tied embedding is measured too
    formats = ("q2_k", "q8_0", "q4_0") if container == "gguf" else ("nf4-b64",)
    settings = replace(SETTINGS, calibration=str(text), container=container, formats=formats)
    found = measure(Subject.open(path, settings), tmp_path / "work", QUIET)
    kept = alone.store.load_alone(found.work)
    assert len(kept) > 5
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for one in kept:
        assert one.nats == pytest.approx(by_the_whole_model(model, found, one), rel=1e-3, abs=1e-7), one


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("family", ["mllama", "idefics3", "qwen3_vl"])
def test_models_that_see(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "MOST", 1000)
    path = tmp_path / "model"
    built(family).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    subject = Subject.open(path, replace(SETTINGS, formats=("nf4-b64",)))
    of = FAMILIES[family]
    size = of.fixed or (4, 4)
    samples = tuple(of.sample([size] if i != 1 else [], i, length=20 + i) for i in range(6))
    monkeypatch.setattr(sys.modules["bitwright.measure.measure"], "calibration_folds", lambda *_: folds_of(samples))
    found = measure(subject, tmp_path / "work", QUIET)
    kept = alone.store.load_alone(found.work)
    groups = {weight.name: weight.group for weight in subject.source.spec.weights}
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    for group in ("text", *{groups[one.weight] for one in kept} - {"text"}):
        one = next(one for one in kept if groups[one.weight] == group)
        assert one.nats == pytest.approx(by_the_whole_model(model, found, one), rel=1e-3, abs=1e-7), one
    assert len({groups[one.weight] for one in kept}) > 1


def folds_of(samples: tuple[Sample, ...]) -> Folds:
    return Folds(samples[:2], samples[2:4], samples[4:], "made", ("made", "made"))


@pytest.mark.usefixtures("all_are_large")
def test_a_second_run_sees_nothing_again(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words to calibrate on, and a few more of them. " * 200)
    settings = replace(SETTINGS, calibration=str(text), formats=("nf4-b64",))
    first = measure(Subject.open(build("llama"), settings), tmp_path / "work", QUIET)
    monkeypatch.setattr(alone, "streaming", None)
    again = measure(Subject.open(build("llama"), settings), tmp_path / "work", QUIET)
    assert again.sensitivity == first.sensitivity
    assert Sensitivity.load(tmp_path / "work" / "sensitivity.json") == first.sensitivity
    under = [weight for weight in first.sensitivity.weights if weight.ceiling_nats is not None]
    for weight in under:
        one = next(o for o in alone.store.load_alone(first.work) if o.weight == weight.name)
        assert weight.row(one.format, one.rounding).damage_nats == pytest.approx(one.nats)
        assert all(row.damage_nats <= weight.ceiling_nats for row in weight.rows)
    assert under
    assert "measured directly" in first.notes[-1]


def test_only_large_damages_change(build: Build, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words to calibrate on, and a few more of them. " * 200)
    settings = replace(SETTINGS, calibration=str(text), formats=("nf4-b64",))
    found = measure(Subject.open(build("llama"), settings), tmp_path / "work", QUIET)
    assert not alone.store.load_alone(found.work)  # the largest is below what is looked at
    table = found.sensitivity
    weight = table.weights[0]
    row = max(weight.rows, key=lambda r: r.damage_nats)
    high = Alone(weight.name, row.format, row.rounding, row.damage_nats, row.damage_nats / 10)
    low = Alone(table.weights[1].name, row.format, Rounding.NEAREST, 0.1, 0.2)
    under = bounded(table, [high, low])
    assert under.weights[0].row(row.format, row.rounding).damage_nats == pytest.approx(row.damage_nats / 10)
    assert under.weights[1:] == table.weights[1:]
    tiny = [Alone("w", "f", Rounding.NEAREST, 1.0, 0.5)]
    assert tiny[0].ceiling == 1.0
    assert "1 nats estimated, 0.5 seen" in alone_notes(tiny)[0]
    assert not alone_notes([low])
