"""Calibration from every kind of source, and the errors of bad ones."""

import json
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bitwright.errors import BitwrightError
from bitwright.measure.calibration import fold, read_texts, sequences_of
from bitwright.measure.documentation import documentation
from bitwright.measure.openings import OPENINGS, write_itself
from bitwright.measure.prepare import held_out_domains
from bitwright.progress import Reporter
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


def test_domains_share_the_sequences(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": TEXT, "domain": "b"}, {"text": TEXT, "domain": "a"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    ids, domains = held_out_domains(tokenizer, str(tmp_path / "a.jsonl"), 6, 32)
    assert (len(ids), domains) == (6, ("b",) * 3 + ("a",) * 3)
    assert torch.equal(ids[:3], ids[3:])
    ids, domains = held_out_domains(tokenizer, str(tmp_path / "a.jsonl"), 1, 32)
    assert domains == ("b", "b", "a", "a")  # two are needed for an interval
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXT}))
    assert set(held_out_domains(tokenizer, str(tmp_path / "b.jsonl"), 6, 32)[1]) == {""}


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


def test_sequences_are_distinct_and_start_with_bos_where_the_tokenizer_adds_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = sequences_of([TEXT], tokenizer, 12, 64, "x")
    assert ids.shape == (12, 64)
    assert tokenizer.bos_token_id not in ids
    adding = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>")
    from tokenizers import processors

    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert bool((sequences_of([TEXT], adding, 12, 64, "x")[:, 0] == 1).all())
    adding.backend_tokenizer.post_processor = processors.ByteLevel()


def test_empty_and_short_texts_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BitwrightError, match="calibration/empty"):
        sequences_of([""], tokenizer, 12, 64, "x")
    with pytest.raises(BitwrightError, match="calibration/short"):
        sequences_of(["a few words"], tokenizer, 12, 64, "x")


def test_folds_are_disjoint_and_reproducible() -> None:
    ids = torch.arange(20)[:, None].expand(20, 8)
    folds = fold(ids, "x", 3)
    parts = [set(part[:, 0].tolist()) for part in (folds.rounding, folds.choosing, folds.predicting)]
    assert [len(part) for part in parts] == [13, 5, 2]
    assert len(set.union(*parts)) == 20
    assert fold(ids, "x", 3).key == folds.key != fold(ids, "x", 4).key
    assert min(len(p) for p in (fold(ids[:6], "x", 0).rounding, fold(ids[:6], "x", 0).predicting)) == 2


def test_documentation_halves_share_no_topic() -> None:
    assert not set(documentation(0, 2)) & set(documentation(1, 2))
    assert sum(map(len, documentation(1, 2))) > 100_000


def test_a_model_writes_its_own_text(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama")).eval()
    ids = write_itself(model, tokenizer, 10, 24, 0, Reporter(quiet=True))
    assert ids.shape == (10, 24)
    assert torch.equal(ids, write_itself(model, tokenizer, 10, 24, 0, Reporter(quiet=True)))
    assert not torch.equal(ids, write_itself(model, tokenizer, 10, 24, 1, Reporter(quiet=True)))
    assert not set(tokenizer.all_special_ids) & set(ids.flatten().tolist())
    assert ids[0, :4].tolist() == tokenizer(OPENINGS[0], add_special_tokens=False).input_ids[:4]
