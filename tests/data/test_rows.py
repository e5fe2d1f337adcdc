"""Calibration from every kind of source, and the errors of bad ones."""

import json
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bitwright.data import self_written
from bitwright.data.calibration import counts_of
from bitwright.data.chat_template import Conversation, render
from bitwright.data.documentation import documentation, passages
from bitwright.data.folds import MIN_SAMPLES, fold
from bitwright.data.held_out import held_out
from bitwright.data.library_code import library_code
from bitwright.data.openings import KINDS, openings
from bitwright.data.rows import read_texts
from bitwright.data.samples import Sample, cut
from bitwright.data.self_written import write_itself
from bitwright.errors import BitwrightError
from bitwright.host.progress import Reporter
from tests.conftest import Build

TEXT = "The quick brown fox jumps over the lazy dog. " * 200


def test_text_jsonl_and_parquet_files(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    rows = [{"text": "one"}, {"messages": [{"role": "user", "content": "two"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert read_texts(str(tmp_path / "a.txt"), tokenizer) == [TEXT]
    assert read_texts(str(tmp_path / "a.jsonl"), tokenizer) == ["one", "<s>user: two</s>"]
    assert read_texts(str(tmp_path / "a.parquet"), tokenizer) == ["one", "two"]


def test_a_template_that_goes_over_parts_is_given_the_words_as_one(tokenizer: PreTrainedTokenizerFast) -> None:
    """As those of SmolVLM, Idefics 3 and LLaVA do: words that are no part would be left out, silently."""
    over_parts = "{% for m in messages %}[{{ m['role'] }}]{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    talk = [{"role": "user", "content": "two & two?"}, {"role": "assistant", "content": "four"}]
    assert render(over_parts, {}, [Conversation(talk)]) == ["[user]two & two?[assistant]four"]
    escaped = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"  # words that come out otherwise
    assert render(escaped, {}, [Conversation(talk)]) == ["TWO & TWO?FOUR"]


def test_domains_share_the_sequences(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": TEXT, "domain": "b"}, {"text": TEXT, "domain": "a"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    probe = held_out(tokenizer, str(tmp_path / "a.jsonl"), 6, 32)
    samples, domains = probe.samples, probe.domains
    assert (len(samples), domains) == (6, ("b",) * 3 + ("a",) * 3)
    ids = torch.stack([sample.ids for sample in samples])
    assert ids.shape == (6, 32)
    assert torch.equal(ids[:3], ids[3:])
    probe = held_out(tokenizer, str(tmp_path / "a.jsonl"), 1, 32)
    samples, domains = probe.samples, probe.domains
    assert len(samples) == 4
    assert domains == ("b", "b", "a", "a")  # two are needed for an interval
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXT}))
    assert set(held_out(tokenizer, str(tmp_path / "b.jsonl"), 6, 32).domains) == {""}


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.jsonl", "{", "calibration/jsonl"),
        ("a.jsonl", '{"body": "x"}', "calibration/row"),
        ("a.jsonl", "[1]", "calibration/row"),
        ("a.parquet", "not parquet", "calibration/parquet"),
        ("missing.txt", None, "calibration/source"),
    ],
)
def test_bad_files(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: str | None, rule: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BitwrightError, match=rule):
        read_texts(str(tmp_path / name), tokenizer)


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Twelve samples of 64 tokens."""
    return torch.stack([sample.ids for sample in cut([text], tokenizer, 12, 64, "x", MIN_SAMPLES)])


def test_sequences_are_distinct_and_start_with_bos_where_the_tokenizer_adds_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = ids_of(TEXT, tokenizer)
    assert ids.shape == (12, 64)
    assert tokenizer.bos_token_id not in ids
    adding = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>")
    from tokenizers import processors

    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert bool((ids_of(TEXT, adding)[:, 0] == 1).all())
    adding.backend_tokenizer.post_processor = processors.ByteLevel()


def test_empty_and_short_texts_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BitwrightError, match="calibration/empty"):
        ids_of("", tokenizer)
    with pytest.raises(BitwrightError, match="calibration/short"):
        ids_of("a few words", tokenizer)


def test_folds_are_disjoint_and_reproducible() -> None:
    samples = [Sample.of(row) for row in torch.arange(20)[:, None].expand(20, 8)]
    folds = fold({"x": samples}, 3)
    parts = [{int(sample.ids[0]) for sample in part} for part in (folds.rounding, folds.choosing, folds.predicting)]
    assert [len(part) for part in parts] == [13, 5, 2]
    assert len(set.union(*parts)) == 20
    assert fold({"x": samples}, 3).key == folds.key != fold({"x": samples}, 4).key
    assert min(len(p) for p in (fold({"x": samples[:6]}, 0).rounding, fold({"x": samples[:6]}, 0).predicting)) == 2


def test_documentation_halves_share_no_passage() -> None:
    """Whole topics stand within others."""
    first, second = (documentation(part, 2)[0] for part in (0, 1))
    assert not set(passages(first)) & set(passages(second))
    assert 0.8 < len(first) / len(second) < 1.25
    assert len(documentation(0, 1)[0]) == pytest.approx(len(first) + len(second), rel=0.01)


def test_a_model_writes_its_own_text(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama")).eval()
    ids = write_itself(model, tokenizer, 10, 24, 0, Reporter(quiet=True))
    assert ids.shape == (10, 24)
    assert torch.equal(ids, write_itself(model, tokenizer, 10, 24, 0, Reporter(quiet=True)))
    assert not torch.equal(ids, write_itself(model, tokenizer, 10, 24, 1, Reporter(quiet=True)))
    ends = {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    plain = [i for i, (_, is_question) in enumerate(openings()[:10]) if not is_question]
    assert not (set(tokenizer.all_special_ids) - ends) & set(ids[plain].flatten().tolist())
    assert ids[0, :12].tolist() == tokenizer(openings()[0][0], add_special_tokens=False).input_ids[:12]


def test_the_next_opening_follows_where_a_text_ends(
    build: Build, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, end = AutoModelForCausalLM.from_pretrained(build("llama")).eval(), tokenizer.eos_token_id
    monkeypatch.setattr(self_written, "draw", lambda logits, _: torch.full((len(logits), 1), end))
    ids = write_itself(model, tokenizer, 3, 40, 0, Reporter(quiet=True)).tolist()
    first, _, _, fourth = (tokenizer(text, add_special_tokens=False).input_ids[:20] for text, _ in openings()[:4])
    assert ids[0] == [*first, end, *fourth[:19]]


def test_openings_take_every_kind_in_turn() -> None:
    texts = [text for text, _ in openings()]
    assert [any(text in kind for text in texts[:6]) for kind in KINDS] == [True] * 6
    assert len(set(texts)) == len(texts) == sum(map(len, KINDS))


def test_a_mixture_is_spread_evenly_over_the_folds() -> None:
    sizes = {"a": 32, "b": 16, "c": 16}
    parts = {kind: [Sample.of([i, number]) for i in range(n)] for number, (kind, n) in enumerate(sizes.items())}
    folds = fold(parts, 0)
    for part in (folds.rounding, folds.choosing, folds.predicting):
        shares = [sum(int(sample.ids[1]) == kind for sample in part) / len(part) for kind in range(3)]
        assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    assert [parts[kind][0].ids[1] for kind in folds.kinds] == [sample.ids[1] for sample in folds.predicting]
    assert len({tuple(sample.ids.tolist()) for sample in folds.all}) == 64
    assert folds.source == "a, b, c"


def test_the_shares_of_a_mixture_add_up() -> None:
    for sequences in (6, 7, 33, 128):
        counts = counts_of("mixed", sequences)
        assert sum(counts.values()) == sequences
        assert min(counts.values()) >= 1
    assert counts_of("some/file.txt", 9) == {"some/file.txt": 9}


def test_library_code_is_source_that_is_installed() -> None:
    texts = library_code()
    assert len(texts) > 20
    assert all("def " in text for text in texts)
