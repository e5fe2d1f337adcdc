"""Hostile and broken checkpoints: a clear error, never a crash, never a wrong tensor."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.headers import INDEX_NAME, SINGLE_NAME, read_header, read_headers
from bitwright.checkpoint.tensors import read_tensor
from bitwright.errors import BitwrightError


def raw_file(path: Path, header: object, body: bytes = b"\0" * 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def rule_of(action: object, *args: object) -> str:
    with pytest.raises(BitwrightError) as caught:
        action(*args)  # type: ignore[operator]
    finding = caught.value.finding
    assert all((finding.where, finding.saw, finding.wanted, finding.help)), "an error has four parts"
    return finding.rule


def test_one_file_comes_before_shards_as_in_transformers(tmp_path: Path) -> None:
    """A model saved twice into one folder; the shards of the index may be gone."""
    save_file({"a": torch.ones(2)}, tmp_path / SINGLE_NAME)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    assert read_headers(tmp_path)["a"].file.name == SINGLE_NAME
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00001.safetensors")
    assert bool(read_tensor(read_headers(tmp_path)["a"]).all())


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "b": torch.arange(7),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(2, 2).half(),
        "flag": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / SINGLE_NAME)
    refs = read_headers(tmp_path)
    assert set(refs) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read_tensor(refs[name]), tensor)
        assert read_tensor(refs[name]).dtype == tensor.dtype


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        (b"not json", "checkpoint/malformed"),
        (b"[1, 2]", "checkpoint/malformed"),
        (b"[" * 100_000, "checkpoint/malformed"),
        ({"a": 3}, "checkpoint/malformed"),
        ({"a": entry([4], 0, 8)}, "checkpoint/malformed"),
        ({"a": entry([4], -16, 0)}, "checkpoint/malformed"),
        ({"a": entry([-4], 0, 16)}, "checkpoint/malformed"),
        ({"a": entry([2**62, 2**62], 0, 16)}, "checkpoint/malformed"),
        ({"a": entry([400], 0, 1600)}, "checkpoint/malformed"),
        ({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, "checkpoint/malformed"),
        ({"a": entry([4], 0, 4, "F8_E9M9")}, "checkpoint/unknown-dtype"),
        ({"a": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}}, "checkpoint/malformed"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0.0, 16.0]}}, "checkpoint/malformed"),
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: object, rule: str) -> None:
    assert rule_of(read_header, raw_file(tmp_path / "x.safetensors", header)) == rule


def test_codes_of_other_quantizers_have_headers_but_are_no_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(4, dtype=torch.uint32), "b": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / SINGLE_NAME)
    assert sum(ref.nbytes for ref in read_headers(tmp_path).values()) == 19
    assert rule_of(Checkpoint.of_directory, tmp_path) == "checkpoint/unknown-dtype"


@pytest.mark.parametrize("size", [0, 4, 8, 20])
def test_truncated_headers_are_refused(tmp_path: Path, size: int) -> None:
    path = raw_file(tmp_path / "x.safetensors", {"a": entry([4], 0, 16)})
    path.write_bytes(path.read_bytes()[:size])
    assert rule_of(read_header, path) == "checkpoint/malformed"


def test_a_truncated_shard_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / SINGLE_NAME)
    whole = (tmp_path / SINGLE_NAME).read_bytes()
    (tmp_path / SINGLE_NAME).write_bytes(whole[:-4])
    assert rule_of(read_headers, tmp_path) == "checkpoint/malformed"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutations_of_a_real_file_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("fuzz") / SINGLE_NAME
    save_file({"a": torch.ones(4, 4), "b": torch.ones(3)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        refs = read_header(path)
    except BitwrightError:
        return
    for ref in refs.values():
        assert read_tensor(ref).numel() * read_tensor(ref).element_size() == ref.nbytes


def sharded(directory: Path, weight_map: object) -> Path:
    save_file({"a": torch.ones(2)}, directory / "s1.safetensors")
    save_file({"b": torch.ones(2)}, directory / "s2.safetensors")
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.mark.parametrize(
    ("weight_map", "rule"),
    [
        ({"a": "s1.safetensors", "b": "../s2.safetensors"}, "checkpoint/index-outside"),
        ({"a": "/etc/passwd"}, "checkpoint/index-outside"),
        ({"a": ".."}, "checkpoint/index-outside"),
        ({"a": "s1.safetensors", "b": "s3.safetensors"}, "checkpoint/missing-shard"),
        ({"a": "s1.safetensors", "c": "s2.safetensors"}, "checkpoint/index"),
        ({"a": "s2.safetensors"}, "checkpoint/index"),
        ({}, "checkpoint/index"),
        ("text", "checkpoint/index"),
    ],
)
def test_bad_indexes_are_refused(tmp_path: Path, weight_map: object, rule: str) -> None:
    assert rule_of(read_headers, sharded(tmp_path, weight_map)) == rule


def test_shards_are_joined_and_duplicates_refused(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "s1.safetensors", "b": "s2.safetensors"})
    assert set(read_headers(tmp_path)) == {"a", "b"}
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "s2.safetensors")
    assert rule_of(read_headers, tmp_path) == "checkpoint/duplicate"


def test_pickles_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    assert rule_of(Checkpoint.of_directory, tmp_path) == "checkpoint/no-weights"


@pytest.mark.parametrize("config", ["", "[]", "{", '{"quantization_config": {"quant_method": "gptq"}}'])
def test_bad_configs_are_refused(tmp_path: Path, config: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / SINGLE_NAME)
    (tmp_path / "config.json").write_text(config)
    assert rule_of(Checkpoint.of_directory, tmp_path) in ("checkpoint/config", "checkpoint/quantized")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    tensor = torch.ones(4, 4).bfloat16()
    tensor[2, 1] = value
    save_file({"good": torch.ones(2), "bad": tensor}, tmp_path / SINGLE_NAME)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.of_directory(tmp_path)
    assert torch.equal(checkpoint.read("good"), torch.ones(2))
    with pytest.raises(BitwrightError, match=r"bad.*\n?.*flat index 9"):
        checkpoint.read("bad")
