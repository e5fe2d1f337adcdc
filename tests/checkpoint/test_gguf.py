"""A .gguf source: all of it, or an error. What is missing would be random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from bitwright.checkpoint.gguf import convert_gguf
from bitwright.checkpoint.headers import read_headers
from bitwright.errors import BitwrightError
from bitwright.estimate.source import read_source

WIDTH = 64
TOKENS = [chr(code) for code in range(33, 127)] + ["th", "<s>", "</s>"]
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write(path: Path, held: int, parts: int = 1) -> Path:
    """A llama of two blocks, of which ``held`` are in the file."""
    writer, rng = GGUFWriter(path, "llama"), np.random.default_rng(0)
    for name, value in {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": WIDTH,
        "feed_forward_length": WIDTH,
    }.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(len(TOKENS) - 2)
    writer.add_eos_token_id(len(TOKENS) - 1)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    rows = {"token_embd": len(TOKENS), "output": len(TOKENS)} | {
        f"blk.{i}.{role}": WIDTH for i in range(held) for role in ROLES
    }
    norms = ["output_norm", *(f"blk.{i}.{role}" for i in range(held) for role in ("attn_norm", "ffn_norm"))]
    for name, count in rows.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=(count, WIDTH)).astype(np.float32))
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_file_is_converted(tmp_path: Path) -> None:
    found = read_headers(convert_gguf(write(tmp_path / "a.gguf", held=2), tmp_path / "cache"))
    assert {"model.layers.1.mlp.up_proj.weight", "lm_head.weight"} <= found.keys()


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(BitwrightError, match=r"model\.layers\.1\..* and 8 more"):
        convert_gguf(write(tmp_path / "a.gguf", held=1), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/a-*"))


def test_a_part_of_a_split_model_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a-00001-of-00002.gguf", held=1, parts=2)
    for read in (lambda: convert_gguf(path, tmp_path / "cache"), lambda: read_source(str(path))):
        with pytest.raises(BitwrightError, match="one of 2 files") as caught:
            read()
        assert "--merge" in caught.value.finding.help
