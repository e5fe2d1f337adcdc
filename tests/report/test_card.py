"""The model card: what the hub reads off it, and that it promises nothing that was not measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bitwright.checkpoint.demo import DEMO_MODEL
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.verdict import Entry, Verdict
from bitwright.host.clock import Stage
from bitwright.plan import Choice, Plan, Rounding
from bitwright.report.card import card, tuned
from bitwright.report.later import tell_later
from bitwright.report.report import Report


def divergence(label: str, kl: float) -> Divergence:
    return Divergence(label, kl, kl * 0.9, kl * 1.1, kl, kl, kl, kl, 0.9, 0.9, 12.0, 11.0, 2, 100, (kl, kl))


@pytest.fixture
def report() -> Report:
    entries = tuple(
        Entry(label, nbytes, divergence(label, kl), None)
        for label, nbytes, kl in (("bitwright", 110, 0.04), ("stock NF4", 100, 0.25), ("16-bit arithmetic", 300, 0.001))
    )
    plan = Plan(
        source="llama",
        container="bitsandbytes",
        default_format="nf4-b32-dq",
        budget="+10%",
        budget_nbytes=110,
        nbytes=110,
        kept_nbytes=10,
        damage_nats=0.04,
        check_nats=0.041,
        check_stderr=0.001,
        gap=0.0,
        price_nats_per_mb=0.001,
        choices=(
            Choice("a.weight", "nf4-b32-dq", Rounding.CALIBRATED, 50, 0.02),
            Choice("b.weight", "16bit", Rounding.NONE, 50, 0.0),
        ),
    )
    return Report(
        out="llama-small",
        plan=plan,
        verdict=Verdict(entries, "stock NF4", "bitwright", "no uniform choice is better"),
        check=divergence("check", 0.042),
        n_parameters=200,
        reference_nbytes=300,
        coverage=(),
        notes=(),
        stages={"measure": Stage(1.0, 1.0, 1)},
        provenance={"calibration": "self", "sequences": 8, "length": 64, "seed": 0, "held_out": {"source": "/x/wiki.txt"}},
        command=("bitwright", "quantize"),
    )


def parsed(text: str) -> ModelCard:
    """As the hub reads it."""
    assert text.startswith("---\n")
    return ModelCard(text)


def test_the_metadata_is_what_the_hub_reads(report: Report, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\ntags: [other]\n---\nwords\n")
    found = parsed(card(report, "someone/llama", tmp_path)).data
    assert (found.license, found.language, found.base_model) == ("apache-2.0", ["en", "de"], "someone/llama")
    assert (found.base_model_relation, found.library_name, found.pipeline_tag) == (
        "quantized",
        "transformers",
        "text-generation",
    )
    assert found.tags == ["bitwright", "bitsandbytes", "4-bit"]
    values = {result.metric_type: result.metric_value for result in found.eval_results}
    assert values == {"kl_divergence": 0.04, "top1_agreement": 0.9, "perplexity": 12.0}
    assert found.eval_results[0].dataset_name == "wiki.txt"


def test_where_the_model_came_from(report: Report, tmp_path: Path) -> None:
    assert parsed(card(report, "demo", tmp_path)).data.base_model == DEMO_MODEL
    assert parsed(card(report, str(tmp_path), tmp_path)).data.base_model is None
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "someone/parent"}))
    (tmp_path / "README.md").write_text("---\nbase_model: someone/grandparent\nlicense: mit\n---\n")
    found = parsed(card(report, str(tmp_path), tmp_path)).data
    assert (found.base_model, found.to_dict().get("base_model_relation"), found.license) == (None, None, "mit")


@pytest.mark.parametrize(
    ("language", "expected"), [("[en, no]", ["en", "no"]), ("no", "no"), ("[1, {a: b}]", None), ("3", None)]
)
def test_languages_are_words(report: Report, tmp_path: Path, language: str, expected: object) -> None:
    (tmp_path / "README.md").write_text(f"---\nlanguage: {language}\n---\n")
    assert parsed(card(report, str(tmp_path), tmp_path)).data.language == expected


def test_what_was_trained_names_the_model_it_comes_from_and_claims_no_old_figures(report: Report, tmp_path: Path) -> None:
    text = card(report, str(tmp_path), tmp_path)
    found = parsed(tuned(text, "someone/llama")).data
    assert (found.base_model, found.base_model_relation) == ("someone/llama", "finetune")
    assert parsed(tuned(text, "demo")).data.base_model == DEMO_MODEL
    assert tuned(text, str(tmp_path)) == text
    (tmp_path / "README.md").write_text(text)
    tell_later(tmp_path, "It was trained.", "\n## Trained\n")
    after = parsed((tmp_path / "README.md").read_text())
    assert after.data.eval_results is None
    assert after.data.tags == found.tags
    assert after.text.split() == [*ModelCard(text).text.split(), "##", "Trained"]


@pytest.mark.parametrize("text", ["---\nmodel-index: [\n---\nwords", "---\nlicense: mit\n---\nwords", "words", ""])
def test_a_card_that_somebody_edited_costs_no_training(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    tell_later(tmp_path, "It was trained.", "## Trained\n")
    assert (tmp_path / "README.md").read_text() == f"{text}## Trained\n"


def test_a_hostile_source_card_puts_nothing_into_ours(report: Report, tmp_path: Path) -> None:
    evil = "x\\n\\n# Injected <img src=x>"
    (tmp_path / "README.md").write_text(
        f'---\nlicense: "{evil}"\nlanguage: ["{evil}"]\nbase_model: "{evil}"\n---\n# Injected\n'
    )
    assert "Injected" not in card(report, str(tmp_path), tmp_path)


@pytest.mark.parametrize("text", ["---\nlicense: [\n---\n", "no metadata", "---\n- a list\n---\n", "\x00\x01"])
def test_a_source_card_that_cannot_be_read_costs_nothing(report: Report, tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert parsed(card(report, str(tmp_path), tmp_path)).data.license is None


def test_the_text_has_the_figures_and_no_place_of_this_machine(report: Report, tmp_path: Path) -> None:
    text = card(report, str(tmp_path), tmp_path)
    assert "| **this model** | 0.0 | 0.0400 |" in text
    assert "| stock NF4 | 0.0 | 0.2500 |" in text
    assert str(tmp_path) not in text
    assert "/x/" not in text
    assert "apply_chat_template" not in text
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert "apply_chat_template" in card(report, str(tmp_path), tmp_path)


def test_a_gguf_file_is_shown_with_its_own_runtimes(report: Report, tmp_path: Path) -> None:
    gguf = replace(report, out="llama.gguf", plan=replace(report.plan, container="gguf"))
    found = parsed(card(gguf, str(tmp_path), tmp_path))
    assert found.data.library_name == "llama.cpp"
    assert "ollama create llama -f llama.Modelfile" in found.text
    assert "`llama.report.html`" in found.text
    assert "AutoModelForCausalLM" not in found.text


@pytest.mark.parametrize(
    "name", ["a\n# Free money", "<script>alert(1)</script>", 'x"); import os #', "`rm`", "[click](http://x)"]
)
def test_names_of_people_are_shown_and_nothing_else(report: Report, tmp_path: Path, name: str) -> None:
    provenance = {**report.provenance, "calibration": name}
    text = card(replace(report, out=name, provenance=provenance), "demo", tmp_path)
    assert "\n# Free money" not in text
    assert "<script>" not in text
    assert '"); import' not in text.split("\n---\n", 1)[1]
    assert "](http://x)" not in text
