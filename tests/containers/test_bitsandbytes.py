"""Written checkpoints are loaded by stock transformers and decode to the codes that were chosen, bit for bit."""

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AutoQuantizationConfig

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.headers import read_headers
from bitwright.checkpoint.writer import TensorPlan
from bitwright.containers.base import PackedOf
from bitwright.containers.bitsandbytes import BITSANDBYTES, layout, stock_nf4, weight_tensors
from bitwright.formats.base import SIXTEEN_BIT, Packed
from bitwright.formats.bnb4.codes import BlockCodes, NestedScales, PlainScales
from bitwright.formats.bnb4.format import BLOCK_FORMATS, NESTED_BLOCK_SIZE, BlockFormat
from bitwright.models.open import open_model
from bitwright.models.source import Source
from bitwright.models.spec import BlockId, Kind, Weight
from bitwright.plan import Choice, Plan, Rounding
from bitwright.rounding.bnb4 import nearest
from tests.conftest import ARCHITECTURES, Build


def random_codes(format: BlockFormat, shape: tuple[int, int], seed: int) -> BlockCodes:
    generator = torch.Generator().manual_seed(seed)
    count = shape[0] * shape[1]
    blocks = -(-count // format.block_size)
    code = torch.randint(0, 16, (count,), dtype=torch.uint8, generator=generator)
    if not format.double_quant:
        return BlockCodes(format, shape, code, PlainScales(torch.randn(blocks, generator=generator)))
    nested = torch.rand(-(-blocks // NESTED_BLOCK_SIZE), generator=generator)
    scale_code = torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=generator)
    offset = float(torch.randn((), generator=generator)) if seed % 2 else 0.0
    return BlockCodes(format, shape, code, NestedScales(scale_code, nested, offset))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(BLOCK_FORMATS.values())), st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_the_library_decodes_what_we_wrote(format: BlockFormat, n_rows: int, groups: int, seed: int) -> None:
    """Every code and scale, negative scales included, through the library's own unpacking and kernel."""
    shape = (n_rows, groups * format.block_size)
    codes = random_codes(format, shape, seed)
    tensors = weight_tensors("w", Packed.of(codes), torch.bfloat16)
    assert [TensorPlan.like(name, tensor) for name, tensor in tensors.items()] == layout("w", *shape, format, torch.bfloat16)
    state = bnb.QuantState.from_dict({k.removeprefix("w."): v for k, v in tensors.items() if k != "w"}, torch.device("cpu"))
    assert torch.equal(bnb.dequantize_4bit(tensors["w"], state), codes.decode(torch.bfloat16))


def test_blocks_across_rows_are_not_offered() -> None:
    format = BLOCK_FORMATS["nf4-b128"]
    assert BITSANDBYTES.accepts(weight(64, 576), format) == "rows of 576 columns are not a multiple of 128"
    assert BITSANDBYTES.accepts(weight(64, 640), format) is None
    assert BITSANDBYTES.accepts(weight(7, 3), SIXTEEN_BIT) is None


def test_rows_that_stop_the_library_are_not_offered() -> None:
    """Its kernel for processors that multiply bfloat16 takes 32 rows at once."""
    for format in BLOCK_FORMATS.values():
        assert BITSANDBYTES.accepts(weight(48, 4096), format) == "48 rows are not a multiple of 32"
        assert BITSANDBYTES.accepts(weight(96, 4096), format) is None


def weight(n_rows: int, n_cols: int) -> Weight:
    return Weight("w.weight", BlockId("text", 0), n_rows, n_cols, 2 * n_rows * n_cols)


def source_of(directory: Path) -> Source:
    return open_model(Checkpoint.of_directory(directory)).source


def codes_of(source: Source, weight: Weight, format: str) -> BlockCodes:
    return nearest(weight.view.matrix(source.read(weight.name)), BLOCK_FORMATS[format])


def packed_of(source: Source) -> PackedOf:
    return lambda weight, format, rounding: Packed.of(codes_of(source, weight, format))


def write(source: Source, out: Path, plan: Plan) -> int:
    return BITSANDBYTES.write({out: plan}, source, packed_of(source))[out]


def plan_of(source: Source, formats: list[str]) -> Plan:
    return plan_with(source, [formats[i % len(formats)] for i in range(len(source.spec.weights))])


def plan_with(source: Source, formats: list[str]) -> Plan:
    choices = []
    for weight, name in zip(source.spec.weights, formats, strict=True):
        format = BITSANDBYTES.format(name)
        if BITSANDBYTES.accepts(weight, format):
            format = SIXTEEN_BIT
        rounding = Rounding.NONE if format is SIXTEEN_BIT else Rounding.NEAREST
        choices.append(Choice(weight.name, format.name, rounding, BITSANDBYTES.nbytes(weight, format, source), 0.0))
    kept = BITSANDBYTES.kept_nbytes(source)
    assert kept == source.spec.kept_nbytes
    total = kept + sum(c.nbytes for c in choices)
    return Plan("x", "bitsandbytes", "nf4-b64-dq", "", None, total, kept, 0.0, 0.0, 0.0, 0.0, 0.0, tuple(choices))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_every_architecture(build: Build, tmp_path: Path, architecture: str) -> None:
    source = source_of(build(architecture))
    plan = plan_of(source, ["nf4-b32-dq", "16bit", "fp4-b32", "nf4-b32", "nf4-b64-dq"])
    written = write(source, tmp_path, plan)
    assert written == plan.nbytes == sum(ref.nbytes for ref in read_headers(tmp_path).values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    dense = AutoModelForCausalLM.from_pretrained(source.checkpoint.directory, dtype=torch.bfloat16).eval()
    n_packed = 0
    for choice, weight in zip(plan.choices, source.spec.weights, strict=True):
        module = loaded.get_submodule(weight.module)
        assert isinstance(module, Linear4bit) == (choice.format != "16bit"), weight.name
        if choice.format == "16bit":
            assert torch.equal(module.weight, dense.get_parameter(weight.name))
            continue
        n_packed += 1
        decoded = codes_of(source, weight, choice.format).decode(torch.bfloat16)
        stored = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(stored, decoded), weight.name
        dense.get_parameter(weight.name).data.copy_(decoded.t() if weight.view.transposed else decoded)
    assert n_packed
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        ours, expected = loaded(ids).logits.float(), dense(ids).logits.float()
    assert float((ours - expected).abs().max()) < 0.03 * float(expected.abs().max())


def test_the_directory_is_whole(build: Build, tmp_path: Path) -> None:
    source = source_of(build("llama"))
    plan = plan_of(source, ["16bit", "nf4-b32-dq"])
    write(source, tmp_path, plan)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    skipped = [c.weight.removesuffix(".weight") for c in plan.choices if c.format == "16bit"]
    assert config["llm_int8_skip_modules"] == [*skipped, "lm_head"]
    assert config["quant_method"] == "bitsandbytes"


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_fused_modules_are_skipped_where_all_their_parts_are(build: Build, tmp_path: Path, architecture: str) -> None:
    """vLLM knows no other names; the head is always there, since a list of ours ends transformers' own exclusion of it."""
    source = source_of(build(architecture))
    kept = {  # module -> whether it stays in 16 bit
        **{f"model.layers.0.self_attn.{part}_proj": True for part in "qkv"},
        "model.layers.0.mlp.gate_proj": True,
        "model.layers.1.mlp.gate_proj": True,
        "model.layers.1.mlp.up_proj": True,
    }
    plan = plan_with(source, ["16bit" if kept.get(w.module) else "nf4-b32" for w in source.spec.weights])
    write(source, tmp_path, plan)
    skipped = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert len(skipped) == len(set(skipped))
    assert set(skipped) == {*kept, "lm_head", "model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for choice, weight in zip(plan.choices, source.spec.weights, strict=True):
        assert isinstance(loaded.get_submodule(weight.module), Linear4bit) == (choice.format != "16bit"), weight.name
    assert not isinstance(loaded.lm_head, Linear4bit)


def test_a_head_of_its_own_can_be_quantized(build: Build, tmp_path: Path) -> None:
    """The stock quantizer leaves it alone; where it is the embedding too, so do we."""
    source = open_model(Checkpoint.of_directory(build("llama")), vocabulary=BITSANDBYTES.vocabulary).source
    head = source.spec.vocabulary[0]
    assert (head.kind, head.module) == (Kind.HEAD, "lm_head")
    assert head.name not in BITSANDBYTES.stock(source.spec)
    tied = open_model(Checkpoint.of_directory(build("qwen3")), vocabulary=BITSANDBYTES.vocabulary).source
    assert tied.spec.vocabulary == ()
    plan = plan_with(source, ["nf4-b32-dq" if weight == head else "16bit" for weight in source.spec.weights])
    assert write(source, tmp_path, plan) == plan.nbytes
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    stored = bnb.dequantize_4bit(loaded.lm_head.weight.data, loaded.lm_head.weight.quant_state)
    assert torch.equal(stored, codes_of(source, head, "nf4-b32-dq").decode(torch.bfloat16))
    note = BITSANDBYTES.plan_notes(source.spec, plan)
    assert note == ("the output head is quantized: transformers reads that, vLLM does not; --set lm_head=16bit for vLLM",)
    kept = plan_with(source, ["16bit" if weight == head else "nf4-b32-dq" for weight in source.spec.weights])
    assert BITSANDBYTES.plan_notes(source.spec, kept) == ()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_was_written_is_read_back_to_the_bit(build: Build, tmp_path: Path, architecture: str) -> None:
    """In every format, one checkpoint each, all written in one pass over the source."""
    wide = {"llama": {"intermediate_size": 4096}, "gpt2": {"n_inner": 4096}}[architecture]
    source = source_of(build(architecture, **wide))
    plans = {tmp_path / name: plan_of(source, [name]) for name in BLOCK_FORMATS}
    for out in plans:
        out.mkdir()
    written = BITSANDBYTES.write(plans, source, packed_of(source))
    assert written == {out: plan.nbytes for out, plan in plans.items()}
    for out, plan in plans.items():
        found = BITSANDBYTES.read(out, source.spec.weights)
        assert set(found) == {choice.weight for choice in plan.choices if choice.format == out.name} != set()
        for weight in source.spec.weights:
            if weight.name not in found:
                continue
            codes = codes_of(source, weight, out.name)
            assert (found[weight.name].format, found[weight.name].shape) == (codes.format, codes.shape)
            assert torch.equal(BITSANDBYTES.codes(found[weight.name]).decode(), codes.decode()), (out.name, weight.name)


def test_stock_bytes_are_those_of_a_stock_checkpoint(build: Build, tmp_path: Path) -> None:
    """The zero of "+10%" is what transformers and bitsandbytes write themselves."""
    source = source_of(build("llama"))
    stock = AutoQuantizationConfig.from_dict(stock_nf4(None))
    AutoModelForCausalLM.from_pretrained(build("llama"), dtype=torch.bfloat16, quantization_config=stock).save_pretrained(
        tmp_path
    )
    expected = source.spec.kept_nbytes
    expected += sum(BITSANDBYTES.nbytes(w, BITSANDBYTES.stock_format, source) for w in source.spec.weights)
    assert sum(ref.nbytes for ref in read_headers(tmp_path).values()) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sources_of_other_types_and_in_shards(build: Build, tmp_path: Path, dtype: torch.dtype) -> None:
    """float16 stays float16; float32 is rounded to bfloat16, in what is kept as in what is decoded."""
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(build("llama", dtype=dtype), dtype=dtype).save_pretrained(
        sharded, max_shard_size="100KB"
    )
    assert len(list(sharded.glob("*.safetensors"))) > 1
    source = source_of(sharded)
    plan = plan_of(source, ["16bit", "nf4-b32-dq"])
    out = tmp_path / "out"
    out.mkdir()
    assert write(source, out, plan) == plan.nbytes
    wanted = torch.bfloat16 if dtype == torch.float32 else dtype
    loaded = AutoModelForCausalLM.from_pretrained(out)
    dense = AutoModelForCausalLM.from_pretrained(sharded, dtype=wanted)
    for choice in plan.choices:
        module = loaded.get_submodule(choice.weight.removesuffix(".weight"))
        if choice.format == "16bit":
            assert torch.equal(module.weight, dense.get_parameter(choice.weight))
        else:
            assert module.weight.quant_state.dtype == wanted
    assert torch.equal(loaded.lm_head.weight, dense.lm_head.weight)
