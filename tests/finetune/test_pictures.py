"""Training on rows with images: the model's own processor shows them, the answer carries loss, parts are trained by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

import bitwright
from bitwright.containers.registry import container_of
from bitwright.data.image_rows import opened
from bitwright.data.pictures import drawn
from bitwright.data.samples import Sample
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import BitwrightError
from bitwright.evaluate.reference import condense
from bitwright.finetune import repair as job
from bitwright.finetune.answers import held
from bitwright.finetune.finetune import finetune
from bitwright.finetune.finished import Finished, trained_codes
from bitwright.finetune.inputs import Layout, alone
from bitwright.finetune.model import adapt, load
from bitwright.finetune.preview import MOST_ALIKE, coloured
from bitwright.finetune.repair import Repaired
from bitwright.finetune.teacher import Lesson, apart
from bitwright.finetune.texts import texts_of
from bitwright.finetune.tokens import IGNORED
from bitwright.finetune.train import loss_of, recompute
from bitwright.finetune.training import Training
from bitwright.formats.families import unpacked
from bitwright.host.progress import QUIET
from tests.conftest import TINY, Build
from tests.finetune.conftest import require_alike
from tests.processors import idefics_with_processor, llava_with_processor

LOW = "compressed-tensors"  # which stores less than four bits
SHOWN = replace(TINY, compare=False, calibration="", sequences=24, held_out_sequences=1)  # pictures among the calibration
CPU, EVERY = torch.device("cpu"), ("text", "vision", "projector")
TRAINING = Training(
    method="lora",
    rank=8,
    length=512,
    batch=4,
    max_steps=6,
    learning_rate=1e-2,
    device="cpu",
    dtype="float32",
    held_out=0.25,
    train=EVERY,
)


@pytest.fixture(scope="module", params=[idefics_with_processor, llava_with_processor], ids=["idefics3", "llava"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that sees, with its processor."""
    return Path(request.param(tmp_path_factory.mktemp("seeing")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen drawings with questions and answers, and two rows of text alone."""
    folder = tmp_path_factory.mktemp("rows")
    lines: list[dict[str, Any]] = []
    for i, picture in enumerate(drawn(16, 5)):
        picture.image.save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "question": picture.question, "answer": picture.answer})
    lines += [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(2)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def test_the_answer_carries_loss_and_the_pixels_are_the_processor_s(source: Path, rows: str) -> None:
    texts = texts_of(rows, source, tokenizer_of(source), TRAINING)
    tokenizer = tokenizer_of(source)
    first, picture = texts.every[0], drawn(1, 5)[0]
    learnt = first.labels[first.labels != IGNORED]
    assert tokenizer.decode(learnt[:-1]) == picture.answer
    assert learnt[-1] == tokenizer.eos_token_id
    assert picture.question in tokenizer.decode(first.ids)
    assert first.media is not None
    processor = AutoProcessor.from_pretrained(source, backend="pil")
    image = opened(Path(rows).parent / "0.png", "here")
    stock = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(first.media()["pixel_values"].reshape(stock.shape), stock)
    assert texts.every[-1].media is None
    assert len({example.key for example in texts.every}) == 18


def test_a_folder_of_pictures_with_captions_is_data_too(source: Path, tmp_path: Path) -> None:
    for i, picture in enumerate(drawn(6, 5)):
        picture.image.save(tmp_path / f"{i}.png")
        if i:
            (tmp_path / f"{i}.txt").write_text(f"caption {picture.answer}\n", encoding="utf-8")
    texts = texts_of(str(tmp_path), source, tokenizer_of(source), TRAINING)
    assert len(texts.every) == 5, "the picture without a caption is left out"
    first, tokenizer = texts.every[0], tokenizer_of(source)
    assert tokenizer.decode(first.labels[first.labels != IGNORED][:-1]) == f"caption {drawn(2, 5)[1].answer}"
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BitwrightError, match=r"1\.txt"):
        texts_of(str(tmp_path), source, tokenizer, TRAINING)
    for caption in tmp_path.glob("*.txt"):
        caption.unlink()
    with pytest.raises(BitwrightError, match="no picture that has a caption"):
        texts_of(str(tmp_path), source, tokenizer, TRAINING)


def test_a_preview_counts_the_places_of_an_image(source: Path, rows: str) -> None:
    tokenizer = tokenizer_of(source)
    first = texts_of(rows, source, tokenizer, TRAINING).every[0]
    shown = coloured(first, tokenizer, brackets=True).plain
    places = int((first.ids == tokenizer.convert_tokens_to_ids("<image>")).sum())
    assert f"<image> x {places} " in shown if places >= MOST_ALIKE else shown.count("<image>") == places
    assert f"«{drawn(1, 5)[0].answer}" in shown


def test_each_part_can_be_trained_and_peft_loads_it(source: Path, rows: str, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    found = finetune(source, rows, out, training=TRAINING, reporter=QUIET)
    assert found.after.loss < found.before.loss - 0.5
    require_alike(found)
    kept = texts_of(rows, source, tokenizer_of(source), TRAINING).kept
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32), out)
    trained = {name.replace("base_model.model.", "") for name, _ in model.named_parameters() if "lora_B" in name}
    assert {"vision" in name for name in trained} == {True, False}
    assert any("connector" in name or "multi_modal_projector" in name for name in trained)
    total = count = 0.0
    for example in kept:
        inputs = alone([example], torch.float32)
        labels = torch.cat([torch.tensor([IGNORED]), example.labels[:-1]])  # which stock classes move by one themselves
        given = {name: tensor for name, tensor in inputs.items() if name not in ("labels", "text", "position_ids")}
        n = int((labels != IGNORED).sum())
        total += float(model(**given, labels=labels[None]).loss) * n
        count += n
    assert total / count == pytest.approx(found.after.loss, rel=1e-2)
    assert "AutoModelForImageTextToText" in (out / "README.md").read_text()


def test_towers_are_frozen_unless_they_are_named(source: Path) -> None:
    model = load(source, CPU, torch.float32)
    names = adapt(model, ("*",), 4, 4.0, False)
    assert names
    assert not any("vision" in name or "connector" in name or "projector" in name for name in names)
    with pytest.raises(BitwrightError, match="--train"):
        adapt(load(source, CPU, torch.float32), ("*",), 4, 4.0, False, ("ears",))


@pytest.mark.parametrize("parts", [("vision",), ("projector",), ("text",)])
def test_gradients_reach_each_part_also_where_blocks_are_run_again(source: Path, rows: str, parts: tuple[str, ...]) -> None:
    example = texts_of(rows, source, tokenizer_of(source), TRAINING).every[0]
    gradients = []
    for again in (False, True):
        torch.manual_seed(3)
        model = load(source, CPU, torch.float32)
        adapt(model, ("*",), 4, 4.0, False, parts)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                torch.nn.init.normal_(parameter, std=0.02)
        if again:
            recompute(model)
        model.train()
        loss_of(model, alone([example], torch.float32)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    once, twice = gradients
    unused = {name for name, gradient in once.items() if gradient is None}
    assert unused == {name for name in once if "multi_modal" not in name and _is_unread(source, name)}
    for name in once.keys() - unused:
        assert float(once[name].norm()) > 0, name  # type: ignore[union-attr]
        assert torch.allclose(once[name], twice[name], rtol=1e-4, atol=1e-7), name  # type: ignore[arg-type]


def _is_unread(source: Path, name: str) -> bool:
    """Whether a weight lies in the tower's last block of a LLaVA, which reads the one before."""
    config = json.loads((source / "config.json").read_text())
    last = config["vision_config"]["num_hidden_layers"] - 1
    return config["model_type"] == "llava" and "vision" in name and f".{last}." in name


def test_in_memory_it_answers_as_in_a_fresh_process(
    source: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.finetune import answers

    kept = texts_of(rows, source, tokenizer_of(source), TRAINING).kept
    model = load(source, CPU, torch.float32)
    adapt(model, ("*",), 0, 0.0, False)
    mine = held(model, kept, 3, Layout.of(model, torch.float32), QUIET, "now")
    assert len(kept) > 2
    monkeypatch.setattr(answers, "SEEN_AT_ONCE", len(kept) - 1)  # pixels are never all in memory: two processes are asked
    of_file = answers.by_program(source, kept, CPU, tmp_path, QUIET, "file")
    assert mine.loss == pytest.approx(of_file.loss, rel=2e-2)  # loaded in bfloat16


def codes_in(path: Path, model: Path, container: str) -> dict[str, Any]:
    weights = Finished.open(path, str(model), replace(TINY, compare=False)).subject.source.spec.weights
    return {name: unpacked(packed).code for name, packed in container_of(container).read(path, weights).items()}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model that sees, and what quantize made of it with pictures among its calibration: all parts are quantized."""
    place = tmp_path_factory.mktemp("written")
    source, out = idefics_with_processor(place / "source"), place / "model"
    settings = replace(SHOWN, container=LOW, formats=("w2-g32", "w4-g32"))
    bitwright.quantize(source, out, "3bpw", settings=settings, reporter=QUIET)
    return source, out


@pytest.mark.parametrize("parts", [("text",), EVERY], ids=["text", "every part"])
def test_codes_of_a_model_that_sees_are_trained(
    parts: tuple[str, ...], written: tuple[Path, Path], rows: str, tmp_path: Path
) -> None:
    """What was learnt in memory is what a fresh process answers from the file, and parts that are not named stay."""
    (source, model), out = written, tmp_path / "tuned"
    training = replace(TRAINING, method="qat", source=str(source), train=parts)
    found = finetune(model, rows, out, training=training, reporter=QUIET)
    assert found.after.loss < found.before.loss - 0.2
    old, new = (codes_in(path, source, LOW) for path in (model, out))
    moved = {name.split(".")[1] for name in old if not torch.equal(old[name], new[name])}
    assert moved == ({"text_model"} if parts == ("text",) else {"text_model", "vision_model", "connector"})
    assert (out / "processor_config.json").exists()


def test_a_model_that_sees_is_repaired(written: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is trained, against what 16 bit says about pictures and texts, and the file is what was trained."""
    (source, old), model = written, tmp_path / "model"
    shutil.copytree(old, model)
    trained: list[Any] = []
    monkeypatch.setattr(job, "trained_codes", lambda model: trained.append(trained_codes(model)) or trained[-1])
    monkeypatch.setattr(Repaired, "kept", True)  # beyond chance or not: that is of texts, and tested there
    monkeypatch.setattr(job, "STEP_TOKENS", 512)  # of samples that count as 32 tokens
    found = bitwright.repair(model, str(source), steps=30, learning_rate=0.01, settings=SHOWN, reporter=QUIET)
    assert found.after.kl < found.before.kl
    assert {domain.label for domain in found.after.domains} == {"pictures", "documentation"}, "controls count nowhere"
    before, after = (codes_in(path, source, LOW) for path in (old, model))
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"text_model", "vision_model", "connector"}
    assert all(torch.equal(after[name], unpacked(packed).code) for name, packed in trained[0].items())  # type: ignore[attr-defined]


def test_a_lesson_about_a_picture_counts_at_its_answer() -> None:
    """Positions that do not count carry neither a label nor a distribution, and pixels come in the type that is computed in."""
    scored = torch.tensor([False, False, True, True, False])
    media = {"pixel_values": torch.ones(1, 3, 2, 2), "sizes": torch.ones(1).int()}
    sample = Sample({"input_ids": torch.arange(5)}, scored, media)
    told = condense(torch.randn(2, 300), torch.tensor([3, 4]), likeliest=8, samples=0)
    inputs = apart([Lesson(sample, told)], torch.bfloat16)
    assert inputs["labels"].tolist() == [[IGNORED, IGNORED, 2, 3, IGNORED]]
    assert torch.equal(inputs["log_p"][0, 2:4], told.log_p)
    assert not inputs["log_p"][0, [0, 1, 4]].any()
    assert (inputs["pixel_values"].dtype, inputs["sizes"].dtype) == (torch.bfloat16, torch.int32)


def test_an_adapter_beside_gguf_is_for_the_text_alone(rows: str, tmp_path: Path) -> None:
    source, model = idefics_with_processor(tmp_path / "source"), tmp_path / "model.gguf"
    settings = replace(TINY, compare=False, container="gguf", formats=("q4_0", "q8_0"))
    bitwright.quantize(source, model, "+10%", settings=settings, reporter=QUIET)
    for parts in (("text",), EVERY):
        out, training = tmp_path / f"adapter-{len(parts)}", replace(TRAINING, source=str(source), train=parts)
        found = finetune(model, rows, out, training=training, reporter=QUIET)
        assert (out / "adapter.gguf").exists() == (parts == ("text",))
        assert ("no adapters for vision towers" in (out / "README.md").read_text()) == (parts == EVERY)
        if parts == ("text",):
            require_alike(found)
        else:
            assert found.written is None, "llama.cpp runs no adapter for a tower"
            assert "no program ran what was written" in (out / "README.md").read_text()


@pytest.mark.parametrize("case", ["blind", "turns", "missing", "together", "short"])
def test_rows_that_cannot_be_learnt_from(case: str, build: Build, rows: str, tmp_path: Path) -> None:
    source = build("llama") if case == "blind" else llava_with_processor(tmp_path / "source")
    data, training = tmp_path / "rows.jsonl", TRAINING
    row: dict[str, Any] = {"image": "0.png", "question": "What?", "answer": "Yes"}
    (tmp_path / "0.png").write_bytes((Path(rows).parent / "0.png").read_bytes())
    if case == "turns":
        turns = [{"role": role, "content": "Well."} for role in ("user", "assistant", "user", "assistant")]
        row = {"image": "0.png", "messages": turns}
    if case == "missing":
        row["image"] = "1.png"
    if case == "together":
        training = replace(training, rows_together=2)
    if case == "short":
        training = replace(training, length=16)
    data.write_text("\n".join(json.dumps(row | {"id": i}) for i in range(4)), encoding="utf-8")
    wanted = {
        "blind": "finetune/images",
        "turns": "finetune/turns",
        "missing": "images/row",
        "together": "finetune/turns",
        "short": "finetune/nothing-learnt",
    }
    with pytest.raises(BitwrightError) as caught:
        finetune(source, str(data), tmp_path / "out", training=training, reporter=QUIET)
    assert caught.value.finding.rule == wanted[case]
