"""Corrected copies: what was found is gone, everything else is as it was, and the source is untouched."""

import hashlib
import json
from pathlib import Path

import pytest

from bitwright import BitwrightError
from bitwright.checkpoint.headers import INDEX_NAME
from bitwright.doctor.doctor import examine
from bitwright.doctor.fix import fixed_copy
from tests.doctor.test_checks import BROKEN, Break, found, sound

FIXED = (
    "files/pickle", "files/index-size", "files/unlisted", "config/dtype", "generation/end-of-turn", "tokenizer/truncation",
    "tokenizer/padding", "tokenizer/class", "family/mistral-split",
)  # fmt: skip


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("rule", "broken"), [(rule, broken) for rule, broken in BROKEN if rule in FIXED],
    ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(BROKEN) if rule in FIXED],
)  # fmt: skip
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
