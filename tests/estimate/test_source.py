"""Where the numbers come from: directories, files and a hub, of which no weight is read."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file

from bitwright import BitwrightError
from bitwright.checkpoint.limits import MOST_LAYERS
from bitwright.estimate.cache import cache_nbytes
from bitwright.estimate.estimate import estimate
from bitwright.estimate.parts import EMBEDDING, LINEAR
from bitwright.estimate.source import Source, read_source
from bitwright.estimate.storage import SIXTEEN
from tests.conftest import Build
from tests.containers.test_gguf import write
from tests.hub import on_hub, published, stand_in


def stored_line(source: Source) -> tuple[str, int]:
    line = estimate(source).lines[0]
    return line.format, line.disk_nbytes


@pytest.fixture
def copied(build: Build, tmp_path: Path) -> Path:
    return Path(shutil.copytree(build("llama"), tmp_path / "copy"))


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_directory_as_it_is(copied: Path) -> None:
    source = read_source(str(copied))
    nbytes = sum(tensor.nbytes for tensor in load_file(copied / "model.safetensors").values())
    assert stored_line(source) == ("as it is: BF16", nbytes)
    assert source.notes == ()
    alone = read_source(str(copied / "config.json"))
    assert alone.parts == source.parts
    assert alone.stored is None


def test_a_family_without_a_row_is_counted_from_its_headers(copied: Path) -> None:
    known = {line.format: line.disk_nbytes for line in estimate(read_source(str(copied))).lines}
    change_config(copied, model_type="floppy")
    headers = {line.format: line.disk_nbytes for line in estimate(read_source(str(copied))).lines}
    assert set(known) - set(headers) == {"Q4_0", "Q4_K_M"}  # whose recipes want the names of GGUF
    assert headers == {name: known[name] for name in headers}
    with pytest.raises(BitwrightError) as caught:
        read_source(str(copied / "config.json"))
    assert caught.value.finding.rule == "estimate/family"


def test_packed_weights_of_an_unknown_family_cannot_be_counted(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {"x": torch.zeros(3, dtype=torch.uint32)}, copied / "model.safetensors")
    assert read_source(str(copied)).stored is not None
    change_config(copied, model_type="floppy")
    with pytest.raises(BitwrightError) as caught:
        read_source(str(copied))
    assert caught.value.finding.rule == "estimate/family"


def test_packed_weights_are_counted_by_the_row(copied: Path) -> None:
    plain = read_source(str(copied)).parts
    change_config(copied, quantization_config={"quant_method": "bitsandbytes"})
    save_file({"model.x": torch.zeros(9, dtype=torch.uint8)}, copied / "model.safetensors")
    source = read_source(str(copied))
    assert (source.parts, source.notes) == (plain, ())
    assert stored_line(source) == ("as it is: bitsandbytes", 9)


def test_a_file_that_holds_more_or_less_is_told(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {"model.extra": torch.zeros(2_000_000, dtype=torch.bfloat16)}, copied / "model.safetensors")
    assert read_source(str(copied)).notes == (
        "the file holds 2.00 million numbers more than transformers builds from this configuration",
    )
    change_config(copied, num_hidden_layers=100)
    assert "fewer" in read_source(str(copied)).notes[0]


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for model in (tmp_path, tmp_path / "config.json", tmp_path / "missing"):
        with pytest.raises(BitwrightError) as caught:
            read_source(str(model))
        assert caught.value.finding.rule == "estimate/config"


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_a_gguf_file_counts_as_its_directory(build: Build, tmp_path: Path, architecture: str) -> None:
    windows = {"num_hidden_layers": 6, "layer_types": [*["sliding_attention"] * 5, "full_attention"]}
    directory = build(
        architecture, hidden_size=256, intermediate_size=512, **(windows if architecture == "gemma3_text" else {})
    )
    path = tmp_path / "model.gguf"
    write(directory, path, "16bit")
    file, model = read_source(str(path)), read_source(str(directory))
    for role in (LINEAR, EMBEDDING):
        assert sum(p.n_parameters for p in file.parts if p.role == role) == sum(
            p.n_parameters for p in model.parts if p.role == role
        )
    for n_tokens in (1, 100):
        assert cache_nbytes(file.config, n_tokens) == cache_nbytes(model.config, n_tokens)
    name, nbytes = stored_line(file)
    assert name.startswith("as it is: ")
    assert 0 < path.stat().st_size - nbytes < 100_000  # the tokenizer and padding
    lines = {line.format: line.disk_nbytes for line in estimate(file).lines}
    assert {"Q4_0", "Q4_K_M"} <= set(lines)
    known = {line.format: line.disk_nbytes for line in estimate(model).lines}
    assert lines[SIXTEEN] == pytest.approx(known[SIXTEEN], rel=1e-3)  # llama.cpp stores some rotary factors
    assert lines["Q4_K_M"] == pytest.approx(known["Q4_K_M"], rel=1e-3)


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_hub_model_headers_are_fetched_and_no_weight(build: Build, tmp_path: Path, sharded: bool) -> None:
    directory = build("llama", hidden_size=512, num_attention_heads=8)
    files = published(directory, sharded)
    with stand_in() as hub:
        hub.published["me/model"] = files
        done = on_hub(hub.address, tmp_path, "estimate", "me/model", "--json")
        assert done.returncode == 0, done.stderr
        missing = on_hub(hub.address, tmp_path, "estimate", "me/other")
        assert missing.returncode == 2
        assert "error[source/hub]" in missing.stderr
    told = json.loads(done.stdout)
    local = estimate(read_source(str(directory)))
    assert [line["disk_nbytes"] for line in told["lines"]] == [line.disk_nbytes for line in local.lines]
    assert told["lines"][0]["format"] == "as it is: BF16"
    weights = sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    assert weights > 3_000_000
    assert hub.n_sent < 300_000, "headers, the configuration, and no weights"


@pytest.mark.parametrize("names", [("n_embd", "n_head", "n_layer"), ("d_model", "n_heads", "n_layers")])
def test_families_without_a_row_may_name_their_sizes_otherwise(copied: Path, names: tuple[str, str, str]) -> None:
    known = json.loads((copied / "config.json").read_text())
    kept = {key: known[key] for key in ("vocab_size", "num_key_value_heads")}
    sizes = (known["hidden_size"], known["num_attention_heads"], known["num_hidden_layers"])
    expected = cache_nbytes(known, 50)
    (copied / "config.json").write_text(json.dumps({"model_type": "floppy", **kept, **dict(zip(names, sizes, strict=True))}))
    assert cache_nbytes(read_source(str(copied)).config, 50) == expected
    (copied / "config.json").write_text(json.dumps({"model_type": "floppy", **kept, names[0]: sizes[0]}))
    with pytest.raises(BitwrightError) as caught:
        estimate(read_source(str(copied)))
    assert caught.value.finding.rule == "estimate/settings"


ODD_VALUES = [-5, 0, 1.5, True, "x", [], {}, [None], float("nan"), float("inf"), 10**30, 10**400]
READ = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "sliding_window",
    "max_position_embeddings",
    "intermediate_size",
    "layer_types",
    "kv_lora_rank",
    "cross_attention_layers",
    "hybrid_override_pattern",
    "text_config",
    "vision_config",
    "num_experts_per_tok",
    "quantization_config",
)


@pytest.mark.parametrize("value", ODD_VALUES, ids=[repr(v)[:8] if not isinstance(v, int) else "number" for v in ODD_VALUES])
@pytest.mark.parametrize("family", ["llama", "mllama", "qwen3_next", "nemotron_h", "gemma3", "floppy"])
def test_odd_values_are_refused_or_counted(copied: Path, value: Any, family: str) -> None:
    base = json.loads((copied / "config.json").read_text()) | {"model_type": family}
    for name in READ:
        (copied / "config.json").write_text(json.dumps(base | {name: value}))
        with contextlib.suppress(BitwrightError):
            found = estimate(read_source(str(copied)), memory=10**9, context=1000)
            assert all(line.disk_nbytes > 0 and line.cache_nbytes >= 0 for line in found.lines), name


def test_the_most_layers_are_counted(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "num_hidden_layers": MOST_LAYERS, "layer_types": ["full_attention"] * MOST_LAYERS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert estimate(read_source(str(tmp_path)), memory=10**12).lines[0].cache_nbytes > 10**10


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(BitwrightError) as caught:
        read_source(str(tmp_path))
    assert caught.value.finding.rule == "estimate/config"


@pytest.mark.parametrize("heads", [0, 4])
def test_a_gguf_file_of_recurrent_layers(tmp_path: Path, heads: int) -> None:
    """No heads, as for Mamba, and sizes of the states under ``ssm``."""
    writer = GGUFWriter(tmp_path / "x.gguf", "mamba")
    for key, value in {
        "embedding_length": 48,
        "block_count": 1,
        "attention.head_count": heads,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 96,
        "ssm.state_size": 8,
        "ssm.time_step_rank": 3,
    }.items():
        writer.add_uint32(f"mamba.{key}", value)
    writer.add_tensor("token_embd.weight", np.ones((96, 48), dtype=np.float16))
    writer.add_tensor("blk.0.ssm_in.weight", np.ones((192, 48), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = read_source(str(tmp_path / "x.gguf"))
    assert estimate(source).lines[0].disk_nbytes == 2 * (96 + 192) * 48
    assert cache_nbytes(source.config, 1000) == 96 * (2 * 4 + 4 * 8)
