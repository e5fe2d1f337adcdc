"""For every rule a sound model on which it is silent, and a broken copy on which it speaks."""

import json
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bitwright.checkpoint.headers import INDEX_NAME
from bitwright.doctor import doctor
from bitwright.doctor.checks.mistral_split import RIGHT, WRONG
from bitwright.doctor.doctor import ODD, examine, exit_code, rules
from bitwright.errors import Finding
from tests.doctor.broken import (
    ATTENTION,
    BOS_FIRST,
    CONFIG,
    FILES,
    NOTHING_ADDED,
    PLAIN,
    TEMPLATE,
    TURN,
    WEIGHTS,
    YARN,
    Break,
    both,
    change,
    duplicated_tensor,
    mistral,
    overlapping,
    packed,
    sound,
    template,
    weights,
    without,
)

BROKEN: list[tuple[str, Break]] = [
    ("files/pickle", lambda d: (d / "training_args.bin").write_bytes(b"x") and None),
    ("files/json", lambda d: (d / "generation_config.json").write_text("{") and None),
    (
        "files/index-size",
        lambda d: (
            (d / INDEX_NAME).write_text((d / INDEX_NAME).read_text().replace('"total_size": ', '"total_size": 9')) and None
        ),
    ),
    ("files/unlisted", lambda d: save_file({"x": torch.zeros(1)}, d / "model-00003-of-00003.safetensors")),
    ("files/two-copies", lambda d: save_file(WEIGHTS, d / "model.safetensors")),
    ("checkpoint/missing-shard", lambda d: (d / "model-00002-of-00002.safetensors").unlink()),
    ("config/dtype", change("config.json", dtype="float16")),
    ("vocabulary/config", change("config.json", vocab_size=17)),
    ("vocabulary/tokenizer", change("tokenizer.json", model={"vocab": {"a": 4, "z": 16}})),
    ("vocabulary/tokenizer", change("tokenizer.json", model={"vocab": [[str(i), 0.0] for i in range(17)]})),
    (
        "vocabulary/head",
        both(
            change("config.json", tie_word_embeddings=False),
            weights(WEIGHTS | {"lm_head.weight": torch.zeros(17, 8, dtype=torch.bfloat16)}),
        ),
    ),
    ("tokens/unknown", change("tokenizer_config.json", bos_token="<what>")),
    ("tokens/range", change("generation_config.json", eos_token_id=[2, 3, 99])),
    ("tokens/range", change("config.json", pad_token_id=-1)),
    ("tokens/disagree", change("config.json", bos_token_id=5)),
    ("tokens/no-padding", change("tokenizer_config.json", pad_token=None)),
    (
        "tokens/padding-is-end",
        both(
            change("tokenizer_config.json", pad_token="</s>"),
            change("config.json", pad_token_id=2),
            change("generation_config.json", pad_token_id=2),
        ),
    ),
    ("config/heads", change("config.json", num_key_value_heads=3)),
    ("config/heads", change("config.json", hidden_size=10, head_dim=None)),
    ("config/heads", change("config.json", num_key_value_heads=4)),
    ("config/layer-types", change("config.json", num_hidden_layers=3)),
    ("config/sliding-window", change("config.json", sliding_window=None)),
    ("config/rope", change("config.json", rope_parameters={"rope_type": "yarn", "factor": 4.0})),
    ("config/rope", change("config.json", rope_parameters={"full_attention": {"rope_type": "linear"}})),
    ("config/rope-context", change("config.json", max_position_embeddings=256)),
    ("weights/no-head", change("config.json", tie_word_embeddings=False)),
    ("weights/tied-twice", weights(WEIGHTS | {"lm_head.weight": torch.zeros(16, 8, dtype=torch.bfloat16)})),
    (
        "template/missing",
        both(
            change("tokenizer_config.json", chat_template=None), change("config.json", _name_or_path="someone/small-Instruct")
        ),
    ),
    ("template/broken", template("{% for m in messages %}")),
    ("template/broken", template("{{ messages[0].content.nothing() }}")),
    ("template/broken", template("{{ raise_exception('only system messages') }}")),
    ("template/broken", template("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    ("template/no-generation-prompt", template("{% for m in messages %}{{ m['content'] }}<|turn|>{% endfor %}")),
    ("template/double-bos", change("tokenizer.json", post_processor=BOS_FIRST)),
    (
        "template/double-bos",
        change("tokenizer.json", post_processor={"type": "Sequence", "processors": [{"type": "x"}, BOS_FIRST]}),
    ),
    ("template/double-bos", change("tokenizer_config.json", add_bos_token=True)),
    ("family/gemma-bos", change("config.json", model_type="gemma3_text")),
    ("generation/end-of-turn", change("generation_config.json", eos_token_id=2)),
    (
        "generation/end-of-turn",
        both(change("generation_config.json", eos_token_id=None), change("config.json", eos_token_id=2)),
    ),
    ("family/gemma-bos", both(change("config.json", model_type="gemma"), template(PLAIN + TURN))),
    (
        "family/gemma3-float16",
        both(
            change("config.json", model_type="gemma3_text", dtype="float16"),
            change("tokenizer.json", post_processor=BOS_FIRST),
            change("tokenizer_config.json", chat_template=TEMPLATE.replace("{{ bos_token }}", "")),
            weights({name: tensor.half() for name, tensor in WEIGHTS.items()}),
        ),
    ),
    ("config/rope-theta-twice", change("config.json", rope_theta=1e4, rope_parameters=YARN | {"rope_theta": 1e6})),
    ("tokenizer/truncation", change("tokenizer.json", truncation={"max_length": 512, "strategy": "LongestFirst"})),
    ("tokenizer/padding", change("tokenizer.json", padding={"strategy": {"Fixed": 77}})),
    (
        "tokenizer/class",
        both(
            change("config.json", model_type="llama"),
            change("tokenizer.json", pre_tokenizer={"type": "ByteLevel"}),
            change("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"),
        ),
    ),
    (
        "tokenizer/class",
        both(
            change("config.json", model_type="deepseek_v3"),
            change("tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
            change(
                "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "x"}, {"type": "ByteLevel"}]}
            ),
        ),
    ),
    ("family/mistral-split", both(change("config.json", model_type="mistral"), mistral(WRONG))),
    (
        "tokenizer/added-tokens",
        both(change("tokenizer_config.json", add_eos_token=True), change("tokenizer.json", post_processor=NOTHING_ADDED)),
    ),
    (
        "quantization/router",
        both(
            change("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
            weights(WEIGHTS | {"model.layers.0.mlp.gate.qweight": torch.zeros(2, 2, dtype=torch.int32)}),
        ),
    ),
    ("template/base-model", change("config.json", _name_or_path="someone/tiny-1B-Base")),
    ("template/base-model", change("config.json", _name_or_path="someone/tiny-1b-pt")),
    ("checkpoint/duplicate", duplicated_tensor),
    ("checkpoint/malformed", overlapping),
    (
        "checkpoint/index",
        lambda d: (d / INDEX_NAME).write_text((d / INDEX_NAME).read_text().replace("k_proj.weight", "other.weight")) and None,
    ),
    ("quantization/no-config", both(packed(), change("config.json", quantization_config=None))),
    ("quantization/skip-list", packed(llm_int8_skip_modules=["self_attn", "vision_tower"])),
    ("quantization/statistics", both(packed(), without(".absmax"))),
    ("quantization/fused-unlisted", packed(llm_int8_skip_modules=None)),
    ("quantization/fused-unlisted", packed(llm_int8_skip_modules=["q_proj", "k_proj", "model.layers.0.self_attn.v_proj"])),
    ("quantization/fused-mixed", packed(f"{ATTENTION}.q_proj.weight")),
    (
        "quantization/fused-mixed",
        packed(f"{ATTENTION}.q_proj.weight", llm_int8_skip_modules=["k_proj", "v_proj", f"{ATTENTION}.qkv_proj"]),
    ),
]


def found(directory: Path) -> set[str]:
    return {finding.rule for finding in examine(directory)}


def test_nothing_is_said_of_a_sound_model(tmp_path: Path) -> None:
    assert examine(sound(tmp_path)) == []
    assert exit_code([]) == 0


@pytest.mark.parametrize(("rule", "broken"), BROKEN, ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(BROKEN)])
def test_each_mistake_is_found_and_nothing_else(tmp_path: Path, rule: str, broken: Break) -> None:
    broken(sound(tmp_path))
    assert found(tmp_path) == {rule}


PREFIXES = {"checks": "", "weight_checks": "", "gguf_checks": "gguf_"}  # of titles, by folder


def check_paths() -> list[tuple[str, str]]:
    """Folder and file name of every check, as they stand on the disk."""
    paths = [(folder, path) for folder in PREFIXES for path in sorted((Path(doctor.__file__).parent / folder).glob("*.py"))]
    return [(folder, path.stem) for folder, path in paths if path.stem != "__init__"]


def test_every_check_is_documented() -> None:
    """One section a module and no other, in pairs: of two checks of one name neither hides the other."""
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    wanted = []
    for folder, name in check_paths():
        text = (import_module(f"bitwright.doctor.{folder}.{name}").__doc__ or "").strip()
        assert "Source:" in text, (folder, name)
        assert text.splitlines()[0].endswith("."), (folder, name)
        wanted.append((PREFIXES[folder] + name, text))
    assert re.findall(r"^## (.*)\n\n((?s:.*?))\n(?=\n## |\Z)", page, re.MULTILINE) == wanted
    assert list(rules().items()) == wanted, "what --explain prints"


@pytest.mark.parametrize(
    "change_",
    [
        packed(),
        packed(llm_int8_skip_modules=["lm_head", "mlp", f"{ATTENTION}.q_proj", "q_proj", f"{ATTENTION}.qkv_proj"]),
        packed(*(f"{ATTENTION}.{part}_proj.weight" for part in "qkv"), llm_int8_skip_modules=None),
        change("config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e4}, max_position_embeddings=10**6),
        change(
            "config.json",
            rope_parameters={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
        change("config.json", layer_types=None, sliding_window=None),
        change("config.json", dtype=None, torch_dtype="bfloat16"),
        change(
            "tokenizer_config.json",
            chat_template=[{"name": "default", "template": TEMPLATE}, {"name": "tools", "template": "{%"}],
        ),
        both(change("config.json", model_type="mistral"), mistral(RIGHT)),
        mistral(WRONG),
        change("tokenizer.json", truncation=None, padding={"strategy": "BatchLongest"}),
        both(
            change("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"),
            change("tokenizer.json", pre_tokenizer={"type": "Metaspace"}),
        ),
        both(change("config.json", architectures=["BertModel"]), change("tokenizer.json", truncation={"max_length": 512})),
        both(
            change("tokenizer_config.json", add_eos_token=True),
            change(
                "tokenizer.json",
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
                },
            ),
        ),
        change("config.json", rope_theta=1e6, rope_parameters=YARN | {"rope_theta": 1e6}),
        change("config.json", _name_or_path="someone/database-chat"),
        change("config.json", text_config=CONFIG),
        change("tokenizer_config.json", chat_template=None),
    ],
)
def test_other_sound_models(tmp_path: Path, change_: Break) -> None:
    change_(sound(tmp_path))
    assert examine(tmp_path) == []


@pytest.mark.parametrize("name", [*FILES, INDEX_NAME])
@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"a": ', "[" * 100_000, "\x00"])
def test_no_file_makes_it_crash(tmp_path: Path, name: str, text: str) -> None:
    (sound(tmp_path) / name).write_text(text)
    findings = examine(tmp_path)
    assert exit_code(findings) == 2
    assert ODD not in {finding.rule for finding in findings}


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "x", [], {}, [None], {"a": []}, True])
def test_no_value_makes_it_crash(tmp_path: Path, value: Any) -> None:
    for name, data in FILES.items():
        for key in data:
            (sound(tmp_path) / name).write_text(json.dumps(data | {key: value}))
            assert ODD not in found(tmp_path), (name, key)


def test_llama_31_without_its_scaling(tmp_path: Path) -> None:
    sound(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    plain = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072, "rope_parameters": None}
    change("config.json", **plain)(tmp_path)
    assert "family/llama3-rope" in found(tmp_path)
    scaled = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    change("config.json", rope_parameters=scaled)(tmp_path)
    assert "family/llama3-rope" not in found(tmp_path)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "base"), [("llama", 128_256, 500_000), ("qwen2", 152_064, 1_000_000), ("qwen3", 151_936, 1_000_000)]
)
def test_a_base_that_was_lost(tmp_path: Path, kind: str, vocabulary: int, base: int) -> None:
    sound(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    rules_at = {}
    for theta in (None, 10_000, base):
        change("config.json", model_type=kind, vocab_size=vocabulary, rope_theta=theta)(tmp_path)
        rules_at[theta] = "family/rope-theta" in found(tmp_path)
    assert rules_at == {None: True, 10_000: kind != "qwen2", base: False}  # R1's distillations of Qwen 2.5 Math state it
    change("config.json", rope_theta=None, rope_parameters=YARN | {"rope_theta": base})(tmp_path)
    assert "family/rope-theta" not in found(tmp_path)


def test_gemma_with_a_template_that_begins_its_texts(tmp_path: Path) -> None:
    change("config.json", model_type="gemma3_text")(sound(tmp_path))
    assert [(f.rule, f.severity) for f in examine(tmp_path)] == [("family/gemma-bos", "note")]


def test_routers_in_eight_bits_are_a_note(tmp_path: Path) -> None:
    sound(tmp_path)
    change("config.json", quantization_config={"quant_method": "gptq", "bits": 8})(tmp_path)
    weights(WEIGHTS | {"model.layers.0.mlp.gate.qweight": torch.zeros(2, 2, dtype=torch.int32)})(tmp_path)
    assert [(f.rule, f.severity) for f in examine(tmp_path)] == [("quantization/router", "note")]


def test_the_gravest_come_first_and_decide_the_exit_code(tmp_path: Path) -> None:
    sound(tmp_path)
    change("config.json", vocab_size=3)(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    findings = examine(tmp_path)
    assert [finding.severity for finding in findings] == ["error", "warning"]
    assert exit_code(findings) == 2
    assert exit_code(findings[1:]) == 1
    assert exit_code([Finding("a", "b", "c", "d", "e", "note")]) == 0
    assert examine(tmp_path / "nowhere")[0].rule == "checkpoint/no-weights"


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "text", [ENDLESS, "{{ 'x' * 2000000000 }}", "{% set a = 10**100000000 %}x", "{{ 1 / 0 }}", "{% break %}"]
)
def test_a_template_cannot_take_the_machine(tmp_path: Path, text: str) -> None:
    template(text)(sound(tmp_path))
    assert found(tmp_path) == {"template/broken"}


@pytest.mark.parametrize(
    "change_",
    [
        template("{% generation %}" + TEMPLATE + "{% endgeneration %}"),
        template(TEMPLATE + "{{ messages | tojson(ensure_ascii=False) | length and '' }}"),
        both(
            change("tokenizer_config.json", pad_token=None),
            lambda d: (d / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}') and None,
        ),
        both(
            change("config.json", model_type="qwen3", head_dim=None),
            weights(
                {
                    name: torch.zeros(256, 8, dtype=torch.bfloat16) if "proj" in name else tensor
                    for name, tensor in WEIGHTS.items()
                }
            ),
        ),
        both(
            change("config.json", tie_word_embeddings=None),
            weights(WEIGHTS | {"lm_head.weight": torch.zeros(16, 8, dtype=torch.bfloat16)}),
        ),
        lambda d: (d / "openvino_model.bin").write_bytes(b"x") and None,
    ],
)
def test_what_transformers_takes_is_sound(tmp_path: Path, change_: Break) -> None:
    """Blocks and filters of its templates, tokens in another file, defaults of its classes."""
    change_(sound(tmp_path))
    assert examine(tmp_path) == []


def test_a_quantization_of_null_is_none(tmp_path: Path) -> None:
    change("config.json", vocab_size=17)(sound(tmp_path))
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"quantization_config": None}))
    assert found(tmp_path) == {"vocabulary/config"}


def test_pipes_and_folders_are_no_weights(tmp_path: Path) -> None:
    path = sound(tmp_path) / "model-00002-of-00002.safetensors"
    path.unlink()
    path.mkdir()
    assert "checkpoint/malformed" in found(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    assert "checkpoint/malformed" in found(tmp_path)


def test_a_model_cannot_write_over_the_terminal(tmp_path: Path) -> None:
    template("{{ raise_exception('\x1b[2Jno problems found') }}")(sound(tmp_path))
    (finding,) = examine(tmp_path)
    assert "\x1b" not in str(finding)
    assert "\\x1b[2J" in str(finding)
