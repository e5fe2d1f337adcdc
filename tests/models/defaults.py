"""What transformers' classes fill in where a config.json is silent; ``python -m tests.models.defaults`` writes the file."""

import json
from pathlib import Path
from typing import Any

import bitwright.models
from bitwright.estimate.families import FAMILIES
from bitwright.estimate.vision import TOWERS

FILE = Path(bitwright.models.__file__).parent / "defaults.json"
OTHER_TOWERS = ("pixtral", "clip_vision_model", "siglip_vision_model")
SETTINGS = """
    attention_bias attention_chunk_size attn_layer_offset attn_layer_period block_auto_adjust_ff_dim block_ffn_dim_multiplier
    block_multiple_of conv_L_cache conv_bias conv_kernel cross_attention_layers decoder_sparse_step deepstack_visual_indexes
    depth embed_dim expand expert_layer_offset expert_layer_period first_k_dense_replace head_dim hidden_size image_size
    in_channels intermediate_size kv_lora_rank layers_block_type linear_conv_kernel_dim linear_key_head_dim
    linear_num_key_heads linear_num_value_heads linear_value_head_dim mamba_conv_bias mamba_d_conv mamba_d_ssm mamba_d_state
    mamba_dt_rank mamba_expand mamba_head_dim mamba_n_groups mamba_n_heads mamba_num_heads mamba_proj_bias mamba_rms_norm
    max_num_tiles max_position_embeddings max_window_layers mlp_bias mlp_ratio moe_intermediate_size moe_latent_size
    moe_shared_expert_intermediate_size n_groups n_routed_experts n_shared_experts norm_type num_attention_heads num_channels
    num_experts num_experts_per_tok num_global_layers num_heads num_hidden_layers num_key_value_heads num_local_experts
    num_position_embeddings out_hidden_size patch_size projectors_bias q_lora_rank qk_nope_head_dim qk_rope_head_dim
    shared_expert_intermediate_size shared_intermediate_size sliding_window spatial_merge_size ssm_state_size state_size
    temporal_patch_size tie_word_embeddings time_step_rank use_absolute_position_embeddings use_bias use_conv_bias use_qk_norm
    use_sliding_window v_head_dim vision_output_dim vocab_size
"""  # that bitwright.estimate reads
READ = SETTINGS.split()
MADE = {"mllama_text_model": ("cross_attention_layers",), "nemotron_h": ("layers_block_type",)}  # lists a class fills in


def table() -> dict[str, Any]:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: dict[str, Any] = {}
    models = {}
    for kind in FAMILIES:
        made = CONFIG_MAPPING[kind]() if kind in MADE else None
        found[kind] = _settings(CONFIG_MAPPING[kind]) | {name: getattr(made, name) for name in MADE.get(kind, ())}
    for kind in TOWERS:
        config = CONFIG_MAPPING[kind]()
        found.setdefault(config.vision_config.model_type, _settings(type(config.vision_config)))
        models[kind] = {
            "text": config.get_text_config().model_type,
            "vision": config.vision_config.model_type,
            "tie_word_embeddings": bool(getattr(config, "tie_word_embeddings", False)),
        }
    found |= {kind: _settings(CONFIG_MAPPING[kind]) for kind in OTHER_TOWERS}
    return {"transformers": transformers.__version__, "models": models, "classes": dict(sorted(found.items()))}


def _settings(cls: Any) -> dict[str, Any]:
    """Settings of the class before it derives one from another, and its other names for them."""
    names = {name: real for name, real in cls.attribute_map.items() if real in READ}
    found = {}
    for name in sorted(READ):
        value = getattr(cls, name, None)
        if isinstance(value, bool | int | float | str | list | tuple):
            found[names.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return found | ({"attribute_map": names} if names else {})


if __name__ == "__main__":
    FILE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
