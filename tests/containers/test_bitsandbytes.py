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

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.headers import read_headers
from bitwright.evaluate.runtime import stock_nf4
from bitwright.export.bitsandbytes import BITSANDBYTES, nbytes, unavailable, weight_tensors
from bitwright.formats.codes import Codes, NestedScales, PlainScales
from bitwright.formats.format import FORMATS, NESTED_BLOCK_SIZE, BlockFormat
from bitwright.models.skeleton import Skeleton, build_skeleton
from bitwright.models.spec import Weight
from bitwright.plan import Choice, Plan
from bitwright.rounding.nearest import nearest
from tests.conftest import ARCHITECTURES, Build

BLOCK_FORMATS = [f for f in FORMATS.values() if isinstance(f, BlockFormat)]


def random_codes(format: BlockFormat, shape: tuple[int, int], seed: int) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    count = shape[0] * shape[1]
    blocks = -(-count // format.block_size)
    code = torch.randint(0, 16, (count,), dtype=torch.uint8, generator=generator)
    if not format.double_quant:
        return Codes(format, shape, code, PlainScales(torch.randn(blocks, generator=generator)))
    nested = torch.rand(-(-blocks // NESTED_BLOCK_SIZE), generator=generator)
    scale_code = torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=generator)
    return Codes(format, shape, code, NestedScales(scale_code, nested, 0.0))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(BLOCK_FORMATS), st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_the_library_decodes_what_we_wrote(format: BlockFormat, n_rows: int, groups: int, seed: int) -> None:
    """Every code and scale, negative scales included, through the library's own unpacking and kernel."""
    shape = (n_rows, groups * format.block_size)
    codes = random_codes(format, shape, seed)
    tensors = weight_tensors("w", codes, torch.bfloat16)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == nbytes(format, *shape)
    state = bnb.QuantState.from_dict({k.removeprefix("w."): v for k, v in tensors.items() if k != "w"}, torch.device("cpu"))
    assert torch.equal(bnb.dequantize_4bit(tensors["w"], state), codes.decode(torch.bfloat16))


def test_blocks_across_rows_are_not_offered() -> None:
    format = FORMATS["nf4-b128"]
    assert isinstance(format, BlockFormat)
    assert unavailable(format, 64, 576) == "rows of 576 columns are not a multiple of 128"
    assert unavailable(format, 64, 640) is None
    assert unavailable(FORMATS["16bit"], 7, 3) is None


def plan_of(skeleton: Skeleton, formats: list[str]) -> Plan:
    choices = []
    for i, weight in enumerate(skeleton.spec.weights):
        format = FORMATS[formats[i % len(formats)]]
        if unavailable(format, weight.n_rows, weight.n_cols):
            format = FORMATS["16bit"]
        size = nbytes(format, weight.n_rows, weight.n_cols)
        choices.append(Choice(weight.name, format.name, "nearest", size, 0.0))
    kept = skeleton.spec.kept_nbytes
    total = kept + sum(c.nbytes for c in choices)
    return Plan("x", "bitsandbytes", "nf4-b64-dq", "", None, total, kept, 0.0, 0.0, 0.0, 0.0, 0.0, tuple(choices))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_every_architecture(build: Build, tmp_path: Path, architecture: str) -> None:
    skeleton = build_skeleton(Checkpoint.of_directory(build(architecture)))
    plan = plan_of(skeleton, ["nf4-b32-dq", "16bit", "fp4-b32", "nf4-b32", "nf4-b64-dq"])

    def codes_of(weight: Weight, format: str, rounding: str) -> Codes:
        value = skeleton.read(weight.name)
        chosen = FORMATS[format]
        assert isinstance(chosen, BlockFormat)
        return nearest(value.t() if weight.transposed else value, chosen)

    written = BITSANDBYTES.write(tmp_path, skeleton, plan, codes_of)
    assert written == plan.nbytes == sum(ref.nbytes for ref in read_headers(tmp_path).values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    dense = AutoModelForCausalLM.from_pretrained(skeleton.checkpoint.directory, dtype=torch.bfloat16).eval()
    n_packed = 0
    for choice, weight in zip(plan.choices, skeleton.spec.weights, strict=True):
        module = loaded.get_submodule(weight.module)
        assert isinstance(module, Linear4bit) == (choice.format != "16bit"), weight.name
        if choice.format == "16bit":
            assert torch.equal(module.weight, dense.get_parameter(weight.name))
            continue
        n_packed += 1
        decoded = codes_of(weight, choice.format, "").decode(torch.bfloat16)
        stored = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(stored, decoded), weight.name
        dense.get_parameter(weight.name).data.copy_(decoded.t() if weight.transposed else decoded)
    assert n_packed
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        ours, expected = loaded(ids).logits.float(), dense(ids).logits.float()
    assert float((ours - expected).abs().max()) < 0.03 * float(expected.abs().max())


def test_the_directory_is_whole(build: Build, tmp_path: Path) -> None:
    skeleton = build_skeleton(Checkpoint.of_directory(build("llama")))
    plan = plan_of(skeleton, ["16bit", "nf4-b32-dq"])
    BITSANDBYTES.write(tmp_path, skeleton, plan, lambda w, f, r: nearest(skeleton.read(w.name), FORMATS[f]))  # type: ignore[arg-type]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert "chat_template.jinja" in names
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    skipped = [c.weight.removesuffix(".weight") for c in plan.choices if c.format == "16bit"]
    assert config["llm_int8_skip_modules"] == [*skipped, "lm_head"]
    assert config["quant_method"] == "bitsandbytes"


def test_stock_bytes_are_those_of_a_stock_checkpoint(build: Build, tmp_path: Path) -> None:
    """The zero of "+10%" is what transformers and bitsandbytes write themselves."""
    source = build("llama")
    skeleton = build_skeleton(Checkpoint.of_directory(source))
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=stock_nf4(None)).save_pretrained(
        tmp_path
    )
    expected = skeleton.spec.kept_nbytes
    expected += sum(nbytes(FORMATS[BITSANDBYTES.stock_format], w.n_rows, w.n_cols) for w in skeleton.spec.weights)
    assert sum(ref.nbytes for ref in read_headers(tmp_path).values()) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sources_of_other_types_and_in_shards(build: Build, tmp_path: Path, dtype: torch.dtype) -> None:
    """float16 stays float16; float32 is rounded to bfloat16, in what is kept as in what is decoded."""
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(build("llama", dtype=dtype), dtype=dtype).save_pretrained(
        sharded, max_shard_size="100KB"
    )
    assert len(list(sharded.glob("*.safetensors"))) > 1
    skeleton = build_skeleton(Checkpoint.of_directory(sharded))
    plan = plan_of(skeleton, ["16bit", "nf4-b32-dq"])
    out = tmp_path / "out"
    out.mkdir()
    BITSANDBYTES.write(out, skeleton, plan, lambda w, f, r: nearest(skeleton.read(w.name), FORMATS[f]))  # type: ignore[arg-type]
    wanted = torch.bfloat16 if dtype == torch.float32 else dtype
    loaded = AutoModelForCausalLM.from_pretrained(out)
    source = AutoModelForCausalLM.from_pretrained(sharded, dtype=wanted)
    for choice in plan.choices:
        module = loaded.get_submodule(choice.weight.removesuffix(".weight"))
        if choice.format == "16bit":
            assert torch.equal(module.weight, source.get_parameter(choice.weight))
        else:
            assert module.weight.quant_state.dtype == wanted
    assert torch.equal(loaded.lm_head.weight, source.lm_head.weight)
