"""Files that llama.cpp runs: every family against transformers, exact sizes, tokenizers, names and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.gguf.container import GGUF
from bitwright.containers.gguf.families import seeing_with, text_family
from bitwright.containers.gguf.recipes import BASES, Matrix, recipe
from bitwright.containers.gguf.rotary import rotated_as_halves, rotated_as_pairs
from bitwright.containers.gguf.tokenizer import SPLITS, vocabulary_of
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import BitwrightError
from bitwright.formats.base import SIXTEEN_BIT, Codes, Packed
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.models.open import open_model
from bitwright.models.source import Source
from bitwright.models.spec import BlockId, Kind, Weight
from bitwright.plan import Choice, Plan, Rounding
from bitwright.runtimes import llama_cpp
from bitwright.runtimes.llama_cpp import LlamaCpp
from tests.conftest import Build

FAMILIES = {
    "llama": {"tie_word_embeddings": False, "attention_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True, "vocab_size": 520},  # its tokenizer class adds tokens
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {"pad_token_id": 0},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        "head_dim": 32,
        "sliding_window": 24,
        "query_pre_attn_scalar": 32,
    },
}


def source_of(directory: Path) -> Source:
    return open_model(open_checkpoint(directory), vocabulary=GGUF.vocabulary).source


ROUNDED: dict[tuple[Path, str, str], Codes] = {}  # the codebooks are searched for seconds, and asked for again


def codes_of(source: Source, weight: str, format: str) -> Codes:
    key, chosen = (source.checkpoint.directory, weight, format), GGUF.format(format)
    if key not in ROUNDED:
        ROUNDED[key] = GGUF.rounder(chosen).nearest(source.read(weight), chosen)
    return ROUNDED[key]


def plan_of(source: Source, format: str) -> Plan:
    choices = []
    for w in source.spec.weights:
        name = "16bit" if GGUF.accepts(w, GGUF.format(format)) else format
        nbytes = GGUF.nbytes(w, GGUF.format(name), source)
        choices.append(Choice(w.name, name, Rounding.NONE if name == "16bit" else Rounding.NEAREST, nbytes, 0.0))
    kept = GGUF.kept_nbytes(source)
    total = kept + sum(c.nbytes for c in choices)
    return Plan("", "gguf", format, "", None, total, kept, 0, 0, 0, 0, 0, tuple(choices))


def write(directory: Path, out: Path, format: str) -> Plan:
    source = source_of(directory)

    def packed_of(weight: Weight, name: str, rounding: Rounding) -> Packed:
        return Packed.of(codes_of(source, weight.name, name))

    plan = plan_of(source, format)
    assert GGUF.write({out: plan}, source, packed_of)[out] == plan.nbytes == out.stat().st_size
    return plan


def log_probs(path: Path, ids: torch.Tensor) -> torch.Tensor:
    runtime = LlamaCpp(path, len(ids))
    try:
        return torch.cat(list(runtime.logit_parts(ids))).log_softmax(-1)
    finally:
        runtime.close()


def both(source: Path, path: Path, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [T, V] of the 16-bit model in transformers and of the file in llama.cpp."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        return model(ids[None]).logits[0].log_softmax(-1), log_probs(path, ids)


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_computes(build: Build, tmp_path: Path, family: str) -> None:
    """In 16 bit, over more tokens than a sliding window holds."""
    source = build(family, **FAMILIES[family])
    write(source, tmp_path / "model.gguf", "16bit")
    ids = torch.randint(3, 500, (96,), generator=torch.Generator().manual_seed(1))
    wanted, found = both(source, tmp_path / "model.gguf", ids)
    assert divergence(wanted, found) < 2e-3
    assert float((wanted.argmax(-1) == found.argmax(-1)).float().mean()) > 0.9


TEXTS = (
    "The quick brown fox, 12345 times; don't stop.",
    "  spaces   and\n\n\tlines\n",
    "naïve café – 東京 🎉 Ω",
    "def f(x):\n    return x ** 2  # 3.14",
    "</s> is not special here",
    "",
    "a",
    " ",
    "I'LL we've it's",
)


def test_a_context_that_does_not_fit_is_said(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(build("llama", **FAMILIES["llama"]), tmp_path / "model.gguf", "16bit")
    monkeypatch.setattr(llama_cpp.library(), "llama_init_from_model", lambda *_: None)  # what it answers then
    with pytest.raises(BitwrightError, match="gguf/context"):
        LlamaCpp(tmp_path / "model.gguf", 64)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(build: Build, tmp_path: Path, family: str) -> None:
    source = build(family, **FAMILIES[family])
    write(source, tmp_path / "model.gguf", "16bit")
    tokenizer = tokenizer_of(source)
    runtime = LlamaCpp(tmp_path / "model.gguf")
    for text in TEXTS:
        assert runtime.tokenize(text) == tokenizer(text, split_special_tokens=True)["input_ids"], repr(text)
    runtime.close()


@pytest.mark.parametrize("format", [name for name in GGUF.formats if name != "16bit"])
def test_every_format_is_decoded_as_it_was_measured(build: Build, tmp_path: Path, format: str) -> None:
    """The file's tensors, read by the gguf package, are the codes' own values, rows moved where the family moves them."""
    directory = build("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    plan = write(directory, tmp_path / "model.gguf", format)
    source = source_of(directory)
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for name, parameter in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
        ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"),
    ):
        assert plan.choice(parameter).format == format
        expected = codes_of(source, parameter, format).decode()
        if name.endswith("attn_k.weight"):
            expected = rotated_as_pairs(expected, 2)
        found = gguf.dequantize(stored[name].data, stored[name].tensor_type)
        assert np.array_equal(found, expected.numpy())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_was_written_is_read_back_to_the_bit(build: Build, tmp_path: Path, family: str) -> None:
    """Any bytes, in every format, one file each; a llama's rows of queries and keys lie in another order there."""
    source = source_of(build(family, hidden_size=256, intermediate_size=256, num_hidden_layers=1))
    put: dict[tuple[str, str], Packed] = {}

    def packed_of(weight: Weight, name: str, rounding: Rounding) -> Packed:
        format, generator = GGUF.format(name), torch.Generator().manual_seed(len(put))
        shape = (weight.n_rows * weight.n_cols // format.record, format.record_nbytes)
        records = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        put[name, weight.name] = Packed(format, (weight.n_rows, weight.n_cols), {"records": records})
        return put[name, weight.name]

    plans = {tmp_path / f"{name}.gguf": plan_of(source, name) for name in GGUF.formats}
    written = GGUF.write(plans, source, packed_of)
    assert written == {out: plan.nbytes for out, plan in plans.items()} == {out: out.stat().st_size for out in plans}
    for out, plan in plans.items():
        found = GGUF.read(out, source.spec.weights)
        assert set(found) == {choice.weight for choice in plan.choices if choice.format != "16bit"}
        assert bool(found) == (out.stem != "16bit")
        for name, packed in found.items():
            wanted = put[out.stem, name]
            assert (packed.format, packed.shape) == (wanted.format, wanted.shape)
            assert torch.equal(packed.tensors["records"], wanted.tensors["records"])
            bits, expected = (GGUF.codes(one).decode().view(torch.int32) for one in (packed, wanted))
            assert torch.equal(bits, expected), (out.stem, name)


def test_a_file_of_another_family_is_an_error_in_words() -> None:
    for read, value in ((text_family, "mamba"), (seeing_with, "ultravox")):
        with pytest.raises(BitwrightError, match=value) as caught:
            read(value)
        assert caught.value.finding.rule == "gguf/family"


def test_rows_moved_for_the_file_come_back() -> None:
    rows = torch.arange(48).reshape(24, 2)
    assert rotated_as_pairs(rows, 3)[:, 0].tolist()[:8] == [0, 8, 2, 10, 4, 12, 6, 14]
    assert torch.equal(rotated_as_halves(rotated_as_pairs(rows, 3), 3), rows)


@pytest.mark.parametrize("format", ["q4_0", "q4_k", "iq4_xs", "q8_0", "tq2_0", "mxfp4", "iq3_s", "iq2_xs", "iq1_m"])
def test_llama_cpp_and_transformers_read_the_same_file_alike(build: Build, tmp_path: Path, format: str) -> None:
    """Quantized files too, within what llama.cpp's 8-bit activations allow; and greedy tokens follow."""
    source = build("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    write(source, tmp_path / "model.gguf", format)
    ids = torch.randint(3, 500, (48,), generator=torch.Generator().manual_seed(2))
    options = {"gguf_file": "model.gguf", "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)
    with torch.no_grad():
        wanted = model(ids[None]).logits[0].log_softmax(-1)
    assert divergence(wanted, log_probs(tmp_path / "model.gguf", ids)) < 0.02
    runtime = LlamaCpp(tmp_path / "model.gguf", 64)
    continued = runtime.greedy(ids[None], 4)[0]
    runtime.close()
    with torch.no_grad():
        logits = model(torch.cat([ids, continued])[None]).logits[0, len(ids) - 1 : -1]
    best = logits.max(-1)
    taken = logits.gather(1, continued[:, None])[:, 0]
    assert float((best.values - taken).max()) < 0.5  # the likeliest, or one as likely up to the runtime's arithmetic


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_known_before_anything_is_written(build: Build, tmp_path: Path, family: str) -> None:
    for format in ("q4_0", "q8_0"):
        out = tmp_path / f"{format}.gguf"
        plan = write(build(family, **FAMILIES[family]), out, format)
        assert out.stat().st_size == plan.nbytes
        stored = {t.name for t in gguf.GGUFReader(out).tensors}
        spec = source_of(build(family, **FAMILIES[family])).spec
        assert len(stored) == len(spec.weights) + sum(k.tied_to is None for k in spec.kept)
        assert (tmp_path / f"{format}.Modelfile").read_text() == f"FROM ./{format}.gguf\n"


def test_rows_that_fit_no_record_make_the_format_unavailable() -> None:
    assert GGUF.accepts(weight(64, 320), GGML_FORMATS["q4_k"]) == "rows of 320 columns are not a multiple of 256"
    assert GGUF.accepts(weight(64, 320), GGML_FORMATS["q4_0"]) is None
    assert GGUF.accepts(weight(64, 40), GGML_FORMATS["q4_0"])
    assert GGUF.accepts(weight(64, 7), SIXTEEN_BIT) is None


def weight(n_rows: int, n_cols: int, kind: Kind = Kind.LINEAR) -> Weight:
    return Weight("w.weight", BlockId("text", 0), n_rows, n_cols, 2 * n_rows * n_cols, kind)


def test_a_recipe_is_what_llama_cpp_makes_of_a_model() -> None:
    """The tensor types of the published gemma-3-270m Q4_K_M file, of which SHA-256 begins a5fd3b62."""
    parts = {"attn_q": 640, "attn_k": 640, "attn_v": 640, "attn_output": 1024, "ffn_gate": 640, "ffn_up": 640, "ffn_down": 2048}
    matrices = [Matrix(f"blk.{i}.{part}.weight", k) for i in range(18) for part, k in parts.items()]
    found = recipe("Q4_K_M", [*matrices, Matrix("token_embd.weight", 640)], 18, 4, tied=True)
    assert found["token_embd.weight"] == "q8_0"
    more = {0, 1, 4, 7, 10, 13, 15, 16, 17}
    for i in range(18):
        assert found[f"blk.{i}.attn_v.weight"] == ("q8_0" if i in more else "q5_0")
        assert found[f"blk.{i}.ffn_down.weight"] == ("q6_k" if i in more else "q4_k")
        assert {found[f"blk.{i}.{p}.weight"] for p in ("attn_q", "attn_k", "ffn_gate", "ffn_up")} == {"q5_0"}
        assert found[f"blk.{i}.attn_output.weight"] == "q4_k"
    assert set(recipe("Q8_0", matrices, 18, 4, tied=True).values()) == {"q8_0"}


# Of a model of 32 blocks whose rows are records: the base, attn_v and ffn_down in blocks 1, 3, 5 and 6, attn_output.
# Read off llama-quant.cpp of llama.cpp by hand (2026-11); where it asks for an importance matrix first there is a dash.
MIXTURES = {
    "Q2_K": ("q2_k", "q4_k q4_k q4_k q4_k", "q3_k q3_k q3_k q3_k", "q3_k"),
    "Q3_K_S": ("q3_k", "q3_k q3_k q3_k q3_k", "q3_k q3_k q3_k q3_k", "q3_k"),
    "Q3_K_M": ("q3_k", "q5_k q4_k q4_k q4_k", "q5_k q4_k q4_k q4_k", "q4_k"),
    "Q3_K_L": ("q3_k", "q5_k q5_k q5_k q5_k", "q5_k q5_k q5_k q5_k", "q5_k"),
    "Q4_0": ("q4_0", "q4_0 q4_0 q4_0 q4_0", "- - q4_0 q4_0", "q4_0"),
    "IQ4_NL": ("iq4_nl", "q5_k q5_k q5_k q5_k", "- - iq4_nl iq4_nl", "iq4_nl"),
    "IQ4_XS": ("iq4_xs", "q5_k q5_k q5_k q5_k", "- - iq4_xs iq4_xs", "iq4_xs"),
    "Q4_K_S": ("q4_k", "q5_k q5_k q4_k q4_k", "q5_k q5_k q4_k q4_k", "q4_k"),
    "Q4_K_M": ("q4_k", "q6_k q6_k q4_k q6_k", "q6_k q6_k q4_k q6_k", "q4_k"),
    "Q5_K_S": ("q5_k", "q5_k q5_k q5_k q5_k", "q5_k q5_k q5_k q5_k", "q5_k"),
    "Q5_K_M": ("q5_k", "q6_k q6_k q5_k q6_k", "q6_k q6_k q5_k q6_k", "q5_k"),
    "Q6_K": ("q6_k", "q6_k q6_k q6_k q6_k", "q6_k q6_k q6_k q6_k", "q6_k"),
    "Q8_0": ("q8_0", "q8_0 q8_0 q8_0 q8_0", "q8_0 q8_0 q8_0 q8_0", "q8_0"),
}


@pytest.mark.parametrize("name", BASES)
def test_every_recipe_mixes_as_llama_cpp_does(name: str) -> None:
    base, values, downs, output = MIXTURES[name]
    expected = {"token_embd.weight": base, "output.weight": "q8_0" if name == "Q8_0" else "q6_k"}
    for block, value, down in zip((1, 3, 5, 6), values.split(), downs.split(), strict=True):
        parts = dict.fromkeys(("attn_q", "attn_k", "ffn_gate", "ffn_up"), base)
        parts |= {"attn_v": value, "ffn_down": down, "attn_output": output}
        expected |= {f"blk.{block}.{part}.weight": format for part, format in parts.items() if format != "-"}
    assert recipe(name, [Matrix(one, 1024) for one in expected], 32, 4, tied=False) == expected


def test_what_llama_cpp_does_not_run_is_refused(build: Build) -> None:
    with pytest.raises(BitwrightError, match="one of LlamaForCausalLM"):
        GGUF.require(source_of(build("gpt2")))
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(BitwrightError, match="rope_type dynamic"):
        GGUF.require(source_of(build("llama", rope_parameters=rope)))


ROPES = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 500000.0,
    },
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_scaled_rotary_embeddings(build: Build, tmp_path: Path, kind: str) -> None:
    source = build("llama", rope_parameters=ROPES[kind])
    write(source, tmp_path / "model.gguf", "16bit")
    ids = torch.randint(3, 500, (160,), generator=torch.Generator().manual_seed(1))
    wanted, found = both(source, tmp_path / "model.gguf", ids)
    assert divergence(wanted, found) < 2e-3


@pytest.mark.parametrize("original", [64, 512])
def test_long_and_short_rotary_factors(build: Build, tmp_path: Path, original: int) -> None:
    """Phi 3: long factors beyond the original context, short ones within."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": original,
        "long_factor": [1.0 + 0.5 * i for i in range(8)],
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
    }
    options = {"rope_parameters": rope, "original_max_position_embeddings": original, "max_position_embeddings": 1024}
    source = build("phi3", **FAMILIES["phi3"], **options)
    write(source, tmp_path / "model.gguf", "16bit")
    ids = torch.randint(3, 500, (160,), generator=torch.Generator().manual_seed(1))
    wanted, found = both(source, tmp_path / "model.gguf", ids)
    assert divergence(wanted, found) < 2e-3


PRE_TOKENIZERS = {name: expression for (expression, _), name in SPLITS.items()} | {"smollm": ""}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_split_alike(build: Build, tmp_path: Path, name: str) -> None:
    """Each one that is known by name, trained on real text, in llama.cpp against the tokenizers library."""
    expression = PRE_TOKENIZERS[name]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression)
    first = pre_tokenizers.Split(Regex(expression), "isolated") if expression else pre_tokenizers.Digits(individual_digits=True)
    core = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    core.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    core.train_from_iterator(list(topics.values())[:20], trainer)
    starts = name in ("llama-bpe", "tekken")  # llama.cpp puts a beginning in front for these unless the file says otherwise
    if starts:
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    shutil.copytree(build("llama"), tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path / "model")
    assert vocabulary_of(tmp_path / "model", tokenizer_of(tmp_path / "model"), 512).pre == name
    write(tmp_path / "model", tmp_path / "model.gguf", "q4_0")
    runtime, tokenizer = LlamaCpp(tmp_path / "model.gguf"), tokenizer_of(tmp_path / "model")
    for text in (*TEXTS, list(topics.values())[30]):
        assert runtime.tokenize(text) == tokenizer(text, split_special_tokens=True)["input_ids"], repr(text)
    runtime.close()


def test_unknown_pre_tokenizers_are_refused(build: Build) -> None:
    tokenizer = tokenizer_of(build("llama"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(BitwrightError, match="splits text alike"):
        vocabulary_of(Path("somewhere"), tokenizer, 600)
    with pytest.raises(BitwrightError, match="rows of the embedding"):
        vocabulary_of(Path("somewhere"), tokenizer, 1)


@pytest.mark.parametrize(
    ("kind", "offered"), [(Kind.TIED, False), (Kind.HEAD, False), (Kind.EMBEDDING, True), (Kind.LINEAR, True)]
)
def test_narrow_heads_are_not_offered_the_slow_format(kind: Kind, offered: bool) -> None:
    menu = GGUF.menu(weight(1024, 576, kind))
    assert ("q5_0" in menu) == offered
    assert "q8_0" in menu
