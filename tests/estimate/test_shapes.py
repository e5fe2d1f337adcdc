"""Every row against the class of transformers itself on the meta device, counted by role."""

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from bitwright import BitwrightError
from bitwright.estimate.shapes import EMBEDDING, EXPERT, FAMILIES, HEAD, VISION, Part, parts

TEXT = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
MLA = {
    "kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20, "n_routed_experts": 6,
    "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "first_k_dense_replace": 1,
    "head_dim": 8, "n_group": 1, "topk_group": 1,
}  # fmt: skip
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}), ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": None}),
    ("mistral", {}), ("ministral", {}), ("qwen2", {"tie_word_embeddings": True}), ("qwen3", {}),
    ("qwen3", {"attention_bias": True}), ("phi3", {"head_dim": None}), ("smollm3", {}), ("granite", {}),
    ("olmo2", {"head_dim": None}), ("gemma", {}), ("gemma2", {}), ("gemma3_text", {}),
    ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 56, "decoder_sparse_step": 2}),
    ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 56, "mlp_only_layers": [0]}), ("qwen3_moe", MOE),
    ("deepseek_v2", MLA | {"q_lora_rank": 32}), ("deepseek_v2", MLA | {"q_lora_rank": None}),
    ("deepseek_v3", MLA | {"q_lora_rank": 32}),
    ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True}),
]  # fmt: skip
VISION_CASES: list[tuple[str, dict[str, Any]]] = [
    ("gemma3", {
        "text_config": TEXT | {"model_type": "gemma3_text"},
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 72,
                          "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
                          "vision_use_head": False},
        "mm_tokens_per_image": 4}),
    ("qwen2_vl", {
        "text_config": TEXT | {"model_type": "qwen2_vl_text", "head_dim": 12,
                               "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}},
        "vision_config": {"embed_dim": 32, "depth": 2, "num_heads": 4, "hidden_size": 48, "patch_size": 14, "mlp_ratio": 4,
                          "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3}}),
    ("llava", {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2,
                          "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "head_dim": 8}}),
]  # fmt: skip


def counted(found: tuple[Part, ...]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for part in found:
        role = part.role if part.role in (EMBEDDING, HEAD, VISION, EXPERT) else "other"
        counts[role] += part.n_parameters
    return counts


def built(model: torch.nn.Module) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        sees = "visual" in name or "vision" in name or "multi_modal" in name
        expert = ".experts." in name and not name.endswith("bias")
        role = (
            VISION
            if sees
            else EXPERT
            if expert
            else EMBEDDING
            if "embed_tokens" in name
            else HEAD
            if "lm_head" in name
            else "other"
        )
        counts[role] += parameter.numel()
    return counts


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_a_row_counts_what_the_class_builds(kind: str, options: dict[str, Any]) -> None:
    settings = {name: value for name, value in (TEXT | options).items() if value is not None or name == "q_lora_rank"}
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    given = {"model_type": kind, **settings}
    assert counted(parts(given)) == built(model)
    assert counted(parts(config.to_dict())) == built(model), "a full config says the same"


@pytest.mark.parametrize(("kind", "options"), VISION_CASES, ids=[kind for kind, _ in VISION_CASES])
def test_a_tower_counts_what_the_class_builds(kind: str, options: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **options)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert counted(parts(config.to_dict())) == built(model)


def test_every_family_is_tested() -> None:
    assert {kind for kind, _ in CASES} | {"qwen2_vl_text"} == set(FAMILIES)


def test_active_parameters_are_those_of_the_chosen_experts() -> None:
    config = {"model_type": "mixtral", **TEXT, "num_local_experts": 5, "num_experts_per_tok": 2}
    expert = 3 * TEXT["hidden_size"] * TEXT["intermediate_size"]  # type: ignore[operator]
    total, active = (sum(getattr(part, name) for part in parts(config)) for name in ("n_parameters", "n_active"))
    assert total - active == TEXT["num_hidden_layers"] * 3 * expert


def test_an_unknown_family_says_what_helps() -> None:
    with pytest.raises(BitwrightError) as caught:
        parts({"model_type": "floppy"})
    assert caught.value.finding.rule == "estimate/family"
