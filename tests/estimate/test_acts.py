"""What the verb does beyond counting: the command to type next, what to change, the format that a file states, footnotes."""

import json
import shlex
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given as drawn
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bitwright import BitwrightError
from bitwright.allocate.allocate import allocate
from bitwright.cli import estimate as verb
from bitwright.cli.main import app
from bitwright.containers.bitsandbytes import BITSANDBYTES, PACKED_ROWS
from bitwright.containers.gguf.container import NARROW, NARROW_HEAD, WIDE
from bitwright.containers.registry import container_for
from bitwright.estimate import sizes, writable
from bitwright.estimate.advice import READ_BACK, _changes
from bitwright.estimate.estimate import Estimate, estimate
from bitwright.estimate.families import parts
from bitwright.estimate.sketch import sketch
from bitwright.estimate.source import FROM_GGUF, Source, read_source
from bitwright.estimate.stated import stated_format
from bitwright.estimate.storage import COUNTS, PLAIN_4_BIT, RECIPES, SIXTEEN
from bitwright.estimate.workload import CUDA_NBYTES, Workload
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.host.sizes import size_nbytes
from bitwright.measure.subject import Subject
from bitwright.models.roles import describe
from bitwright.models.settings import text_config
from bitwright.models.stacks import stacks_of
from bitwright.settings import Settings
from tests.conftest import Build
from tests.estimate.test_families import CASES, TEXT, TOWER_CASES, given, on_meta
from tests.vision import idefics_with_processor

WIDE_ENOUGH = {"hidden_size": 256, "intermediate_size": 512}
CONTEXT = 512


def beside(source: Source) -> int:
    """Bytes that cache and workspace take in these tests."""
    return Workload(source.config, CONTEXT).beside_nbytes


def rows(source: Source) -> dict[str, int]:
    return {line.format: line.disk_nbytes for line in estimate(source, context=CONTEXT).lines}


def kinds(source: Source) -> dict[str, writable.Writable]:
    return {kind.container: kind for kind in writable.writable(source.config, source.parts, rows(source))}


def advised(source: Source, for_weights: int) -> Estimate:
    """With just so much room for weights."""
    return estimate(source, memory=beside(source) + for_weights, context=CONTEXT)


def obeyed(command: str | None) -> int:
    """Bytes of what quantize would write under ``command``. Raises BitwrightError where it would refuse."""
    assert command is not None
    program, quantize, model, out, option, value = shlex.split(command)
    assert (program, quantize) == ("bitwright", "quantize")
    assert not Path(out).exists()
    budget = f"like {value}" if option == "--like" else value
    subject = Subject.open(model, Settings(container=container_for(Path(out)).name))
    return allocate(subject.blank_table(), budget, frontier=False).nbytes


# A: the command


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_the_command_takes_what_fits_and_nearly_all_of_it(build: Build, architecture: str) -> None:
    source = read_source(str(build(architecture, **WIDE_ENOUGH)))
    nf4, gguf, sixteen = kinds(source)["bitsandbytes"], kinds(source)["GGUF"], rows(source)[SIXTEEN]
    for room in (nf4.stock_nbytes, (nf4.stock_nbytes + sixteen) // 2, sixteen - 1):
        found = advised(source, room)
        assert found.command is not None
        assert ".gguf" not in found.command
        budget = size_nbytes(found.command.split()[-1])
        assert budget is not None
        assert 0.98 * room < budget <= room
        assert obeyed(found.command) <= room
    for room in (gguf.least_nbytes, nf4.stock_nbytes - 1):  # where plain NF4 does not fit, GGUF gives more for the bytes
        found = advised(source, room)
        assert found.command is not None
        assert found.command.split()[3].endswith(".gguf")
        assert obeyed(found.command) <= room


def test_a_family_without_gguf_goes_down_to_the_smallest_of_bitsandbytes(build: Build) -> None:
    source = read_source(str(build("granite", **WIDE_ENOUGH)))
    least = kinds(source)["bitsandbytes"].least_nbytes
    assert set(kinds(source)) == {"bitsandbytes"}
    assert least < rows(source)[PLAIN_4_BIT]
    assert obeyed(advised(source, least).command) <= least
    assert advised(source, least - 1).command is None


def test_where_16_bit_fits_nothing_needs_to_be_quantized(build: Build) -> None:
    source = read_source(str(build("llama")))
    found = advised(source, rows(source)[SIXTEEN])
    assert found.command is None
    assert found.verdict.endswith(": nothing needs to be quantized")


def test_without_a_memory_the_default_budget(build: Build) -> None:
    source = read_source(str(build("llama", **WIDE_ENOUGH)))
    found = estimate(source)
    assert found.command == f"bitwright quantize {source.model} {source.out} --budget +10%"
    assert obeyed(found.command) <= 1.1 * rows(source)[PLAIN_4_BIT]


def test_a_default_budget_never_asks_for_more_than_16_bit(build: Build) -> None:
    """Most of this model is its embedding, which bitsandbytes leaves alone."""
    source = read_source(str(build("llama", hidden_size=64, intermediate_size=64, vocab_size=40_000, tie_word_embeddings=True)))
    assert 1.1 * rows(source)[PLAIN_4_BIT] > rows(source)[SIXTEEN]
    assert obeyed(estimate(source).command) <= rows(source)[SIXTEEN]


def test_a_model_that_sees(tmp_path: Path) -> None:
    source = read_source(str(idefics_with_processor(tmp_path / "idefics")))
    assert obeyed(estimate(source).command) > 0
    for kind in kinds(source).values():
        assert obeyed(advised(source, kind.least_nbytes).command) <= kind.least_nbytes
    assert set(kinds(source)) == {"bitsandbytes", "GGUF"}


def test_a_gpu_keeps_half_a_gigabyte(build: Build) -> None:
    source = read_source(str(build("llama", **WIDE_ENOUGH)))
    memory = beside(source) + rows(source)[PLAIN_4_BIT]
    plain = estimate(source, memory=memory, context=CONTEXT)
    on_gpu = estimate(source, memory=memory + CUDA_NBYTES, context=CONTEXT, gpu=True)
    assert plain.command is not None
    assert on_gpu.command == plain.command
    assert on_gpu.lines[0].workspace_nbytes == plain.lines[0].workspace_nbytes + CUDA_NBYTES
    stated = estimate(source, memory=memory + 7, context=CONTEXT, gpu=True, overhead=7)
    assert stated.command == plain.command, "what is stated counts"


def test_the_last_line_is_the_command_and_json_has_it(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's name has a blank, and the first name for OUT is taken."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(build("llama", **WIDE_ENOUGH), tmp_path / "my model")
    (tmp_path / "my model-out.gguf").touch()
    source = read_source("my model")
    words = ["estimate", "my model", "--context", str(CONTEXT), "--memory", f"{beside(source) + rows(source)[PLAIN_4_BIT]}B"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert last.startswith("bitwright quantize 'my model' 'my model-out-2' --budget ")
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["command"] == last
    assert told["verdict"]
    assert told["notes"] == list(estimate(source).notes)


def test_a_narrow_terminal_does_not_break_the_command() -> None:
    written = StringIO()
    command = "bitwright quantize " + "x" * 60 + " out --budget 6.37GB"
    verb._advice(Console(file=written, width=40, force_terminal=True), Estimate(1, 1, {}, 1, 1, (), command=command))
    assert command in written.getvalue().splitlines()


def test_a_sketch_and_a_configuration_alone_have_no_command(build: Build) -> None:
    config = sketch("8B", 32, 4096, shared=8)
    alone = read_source(str(build("llama") / "config.json"))
    for source in (Source(config, parts(config)), alone):
        found = estimate(source)
        assert found.command is None
        assert source.obstacle
        assert f"no command: {source.obstacle}" in found.verdict
        assert "bitwright quantize MODEL OUT --budget +10%" in found.verdict


def understood(config: transformers.PreTrainedConfig, sees: bool) -> bool:
    """Whether the class is one that quantize takes."""
    model = on_meta(config, sees)
    try:
        describe(model, stacks_of(model, config), BITSANDBYTES.vocabulary)
    except BitwrightError:
        return False
    return True


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_what_quantize_refuses_is_known_from_the_configuration(kind: str, options: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **given(TEXT | options))
    stated = config.to_dict()
    assert (writable.obstacle(parts(stated), text_config(stated)) == "") == understood(config, False)


@pytest.mark.parametrize(
    ("kind", "own", "text", "tower"), TOWER_CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(TOWER_CASES)]
)
def test_so_it_is_of_models_that_see(kind: str, own: dict[str, Any], text: dict[str, Any], tower: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **own, text_config=given(TEXT | text), vision_config=tower)
    stated = config.to_dict()
    assert (writable.obstacle(parts(stated), text_config(stated)) == "") == understood(config, True)


def test_what_is_refused_gets_no_command() -> None:
    for kind in ("mixtral", "mamba2"):
        config = {"model_type": kind}
        found = estimate(Source(config, parts(config), model="me/model", out="model-out", obstacle=""), memory=10**12)
        assert found.command is None
        assert "nothing needs to be quantized" in found.verdict
        found = estimate(Source(config, parts(config), model="me/model", out="model-out", obstacle=""), memory=10**9)
        assert found.command is None
        assert "which quantize does not take" in found.verdict


def test_the_constants_are_those_of_the_containers() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    nbytes = {name: GGML_FORMATS[name].record_nbytes / GGML_FORMATS[name].record for name in {*WIDE, *NARROW, *NARROW_HEAD}}
    assert min(WIDE, key=nbytes.__getitem__) == writable.SMALLEST
    assert min(NARROW, key=nbytes.__getitem__) == min(NARROW_HEAD, key=nbytes.__getitem__) == writable.SMALLEST_NARROW
    assert writable.PACKED_ROWS == PACKED_ROWS
    assert {kind.removesuffix("_text") for kind in FROM_GGUF} <= set(GGUF_SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"model_type": "granite"}, False),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, False),
        ({"rope_scaling": {"rope_type": "llama3"}}, True),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, False),
        ({"rope_parameters": {"full_attention": 3}}, True),
        ({"vision_config": {}}, False),
        ({"model_type": "gemma3"}, False),
        ({"model_type": "smolvlm"}, True),
    ],
)
def test_families_that_a_gguf_file_is_written_for(change: dict[str, Any], expected: bool) -> None:
    assert writable.in_gguf({"model_type": "llama"} | change) == expected


@drawn(st.integers(1, 10**14))
def test_rounded_sizes_are_read_back_as_they_are(nbytes: int) -> None:
    low, high = sizes.rounded_down(nbytes), sizes.rounded_up(nbytes)
    assert low <= nbytes <= high
    assert high - low <= nbytes // 99
    assert sizes.rounded_down(high) == high
    for size in (low, high):
        read = size_nbytes(f"{sizes.as_option(size)}")
        assert read is not None
        assert 0 <= size - read <= READ_BACK


# B: what to change


@pytest.mark.parametrize(("context", "batch", "cache_bits"), [(4096, 1, 16), (4096, 6, 16), (512, 6, 16), (4096, 2, 8)])
def test_each_change_makes_room(build: Build, context: int, batch: int, cache_bits: int) -> None:
    source = read_source(str(build("llama", **WIDE_ENOUGH, max_position_embeddings=4096)))
    least = min(kind.least_nbytes for kind in kinds(source).values())
    asked: dict[str, Any] = {"context": context, "batch": batch, "cache_bits": cache_bits}
    for room in (least // 2, least + 1_500_000, Workload(source.config, **asked).beside_nbytes + least - 1):
        found = estimate(source, memory=room, **asked)
        assert found.command is None
        first, last = found.verdict.splitlines()
        assert first.startswith("nothing fits into ")
        assert f"takes {sizes.in_words(least)}" in first
        options = last.removeprefix("it fits with ").split(" or ")
        assert options[-1].startswith("--memory ")
        for option in options:
            words = option.split()
            changed: dict[str, Any] = {
                name.removeprefix("--").replace("-", "_"): n for name, n in zip(*[iter(words)] * 2, strict=True)
            }
            repaired = {"memory": room, **asked} | {
                name: size_nbytes(value) if name == "memory" else int(value) for name, value in changed.items()
            }
            again = estimate(source, **repaired)
            assert "nothing needs" in again.verdict or obeyed(again.command) > 0, option


def test_a_smaller_batch_and_a_shorter_context_where_neither_is_enough(build: Build) -> None:
    source = read_source(str(build("llama", **WIDE_ENOUGH, max_position_embeddings=4096)))
    least = min(kind.least_nbytes for kind in kinds(source).values())
    one = Workload(source.config, context=1000)
    found = estimate(source, memory=least + one.beside_nbytes, context=4096, batch=6)
    assert found.verdict.splitlines()[1].startswith("it fits with --batch 1 --context 1000 or --memory ")
    again = estimate(source, memory=least + one.beside_nbytes, context=1000, batch=1)
    assert obeyed(again.command) <= least


def test_a_memory_that_is_named_is_enough_as_it_is_read() -> None:
    """2.01GB is read as 2,009,999,999 bytes."""
    assert size_nbytes("2.01GB") == 2_009_999_999
    work = Workload({"model_type": "llama"}, CONTEXT, memory=10**9)
    *_, last = _changes(work, 2_010_000_000 - work.beside_nbytes)
    assert (size_nbytes(last.split()[1]) or 0) >= 2_010_000_000


def test_a_model_that_is_not_written_names_its_smallest_row() -> None:
    config = {"model_type": "mixtral"}
    source = Source(config, parts(config), model="me/model", out="model-out", obstacle="")
    found = estimate(source, memory=10**10)
    smallest = min(found.lines, key=lambda line: line.disk_nbytes)
    assert f"the smallest row, {smallest.format}," in found.verdict
    assert (
        found.verdict.splitlines()[1]
        == f"it fits with --memory {sizes.as_option(sizes.rounded_up(smallest.memory_nbytes + 1))}"
    )
    assert found.verdict.splitlines()[2].startswith("no command: its experts")


# C: what the configuration itself says


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


# D: no row without a footnote


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
