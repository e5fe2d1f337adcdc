"""Every row against the class of transformers itself on the meta device, counted by role."""

import json
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers.base import get_keys_to_not_convert

from bitwright import BitwrightError
from bitwright.estimate.families import FAMILIES, parts, parts_of_headers
from bitwright.estimate.parts import EMBEDDING, EXPERT, HEAD, LINEAR, VISION, VISION_LINEAR, Part
from bitwright.estimate.vision import TOWERS
from bitwright.models.settings import defaults
from tests.models.defaults import FILE, table

TEXT = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
MLA = {
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA2 = {"mamba_n_heads": 6, "mamba_d_state": 16, "mamba_n_groups": 2, "head_dim": None}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12}
GLM = {"moe_intermediate_size": 40, "num_experts_per_tok": 2, "n_routed_experts": 4, "first_k_dense_replace": 1}
NEMOTRON = {
    "num_hidden_layers": None,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 56,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": None}),
    ("arcee", {}),
    ("arcee", {"mlp_bias": True, "attention_bias": True}),
    ("mistral", {}),
    ("ministral", {}),
    ("ministral3", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
    ("phi3", {"head_dim": None}),
    ("smollm3", {}),
    ("granite", {}),
    ("olmo2", {"head_dim": None}),
    ("olmo3", {"head_dim": None}),
    ("gemma", {}),
    ("gemma2", {}),
    ("gemma3_text", {}),
    ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 56, "decoder_sparse_step": 2}),
    ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 56, "mlp_only_layers": [0]}),
    ("qwen3_moe", MOE),
    ("deepseek_v2", MLA | {"q_lora_rank": 32}),
    ("deepseek_v2", MLA | {"q_lora_rank": None}),
    ("deepseek_v3", MLA | {"q_lora_rank": 32}),
    ("glm4_moe", GLM),
    ("glm4_moe", GLM | {"attention_bias": True}),
    ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True}),
    ("qwen3_next", MOE | DELTA | {"shared_expert_intermediate_size": 56, "num_hidden_layers": 5}),
    ("qwen3_5_text", DELTA | {"num_hidden_layers": 5}),
    ("qwen3_5_moe_text", MOE | DELTA | {"shared_expert_intermediate_size": 56, "num_hidden_layers": 5}),
    ("jamba", {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "head_dim": None}),
    ("jamba", {"num_experts": 1, "mamba_proj_bias": True, "mamba_conv_bias": False, "head_dim": None}),
    ("bamba", MAMBA2 | {"attn_layer_indices": [1]}),
    ("bamba", MAMBA2 | {"mamba_proj_bias": True, "mamba_conv_bias": False}),
    ("falcon_h1", MAMBA2 | {"mamba_d_ssm": 72}),
    ("falcon_h1", MAMBA2 | {"mamba_d_ssm": 96, "mamba_rms_norm": True, "projectors_bias": True}),
    ("granitemoehybrid", MAMBA2 | {"num_local_experts": 4, "layer_types": ["mamba", "attention", "mamba"]}),
    ("granitemoehybrid", MAMBA2 | {"num_local_experts": 0, "shared_intermediate_size": 88}),
    ("nemotron_h", NEMOTRON),
    ("nemotron_h", NEMOTRON | {"moe_latent_size": 24, "use_bias": True, "mlp_bias": True}),
    ("lfm2", {"full_attn_idxs": [1], "block_multiple_of": 16, "head_dim": None}),
    ("lfm2", {"conv_bias": True, "block_auto_adjust_ff_dim": False, "head_dim": None}),
    ("mamba", {"state_size": 8}),
    ("mamba2", {"num_heads": 6, "head_dim": 16, "n_groups": 2, "state_size": 16}),
]
HALVES = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "mllama_text_model"}  # in TOWER_CASES
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "head_dim": 8,
}
CLIP = SIGLIP | {"model_type": "clip_vision_model"}
QWEN2_VL = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "hidden_size": 48,
    "patch_size": 14,
    "mlp_ratio": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
}
QWEN3_VL = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "depth": 3,
    "num_heads": 4,
    "patch_size": 8,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 48,
    "num_position_embeddings": 16,
}
MROPE = {"head_dim": 12, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}}
TOWER_CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [  # model, its own, text, tower
    ("gemma3", {"mm_tokens_per_image": 4}, {"model_type": "gemma3_text"}, SIGLIP | {"model_type": "siglip_vision_model"}),
    ("paligemma", {"projection_dim": 48}, {"model_type": "gemma"}, SIGLIP | {"model_type": "siglip_vision_model"}),
    ("qwen2_vl", {}, MROPE | {"model_type": "qwen2_vl_text"}, QWEN2_VL),
    ("qwen2_vl", {"tie_word_embeddings": True}, MROPE | {"model_type": "qwen2_vl_text"}, QWEN2_VL),
    ("qwen2_5_vl", {}, MROPE | {"model_type": "qwen2_5_vl_text"}, QWEN3_VL),
    ("qwen3_vl", {}, MROPE | {"model_type": "qwen3_vl_text"}, QWEN3_VL | {"deepstack_visual_indexes": [0, 2]}),
    ("qwen3_vl_moe", {}, MOE | MROPE | {"model_type": "qwen3_vl_moe_text"}, QWEN3_VL | {"deepstack_visual_indexes": [1]}),
    ("qwen3_5", {}, DELTA | {"model_type": "qwen3_5_text", "num_hidden_layers": 5}, QWEN3_VL),
    (
        "qwen3_5_moe",
        {},
        MOE | DELTA | {"model_type": "qwen3_5_moe_text", "shared_expert_intermediate_size": 56, "num_hidden_layers": 5},
        QWEN3_VL,
    ),
    ("llava", {}, {"model_type": "mistral"}, PIXTRAL),
    ("llava", {"vision_feature_layer": -2}, {"model_type": "llama"}, CLIP),
    ("llava_next", {}, {"model_type": "mistral"}, CLIP),
    ("mistral3", {"tie_word_embeddings": False}, {"model_type": "mistral"}, PIXTRAL),
    ("idefics3", {"scale_factor": 2}, {"model_type": "llama"}, SIGLIP | {"model_type": "idefics3_vision"}),
    ("smolvlm", {"scale_factor": 4}, {"model_type": "llama"}, SIGLIP | {"model_type": "smolvlm_vision"}),
    ("internvl", {}, {"model_type": "qwen2"}, SIGLIP | {"model_type": "internvl_vision", "use_mean_pooling": True}),
    (
        "internvl",
        {"tie_word_embeddings": False},
        {"model_type": "qwen3"},
        SIGLIP | {"model_type": "internvl_vision", "norm_type": "rms_norm", "attention_bias": True, "use_qk_norm": True},
    ),
    (
        "mllama",
        {},
        {"model_type": "mllama_text_model", "cross_attention_layers": [1], "head_dim": None},
        SIGLIP
        | {
            "num_global_layers": 2,
            "attention_heads": 4,
            "vision_output_dim": 80,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 4,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
    ),
]


def counted(found: tuple[Part, ...]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for part in found:
        counts[part.role] += part.n_parameters
    return +counts


def built(model: PreTrainedModel) -> Counter[str]:
    """Parameters by role, which is read off the classes of the modules and not off names alone."""
    roles = {
        id(p): LINEAR
        for m in model.modules()
        if isinstance(m, torch.nn.Linear)
        for n, p in m.named_parameters()
        if n == "weight"
    }
    heads = [m.weight for m in (model.get_output_embeddings(),) if isinstance(m, torch.nn.Linear)]
    roles |= {id(p): HEAD for p in heads} | {id(model.get_input_embeddings().weight): EMBEDDING}
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        role = roles.get(id(parameter), "other")
        if any(word in name for word in ("visual", "vision", "multi_modal", "connector", "image_newline")):
            role = VISION_LINEAR if role == LINEAR else VISION
        elif ".experts." in name and parameter.dim() == 3:
            role = EXPERT
        counts[role] += parameter.numel()
    return counts


def given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None or name == "q_lora_rank"}


def on_meta(config: transformers.PreTrainedConfig, sees: bool) -> PreTrainedModel:
    with torch.device("meta"):
        return (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_config(config)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_a_row_counts_what_the_class_builds(kind: str, options: dict[str, Any]) -> None:
    settings = given(TEXT | options)
    config = transformers.AutoConfig.for_model(kind, **settings)
    expected = built(on_meta(config, False))
    assert counted(parts({"model_type": kind, **settings})) == expected
    assert counted(parts(config.to_dict())) == expected, "a full config says the same"
    assert counted(parts(config.to_diff_dict())) == expected, "and one without defaults"


@pytest.mark.parametrize(
    ("kind", "own", "text", "tower"), TOWER_CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(TOWER_CASES)]
)
def test_a_tower_counts_what_the_class_builds(
    kind: str, own: dict[str, Any], text: dict[str, Any], tower: dict[str, Any]
) -> None:
    options = own | {"text_config": given(TEXT | text), "vision_config": tower}
    config = transformers.AutoConfig.for_model(kind, **options)
    expected = built(on_meta(config, True))
    assert counted(parts({"model_type": kind, **options})) == expected
    assert counted(parts(config.to_dict())) == expected, "a full config says the same"
    assert counted(parts(json.loads(config.to_json_string(use_diff=True)))) == expected, "and one without defaults"


def test_every_row_is_tested() -> None:
    assert {kind for kind, _ in CASES} | HALVES == set(FAMILIES)
    assert {case[0] for case in TOWER_CASES} == set(TOWERS)
    assert {case[2]["model_type"] for case in TOWER_CASES} >= HALVES


def test_defaults_are_those_of_the_classes() -> None:
    """``python -m tests.models.defaults`` writes the file anew, after a new release of transformers."""
    assert json.loads(FILE.read_text(encoding="utf-8")) == table()


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - HALVES - {"ministral"}))  # whose class needs a window stated
def test_an_empty_config_is_the_class_as_it_is(kind: str) -> None:
    """Published files leave out whatever their class has as default."""
    assert counted(parts({"model_type": kind})) == built(on_meta(CONFIG_MAPPING[kind](), False))


@pytest.mark.parametrize(("kind", "text", "tower"), [(case[0], case[2], case[3]) for case in TOWER_CASES])
def test_two_empty_halves(kind: str, text: dict[str, Any], tower: dict[str, Any]) -> None:
    empty = {"text_config": {"model_type": text["model_type"]}, "vision_config": {}}
    if "model_type" in tower:
        empty["vision_config"] = {"model_type": tower["model_type"], "vision_use_head": False}
    if "rope_parameters" in text:  # without which the class does not start
        empty["text_config"]["rope_parameters"] = text["rope_parameters"]
    config = CONFIG_MAPPING[kind](**json.loads(json.dumps(empty)))
    assert counted(parts({"model_type": kind, **empty})) == built(on_meta(config, True))


def test_settings_that_are_not_kept_apart() -> None:
    """As published before text settings had a part of their own."""
    flat = {**given(TEXT | MROPE), "model_type": "qwen2_vl", "vision_config": QWEN2_VL, "tie_word_embeddings": True}
    nested = {
        "model_type": "qwen2_vl",
        "tie_word_embeddings": True,
        "vision_config": QWEN2_VL,
        "text_config": TEXT | MROPE | {"model_type": "qwen2_vl_text"},
    }
    assert parts(flat) == parts(nested)


def test_active_parameters_are_those_of_the_chosen_experts() -> None:
    config = {"model_type": "mixtral", **TEXT, "num_local_experts": 5, "num_experts_per_tok": 2}
    expert = 3 * TEXT["hidden_size"] * TEXT["intermediate_size"]
    total, active = (sum(getattr(part, name) for part in parts(config)) for name in ("n_parameters", "n_active"))
    assert total - active == TEXT["num_hidden_layers"] * 3 * expert


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_headers_count_the_same(kind: str, options: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **given(TEXT | options))
    model = on_meta(config, False)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    chosen = getattr(config, "num_experts_per_tok", None)
    found, row = parts_of_headers(shapes, chosen), parts(config.to_dict())
    assert counted(found) == counted(row)
    assert sum(part.n_active for part in found) == sum(part.n_active for part in row)


def converted(model: PreTrainedModel) -> int:
    """Weights that transformers would give to bitsandbytes."""
    before = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), settings)
    layers = [module for name, module in model.named_modules() if name in before and type(module) is not torch.nn.Linear]
    return sum(layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_bitsandbytes_converts_the_linear_layers(kind: str, options: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **given(TEXT | options))
    assert converted(on_meta(config, False)) == counted(parts(config.to_dict()))[LINEAR]


@pytest.mark.parametrize(
    ("kind", "own", "text", "tower"), TOWER_CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(TOWER_CASES)]
)
def test_bitsandbytes_converts_towers_too(kind: str, own: dict[str, Any], text: dict[str, Any], tower: dict[str, Any]) -> None:
    options = own | {"text_config": given(TEXT | text), "vision_config": tower}
    config = transformers.AutoConfig.for_model(kind, **options)
    found = counted(parts(config.to_dict()))
    assert converted(on_meta(config, True)) == found[LINEAR] + found[VISION_LINEAR]


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"model_type": "floppy"}, "estimate/family"),
        ({}, "estimate/family"),
        (
            {"model_type": "llava_onevision", "text_config": TEXT | {"model_type": "llama"}, "vision_config": {}},
            "estimate/vision",
        ),
        ({"model_type": "llama", "hidden_size": "wide"}, "estimate/settings"),
        ({"model_type": "llama", "num_attention_heads": 0}, "estimate/settings"),
        ({"model_type": "llama", "num_hidden_layers": 10**9}, "estimate/settings"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "ME", "num_hidden_layers": 52}, "estimate/settings"),
        ({"model_type": "llama", **TEXT, "layer_types": ["linear_attention"] * 3}, "estimate/settings"),
    ],
)
def test_what_cannot_be_counted(config: dict[str, Any], rule: str) -> None:
    with pytest.raises(BitwrightError) as caught:
        parts(config)
    assert caught.value.finding.rule == rule


def test_defaults_hold_every_family() -> None:
    assert set(defaults()["classes"]) >= set(FAMILIES)
