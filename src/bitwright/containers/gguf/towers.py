"""Which vision towers llama.cpp computes as transformers does; others are refused by the setting that is not so."""

from __future__ import annotations

from typing import Any

from gguf import VisionProjectorType

from bitwright.containers.gguf.families import LLAVA
from bitwright.containers.gguf.layout import seeing_of
from bitwright.containers.gguf.mmproj import ACTS, GELU, LAYER_NORM_EPS, QUICK_GELU, config_of
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import fail
from bitwright.models.source import Source

WINDOW, FRAMES, MERGE = 112, 2, 2  # of Qwen's towers: pixels, frames and patches a side, which llama.cpp takes for granted
NORM = "layer_norm"
WHOLE, ROPE_THETA = "full", 10_000.0  # every patch is handed on, as there is no class token; how Pixtral's are rotated
ONE_BLOCK = "one block"

Wanted = dict[str, tuple[Any, tuple[Any, ...]]]  # setting -> what it is, and what it may be


def require_tower(source: Source) -> None:
    """Raise BitwrightError for a tower that llama.cpp would compute otherwise."""
    seeing = seeing_of(source.spec)
    if seeing is None:
        return
    if seeing.wrong:
        raise fail(
            "gguf/tower",
            f"{source.spec.architecture} of {seeing.tower}",
            saw=seeing.wrong,
            wanted="a tower that llama.cpp computes as transformers does",
            help="--container bitsandbytes",
        )
    config = config_of(source)
    of_projector = {LLAVA: _wanted_of_llava, VisionProjectorType.PIXTRAL: _wanted_of_pixtral}.get(seeing.projector)
    wanted = _wanted_of_tower(config.vision_config) | (of_projector(config) if of_projector else {})
    for name, (saw, known) in wanted.items():
        if saw not in known:
            raise fail(
                "gguf/tower",
                f"config.json: {name}",
                saw=f"{saw}",
                wanted=f"{' or '.join(str(value) for value in known)}, as llama.cpp has it",
                help="--container bitsandbytes",
            )
    if seeing.row_end and seeing.row_end not in tokenizer_of(source.checkpoint.directory).get_vocab():
        raise fail(
            "gguf/tower",
            "tokenizer.json",
            saw=f"no token {seeing.row_end}",
            wanted="the token between two rows of an image, whose embedding goes into the file",
            help="copy tokenizer.json from the original model again, or --container bitsandbytes",
        )


def _wanted_of_tower(tower: Any) -> Wanted:
    full = tuple(getattr(tower, "fullatt_block_indexes", ()))
    every = full[0] + 1 if full else 1
    return {
        "vision_config.window_size": (getattr(tower, "window_size", WINDOW), (WINDOW,)),
        "vision_config.temporal_patch_size": (getattr(tower, "temporal_patch_size", FRAMES), (FRAMES,)),
        "vision_config.spatial_merge_size": (getattr(tower, "spatial_merge_size", MERGE), (MERGE,)),
        "vision_config.fullatt_block_indexes": (full, (tuple(every * (i + 1) - 1 for i in range(len(full))),)),
        "vision_config.norm_type": (getattr(tower, "norm_type", NORM), (NORM,)),
        "vision_config.vision_use_head": (bool(getattr(tower, "vision_use_head", False)), (False,)),
    }


def _wanted_of_llava(config: Any) -> Wanted:
    at = config.vision_feature_layer
    return {
        "vision_feature_layer": (ONE_BLOCK if isinstance(at, int) else at, (ONE_BLOCK,)),
        "vision_feature_select_strategy": (config.vision_feature_select_strategy, (WHOLE,)),
        "vision_config.hidden_act": (config.vision_config.hidden_act, (*ACTS, QUICK_GELU)),
        "projector_hidden_act": (config.projector_hidden_act, (GELU,)),
        "multimodal_projector_bias": (config.multimodal_projector_bias, (True,)),
    }


def _wanted_of_pixtral(config: Any) -> Wanted:
    tower, eps = config.vision_config, config.get_text_config().rms_norm_eps
    merged = hasattr(config, "spatial_merge_size")  # after a norm of the text's
    return {
        "vision_feature_layer": (config.vision_feature_layer, (-1, tower.num_hidden_layers)),
        "vision_feature_select_strategy": (getattr(config, "vision_feature_select_strategy", WHOLE), (WHOLE,)),
        "vision_config.hidden_act": (tower.hidden_act, (GELU, "silu")),
        "vision_config.rope_parameters.rope_theta": (tower.rope_parameters["rope_theta"], (ROPE_THETA,)),
        "projector_hidden_act": (config.projector_hidden_act, (GELU,)),
        "text_config.rms_norm_eps": (eps if merged else LAYER_NORM_EPS, (LAYER_NORM_EPS,)),
    }
