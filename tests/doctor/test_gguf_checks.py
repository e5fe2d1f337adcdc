"""Rules over GGUF headers, on files that the gguf library writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from bitwright.doctor.doctor import examine, exit_code

SOUND: dict[str, Any] = {
    "blocks": 2,
    "held": 2,
    "width": 8,
    "columns": 8,
    "heads": 4,
    "shared": 2,
    "tokens": 16,
    "rows": 16,
    "types": 16,
    "bos": 1,
    "eos": 2,
    "pad": 0,
    "kind": "llama",
    "more": {},
    "extra": {},
}


QWEN: dict[str, Any] = {"kind": "qwen2", "rows": 151_936}
LLAMA31: dict[str, Any] = {"rows": 128_256, "more": {"llama.rope.freq_base": 5e5, "llama.context_length": 131_072}}


def write(path: Path, **changes: Any) -> Path:
    facts = SOUND | changes
    writer = GGUFWriter(path, facts["kind"])
    writer.add_block_count(facts["blocks"])
    writer.add_embedding_length(facts["width"])
    writer.add_head_count(facts["heads"])
    writer.add_head_count_kv(facts["shared"])
    writer.add_token_list(facts.get("names") or [str(i) for i in range(facts["tokens"])])
    writer.add_token_types([1] * facts["types"])
    writer.add_bos_token_id(facts["bos"])
    writer.add_eos_token_id(facts["eos"])
    writer.add_pad_token_id(facts["pad"])
    for key, value in facts["more"].items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    for name, kind in facts["extra"].items():
        raw = np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind)
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


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("gguf/blocks", {"blocks": 3}),
        ("gguf/blocks", {"blocks": 1}),
        ("gguf/width", {"width": 9}),
        ("gguf/heads", {"shared": 3}),
        ("gguf/vocabulary", {"rows": 15}),
        ("gguf/token-arrays", {"types": 15}),
        ("gguf/token-range", {"eos": 16}),
        ("gguf/padding-is-end", {"pad": 2}),
        ("gguf/rope-base", QWEN),
        ("gguf/rope-base", QWEN | {"kind": "qwen3", "more": {"qwen3.rope.freq_base": 1e4}}),
        ("gguf/part", {"blocks": 3, "more": {"split.count": 2}}),
        ("gguf/rope-freqs", LLAMA31),
        ("gguf/pre-tokenizer", {"more": {"tokenizer.ggml.model": "gpt2"}}),
        ("gguf/gemma-bos", {"kind": "gemma3", "more": {"tokenizer.ggml.add_bos_token": False}}),
        ("gguf/router", {"extra": {"blk.0.ffn_gate_inp.weight": GGMLQuantizationType.Q4_0}}),
    ],
)
def test_each_mistake_is_found_and_nothing_else(tmp_path: Path, rule: str, changes: dict[str, Any]) -> None:
    assert {finding.rule for finding in examine(write(tmp_path / "x.gguf", **changes))} == {rule}


@pytest.mark.parametrize(
    "changes",
    [
        QWEN | {"more": {"qwen2.rope.freq_base": 1e6}},
        LLAMA31 | {"extra": {"rope_freqs.weight": GGMLQuantizationType.F32}},
        LLAMA31 | {"more": LLAMA31["more"] | {"llama.rope.scaling.type": "yarn"}},
        {"more": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}},
        {"more": {"tokenizer.ggml.model": "llama"}},
        {"kind": "gemma3", "more": {"tokenizer.ggml.add_bos_token": True}},
        {"kind": "gemma3"},
        {"extra": {"blk.0.ffn_gate_inp.weight": GGMLQuantizationType.Q8_0}},
    ],
)
def test_other_sound_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert examine(write(tmp_path / "x.gguf", **changes)) == []


def test_the_vocabulary_of_llama_3_wants_its_split(tmp_path: Path) -> None:
    tokens = [str(i) for i in range(128_256)]
    tokens[128_000], tokens[128_009] = "<|begin_of_text|>", "<|eot_id|>"
    known = {"llama.rope.freq_base": 5e5, "tokenizer.ggml.model": "gpt2"}
    for split, rules in (("default", {"gguf/pre-tokenizer"}), ("llama-bpe", set()), ("smaug-bpe", set())):
        path = write(
            tmp_path / f"{split}.gguf",
            names=tokens,
            rows=128_256,
            tokens=128_256,
            types=128_256,
            more=known | {"tokenizer.ggml.pre": split},
        )
        assert {finding.rule for finding in examine(path)} == rules


def test_rows_beyond_the_tokens_are_padding(tmp_path: Path) -> None:
    assert examine(write(tmp_path / "x.gguf", rows=64)) == []


def test_a_file_that_is_none_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    assert exit_code(examine(tmp_path / "x.gguf")) == 2
