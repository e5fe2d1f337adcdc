"""Rules over GGUF headers, on files that the gguf library writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from bitwright.doctor.doctor import examine, exit_code

SOUND: dict[str, Any] = {
    "blocks": 2, "held": 2, "width": 8, "columns": 8, "heads": 4, "shared": 2, "tokens": 16, "rows": 16, "types": 16, "bos": 1,
    "eos": 2, "pad": 0,
}  # fmt: skip


def write(path: Path, **changes: Any) -> Path:
    facts = SOUND | changes
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(facts["blocks"])
    writer.add_embedding_length(facts["width"])
    writer.add_head_count(facts["heads"])
    writer.add_head_count_kv(facts["shared"])
    writer.add_token_list([str(i) for i in range(facts["tokens"])])
    writer.add_token_types([1] * facts["types"])
    writer.add_bos_token_id(facts["bos"])
    writer.add_eos_token_id(facts["eos"])
    writer.add_pad_token_id(facts["pad"])
    writer.add_tensor("token_embd.weight", np.ones((facts["rows"], facts["columns"]), dtype=np.float32))
    for i in range(facts["held"]):
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.ones((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_nothing_is_said_of_a_sound_file(tmp_path: Path) -> None:
    assert examine(write(tmp_path / "x.gguf")) == []


@pytest.mark.parametrize(("rule", "changes"), [
    ("gguf/blocks", {"blocks": 3}), ("gguf/blocks", {"blocks": 1}), ("gguf/width", {"width": 9}), ("gguf/heads", {"shared": 3}),
    ("gguf/vocabulary", {"rows": 15}), ("gguf/token-arrays", {"types": 15}), ("gguf/token-range", {"eos": 16}),
    ("gguf/padding-is-end", {"pad": 2}),
])  # fmt: skip
def test_each_mistake_is_found_and_nothing_else(tmp_path: Path, rule: str, changes: dict[str, Any]) -> None:
    assert {finding.rule for finding in examine(write(tmp_path / "x.gguf", **changes))} == {rule}


def test_rows_beyond_the_tokens_are_padding(tmp_path: Path) -> None:
    assert examine(write(tmp_path / "x.gguf", rows=64)) == []


def test_a_file_that_is_none_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    assert exit_code(examine(tmp_path / "x.gguf")) == 2
