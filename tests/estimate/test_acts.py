"""What the verb does beyond counting: the command to type next, and what to change where nothing fits."""

import json
import shlex
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given as drawn
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from bitwright import BitwrightError
from bitwright.allocate.allocate import allocate
from bitwright.cli import estimate as verb
from bitwright.cli.main import app
from bitwright.containers.bitsandbytes import BITSANDBYTES, PACKED_ROWS
from bitwright.containers.gguf.container import NARROW, NARROW_HEAD, WIDE
from bitwright.containers.registry import container_for
from bitwright.estimate import writable
from bitwright.estimate.advice import READ_BACK, _changes
from bitwright.estimate.estimate import Estimate, estimate
from bitwright.estimate.families import parts
from bitwright.estimate.sketch import sketch
from bitwright.estimate.source import FROM_GGUF, Source, read_source
from bitwright.estimate.storage import PLAIN_4_BIT, SIXTEEN
from bitwright.estimate.workload import CUDA_NBYTES, Workload
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.host import sizes
from bitwright.host.sizes import size_nbytes
from bitwright.measure.subject import Subject
from bitwright.models.roles import describe
from bitwright.models.settings import text_config
from bitwright.models.stacks import stacks_of
from bitwright.settings import Settings
from tests.conftest import Build
from tests.estimate.test_families import CASES, TEXT, TOWER_CASES, given, on_meta
from tests.processors import idefics_with_processor

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
        ({"model_type": "gemma3"}, True),
        ({"model_type": "qwen2_5_vl"}, True),
        ({"model_type": "qwen2_vl", "vision_config": {}}, True),
        ({"model_type": "llava", "vision_config": {}}, False),
        ({"model_type": "llava"}, False),
        ({"model_type": "smolvlm"}, True),
        ({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}}, False),
        ({"model_type": "llava", "vision_config": {"model_type": "pixtral"}, "text_config": {"model_type": "mistral"}}, True),
        ({"model_type": "mistral3", "vision_config": {"depth": 1}, "text_config": {"model_type": "ministral3"}}, False),
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
        assert f"takes {sizes.in_units(least)}" in first
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
