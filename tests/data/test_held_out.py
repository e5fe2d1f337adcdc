"""The text of the verdict is text that nothing else saw: by what files are and by what is in them, not by their names."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from bitwright.data.documentation import documentation
from bitwright.data.held_out import require_unseen
from bitwright.errors import BitwrightError

TEXTS, OTHERS = (documentation(part, 2)[0].split("\n\n") for part in (0, 1))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


@pytest.mark.parametrize("how", ["itself", "dots", "link", "copy", "rows", "mark", "half"])
def test_the_same_text_under_another_name(text: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, how: str) -> None:
    other = tmp_path / "held-out.txt"
    if how == "link":
        other.symlink_to(text)
    elif how == "copy":
        other.write_bytes(text.read_bytes())
    elif how == "rows":
        other = tmp_path / "held-out.jsonl"
        other.write_text("".join(json.dumps({"text": part}) + "\n" for part in TEXTS))
    elif how == "mark":
        other.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    elif how == "half":
        other.write_text("\n\n".join(TEXTS[-100:] + OTHERS))
    else:
        other = text if how == "itself" else tmp_path / "." / ".." / tmp_path.name / text.name
    with pytest.raises(BitwrightError, match="held-out/seen") as caught:
        require_unseen(str(other), str(text), tokenizer)
    assert "calibration text" in caught.value.finding.saw


def test_other_text_is_fine(text: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    other = tmp_path / "held-out.txt"
    other.write_text("\n\n".join(OTHERS))
    require_unseen(str(other), str(text), tokenizer)
    for words in ("mixed", "self", "documentation", ""):
        require_unseen(str(other), words, tokenizer)
        require_unseen("documentation", words, tokenizer)


def test_the_default_text_in_a_file_of_calibration(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "docs.txt"
    path.write_text("\n\n".join(TEXTS + OTHERS))
    with pytest.raises(BitwrightError, match="held-out/seen"):
        require_unseen("documentation", str(path), tokenizer)
