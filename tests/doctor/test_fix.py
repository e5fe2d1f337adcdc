"""Corrected copies: what was found is gone, everything else is as it was, and the source is untouched."""

import hashlib
import json
from pathlib import Path

import pytest

from bitwright import BitwrightError
from bitwright.checkpoint.headers import INDEX_NAME
from bitwright.doctor.checks.mistral_split import WRONG
from bitwright.doctor.doctor import examine
from bitwright.doctor.fix import fixed_copy
from tests.doctor.broken import Break, both, change, mistral, sound
from tests.doctor.test_checks import BROKEN, found

FIXED = (
    "files/pickle",
    "files/index-size",
    "files/unlisted",
    "config/dtype",
    "generation/end-of-turn",
    "tokenizer/truncation",
    "tokenizer/padding",
    "tokenizer/class",
    "family/mistral-split",
    "quantization/fused-unlisted",
)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("rule", "broken"),
    [(rule, broken) for rule, broken in BROKEN if rule in FIXED],
    ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(BROKEN) if rule in FIXED],
)
def test_what_was_found_is_gone_in_the_copy(tmp_path: Path, rule: str, broken: Break) -> None:
    source = tmp_path / "model"
    source.mkdir()
    broken(sound(source))
    before = digests(source)
    changes = fixed_copy(source, tmp_path / "fixed")
    assert found(source) == {rule}
    assert examine(tmp_path / "fixed") == []
    assert digests(source) == before
    after = digests(tmp_path / "fixed")
    assert {name for name in before if before[name] != after.get(name)} == set(changes) & set(before)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_corrections_of_one_file_add_up(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    sound(source)
    config = json.loads((source / "config.json").read_text()) | {"dtype": "float16"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "x.bin").write_bytes(b"x")
    index = (source / INDEX_NAME).read_text()
    (source / INDEX_NAME).write_text(index.replace('"total_size": ', '"total_size": 9'))
    assert set(fixed_copy(source, tmp_path / "fixed")) == {"config.json", "x.bin", INDEX_NAME}
    assert json.loads((tmp_path / "fixed" / "config.json").read_text()) == config | {"dtype": "bfloat16"}
    assert (tmp_path / "fixed" / INDEX_NAME).read_text() != index
    assert examine(tmp_path / "fixed") == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir()
    with pytest.raises(BitwrightError) as caught:
        fixed_copy(sound(tmp_path), tmp_path / "fixed")
    assert caught.value.finding.rule == "fix/exists"


def test_two_corrections_of_one_file_are_both_made(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    both(change("config.json", model_type="mistral"), mistral(WRONG), change("tokenizer.json", truncation={"max_length": 5}))(
        sound(source)
    )
    assert found(source) == {"family/mistral-split", "tokenizer/truncation"}
    fixed_copy(source, tmp_path / "fixed")
    assert examine(tmp_path / "fixed") == []


def test_folders_come_along_and_unreadable_files_stay(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (sound(source) / "pooling").mkdir()
    (source / "pooling" / "config.json").write_text("{}")
    (source / "x.bin").write_bytes(b"x")
    (source / "generation_config.json").write_text("not json")
    change("config.json", eos_token_id=2)(source)
    fixed_copy(source, tmp_path / "fixed")
    assert (tmp_path / "fixed" / "pooling" / "config.json").read_text() == "{}"
    assert (tmp_path / "fixed" / "generation_config.json").read_text() == "not json"
    assert not (tmp_path / "fixed" / "x.bin").exists()
    assert (tmp_path / "fixed" / "model-00001-of-00002.safetensors").stat().st_nlink == 2


def test_a_byte_order_mark_loses_nothing(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    path = sound(source) / "generation_config.json"
    path.write_text("\ufeff" + json.dumps({"eos_token_id": 2, "temperature": 0.6}), encoding="utf-8")
    fixed_copy(source, tmp_path / "fixed")
    corrected = json.loads((tmp_path / "fixed" / "generation_config.json").read_text())
    assert corrected == {"eos_token_id": [2, 3], "temperature": 0.6}


@pytest.mark.parametrize(
    ("out", "rule"),
    [("model/within", "fix/inside"), ("nowhere/fixed", "fix/place"), ("x" * 300, "fix/place"), ("model", "fix/exists")],
)
def test_places_that_are_none(tmp_path: Path, out: str, rule: str) -> None:
    source = tmp_path / "model"
    source.mkdir()
    with pytest.raises(BitwrightError) as caught:
        fixed_copy(sound(source), tmp_path / out)
    assert caught.value.finding.rule == rule
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_gguf_file_is_not_corrected(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(BitwrightError) as caught:
        fixed_copy(tmp_path / "x.gguf", tmp_path / "out")
    assert caught.value.finding.rule == "fix/source"
