"""The whole job on a model that sees: default calibration, pins by part, and the file in the stock library."""

from dataclasses import replace
from pathlib import Path

import bitsandbytes
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

import bitwright
from bitwright.containers.rivals import VISION_MLPS, VISION_WIDE, hand_made_lists
from bitwright.data.held_out import BLANK, WRONG, held_out
from bitwright.data.pictures import drawn
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer
from bitwright.doctor.doctor import examine
from bitwright.formats.base import SIXTEEN_BIT
from bitwright.host.progress import Reporter
from bitwright.measure.subject import Subject
from bitwright.plan import NOISE_FLOOR
from bitwright.report.report import Report
from tests.processors import llava_with_processor

SMALL = bitwright.Settings(sequences=24, length=32, held_out_sequences=2, held_out_length=32, dtype="float32", compare=False)


def test_quantize_a_model_that_sees(tmp_path: Path) -> None:
    source, out = llava_with_processor(tmp_path / "source"), tmp_path / "out"
    report = bitwright.quantize(
        source, out, "+25%", pins=("projector=16bit",), settings=SMALL, reporter=Reporter(quiet=True), command=("bitwright",)
    )
    entries = {entry.label: entry.divergence for entry in report.verdict.entries}
    ours, stock, floor = entries[report.verdict.shipped], entries[report.verdict.stock], entries[NOISE_FLOOR]
    assert {domain.label for domain in ours.domains} == {"pictures", WRONG, BLANK, "documentation"}
    of_domain = {domain.label: domain for domain in ours.domains}
    counted = [of_domain["pictures"], of_domain["documentation"]]
    assert ours.n_tokens == sum(domain.n_tokens for domain in counted), "controls count in no total"
    for own, theirs in zip(ours.domains, stock.domains, strict=True):
        assert own.kl < 0.5 * theirs.kl
    assert floor.kl < ours.kl
    assert 0.5 < report.check.kl / report.plan.check_nats < 2
    assert "questions about pictures" in {domain.label for domain in report.check.domains}
    assert {part["group"] for part in report.coverage} == {"vision", "projector", "text", "vocabulary"}
    choices = {choice.weight.removesuffix(".weight"): choice.format for choice in report.plan.choices}
    assert {choices[name] for name in choices if "projector" in name} == {SIXTEEN_BIT.name}

    with safe_open(out / "model.safetensors", "pt") as written, safe_open(source / "model.safetensors", "pt") as given:
        stored = {name.split(".absmax")[0].split(".quant")[0].split(".nested")[0] for name in written.keys()}  # noqa: SIM118
        assert stored == set(given.keys()), "the names of the source"
        kept = [n for n in given.keys() if "conv" in n or "norm" in n or "projector" in n or "position" in n]  # noqa: SIM118
        assert all(torch.equal(written.get_tensor(name), given.get_tensor(name)) for name in kept)
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # else scales are rounded once more on some processors
    four = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert four == {name for name, format in choices.items() if format != SIXTEEN_BIT.name}
    assert any("vision_tower" in name for name in four)
    (sample,) = Viewer.of(out, tokenizer_of(out)).told(drawn(1, 9))
    with torch.no_grad():
        media = {name: tensor.to(model.dtype) for name, tensor in sample.media.items()}
        assert bool(torch.isfinite(model(input_ids=sample.ids[None], **media).logits).all())
    assert [f.rule for f in examine(out) if f.rule.startswith("quantization")] == []
    assert "AutoModelForImageTextToText" in (out / "README.md").read_text()
    card, page = ((out / name).read_text() for name in ("README.md", "report.html"))
    assert "image-text-to-text" in card
    assert len(report.seen) == 6
    for i, seen in enumerate(report.seen, 1):
        assert set(seen.answers) == set(entries)
        assert f"![](picture-{i}.png)" in card
        assert seen.png in page
        assert Image.open(out / f"picture-{i}.png").size == (200, 200)
    written = model.generate(**_prompt(out, report), do_sample=False, max_new_tokens=32)
    tokenizer = tokenizer_of(out)
    assert tokenizer.decode(written[0], skip_special_tokens=True).endswith(report.seen[0].answers[report.verdict.shipped])


def test_lists_that_people_keep_in_16_bit(tmp_path: Path) -> None:
    subject = Subject.open(llava_with_processor(tmp_path / "source"), SMALL)
    table = subject.blank_table()
    groups = {weight.name: weight.group for weight in table.weights}
    lists = {
        name: {choice.weight for choice in plan.choices if choice.format == SIXTEEN_BIT.name}
        for name, plan in hand_made_lists(table).items()
    }
    stock_wide = {weight.name for weight in table.weights if weight.stock == SIXTEEN_BIT.name}
    tower = {name for name, group in groups.items() if group == "vision"}
    assert lists[VISION_WIDE] - stock_wide == tower
    assert lists[VISION_MLPS] - stock_wide == {name for name in tower if ".mlp.fc" in name}
    assert hand_made_lists(replace(table, weights=tuple(w for w in table.weights if w.group == "text"))) == {}


def _prompt(out: Path, report: Report) -> dict[str, torch.Tensor]:
    """The first picture's question, as the stock library takes it."""
    picture = held_out(tokenizer_of(out), "documentation", 2, 32, Viewer.of(out, tokenizer_of(out))).pictures[0]
    assert (picture.question, picture.answer) == (report.seen[0].question, report.seen[0].right)
    prompt = Viewer.of(out, tokenizer_of(out)).prompt(picture)
    media = {name: tensor.bfloat16() for name, tensor in prompt.media.items()}
    return {name: tensor[None] for name, tensor in prompt.inputs.items()} | media
