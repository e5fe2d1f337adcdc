"""Rows of what a configuration says of its weights, and a footnote for each row that is missing or holds something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bitwright import BitwrightError
from bitwright.cli.main import app
from bitwright.estimate.estimate import estimate
from bitwright.estimate.families import parts
from bitwright.estimate.source import Source, read_source
from bitwright.estimate.stated import stated_format
from bitwright.estimate.storage import COUNTS, RECIPES, SIXTEEN
from tests.conftest import Build
from tests.estimate.test_acts import WIDE_ENOUGH, advised, kinds, rows
from tests.estimate.test_families import CASES, TEXT, given

# what the configuration itself says


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "fbgemm_fp8"}, "FP8"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ, 4 bit"),
        ({"quant_method": "awq", "bits": 4}, "AWQ, 4 bit"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, NF4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, INT8"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "compressed-tensors, FP8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {f"group_{n}": {"weights": {"num_bits": n, "type": "int"}} for n in (4, 8)},
            },
            "compressed-tensors, 4 bit + 8 bit",
        ),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "compressed-tensors, NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt, NVFP4"),
        ({"quant_method": "new_one", "bits": 3}, "new_one, 3 bit"),
        ({"bits": 4, "group_size": 64}, "4 bit"),
        ({}, "quantized"),
        ("fp8", "quantized (fp8)"),
        (None, None),
    ],
)
def test_the_format_that_a_configuration_states(stated: Any, expected: str | None) -> None:
    assert stated_format({"quantization_config": stated}) == expected


def test_other_places_of_the_same() -> None:
    assert stated_format({"text_config": {"quantization_config": {"quant_method": "fp8"}}}) == "FP8"
    assert stated_format({"quantization": {"bits": 4, "group_size": 64}}) == "4 bit"
    assert stated_format({"compression_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}})
    assert stated_format({"model_type": "llama"}) is None


def in_fp8(directory: Path, out: Path, **changes: Any) -> int:
    """A copy of a model with its linear layers in FP8 and a scale for each, as DeepSeek-V3 is stored; its tensors' bytes."""
    shutil.copytree(directory, out)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in load_file(directory / "model.safetensors").items():
        tensors[name] = value.to(torch.float8_e4m3fn) if name.endswith("proj.weight") else value
        if name.endswith("proj.weight"):
            tensors[f"{name}_scale_inv"] = torch.ones(2, 1)
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}} | changes
    (out / "config.json").write_text(json.dumps(config))
    return sum(tensor.nbytes for tensor in tensors.values())


def test_a_checkpoint_in_fp8_has_a_row_with_its_bytes(build: Build, tmp_path: Path) -> None:
    plain = read_source(str(build("llama", **WIDE_ENOUGH)))
    nbytes = in_fp8(build("llama", **WIDE_ENOUGH), tmp_path / "known")
    source = read_source(str(tmp_path / "known"))
    line = estimate(source).lines[0]
    assert (line.format, line.disk_nbytes) == ("as it is: FP8", nbytes)
    assert source.parts == plain.parts
    assert source.notes == (), "scales are no weights"
    assert advised(source, nbytes).verdict == "it fits as it is (FP8): nothing needs to be quantized"
    small = advised(source, kinds(source)["GGUF"].least_nbytes)
    assert small.command is None, "quantize starts from 16 bit"
    assert "it is quantized already (FP8)" in small.verdict


def test_fp8_of_a_family_without_a_row_is_counted_from_its_headers(build: Build, tmp_path: Path) -> None:
    plain = read_source(str(build("llama", **WIDE_ENOUGH)))
    in_fp8(build("llama", **WIDE_ENOUGH), tmp_path / "floppy", model_type="floppy")
    source = read_source(str(tmp_path / "floppy"))
    assert rows(source)[SIXTEEN] == rows(plain)[SIXTEEN]


def test_packed_weights_of_a_family_without_a_row_say_what_they_are(build: Build, tmp_path: Path) -> None:
    shutil.copytree(build("llama"), tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config |= {"model_type": "floppy", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BitwrightError, match=r"weights are packed \(GPTQ, 4 bit, 0.00 GB\)"):
        read_source(str(tmp_path / "packed"))


# no row without a footnote


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_every_row_is_there_or_named_in_a_note(kind: str, options: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **given(TEXT | options)).to_dict()
    found = estimate(Source(config, parts(config)))
    missing = {*COUNTS, *RECIPES} - {line.format for line in found.lines}
    said = " ".join(note for note in found.notes if note.startswith("no row"))
    assert all(row in said for row in missing)
    assert bool(said) == bool(missing)


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (
            {"model_type": "deepseek_v3"},
            "no rows Q4_0 and Q4_K_M: what llama.cpp makes of latent attention is not counted here",
        ),
        ({"model_type": "mamba2"}, "no rows Q4_0 and Q4_K_M: what llama.cpp makes of recurrent layers is not counted here"),
        (
            {"model_type": "mixtral"},
            "rows of INT8 and NF4: experts stay in 16 bit, because bitsandbytes converts linear layers and no stacked experts",
        ),
        (
            {"model_type": "llama", **TEXT},
            "rows Q4_0 and Q4_K_M: rows of 48, 112 weights are no multiple of 32, and stay in 16 bit",
        ),
        (
            {"model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "intermediate_size": 1536},
            "row Q4_K_M: rows of 576 weights are no multiple of 256, and get larger formats",
        ),
    ],
)
def test_footnotes(config: dict[str, Any], note: str) -> None:
    assert note in estimate(Source(config, parts(config))).notes
    plain: dict[str, Any] = {"model_type": "llama"}
    assert estimate(Source(plain, parts(plain))).notes == ()


def test_rows_of_a_family_that_is_not_known(build: Build, tmp_path: Path) -> None:
    shutil.copytree(build("llama"), tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "floppy"}))
    notes = estimate(read_source(str(tmp_path / "copy"))).notes
    assert "no rows Q4_0 and Q4_K_M: the names that llama.cpp gives the tensors of floppy are not known here" in notes
    assert any("--dry-run" in note for note in notes)


def test_a_configuration_alone_says_why_there_is_no_row_of_its_weights(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text((build("llama") / "config.json").read_text())
    assert read_source(str(path)).notes == ("no row 'as it is': only its configuration is here, and no weights",)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    assert read_source(str(tmp_path)).notes[0].startswith("no row 'as it is: FP8': ")


def test_notes_stand_under_the_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    lines = CliRunner().invoke(app, ["estimate", str(tmp_path)]).stdout.splitlines()
    last_row = max(i for i, line in enumerate(lines) if line.startswith("dynamic 4 bit"))
    assert all(line.startswith("note: ") for line in lines[last_row + 1 : last_row + 4])


def test_a_plan_called_like_a_row_replaces_none() -> None:
    config: dict[str, Any] = {"model_type": "llama"}
    found = estimate(Source(config, parts(config)), plans={SIXTEEN: 7})
    assert [line.disk_nbytes for line in found.lines if line.format == SIXTEEN] == [2 * found.n_parameters, 7]
