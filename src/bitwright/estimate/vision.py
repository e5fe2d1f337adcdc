"""Vision towers, and what joins them to the language model: their tensors (no torch).

Each function takes the settings of the tower, of the whole model, and the width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable

from bitwright.errors import fail
from bitwright.estimate.parts import VISION, Part, Parts, sees
from bitwright.models.settings import Config, text_config, vision_config


def vision(config: Config) -> Parts:
    """The parts that see. Raises BitwrightError for a tower that has no row."""
    tower, model = vision_config(config), str(config.get("model_type"))
    if tower is None:
        return
    if model not in TOWERS:
        raise fail(
            "estimate/vision",
            "config.json",
            saw=f"a vision tower of {model}",
            wanted=f"one of {', '.join(sorted(TOWERS))}",
            help="name a directory or a hub id: from its tensor headers every model can be counted",
        )
    yield from TOWERS[model](tower, config, int(text_config(config)["hidden_size"]))


def _other(*shape: int, count: int = 1) -> Parts:
    yield Part(VISION, shape, count)


def _side(size: int | list[int]) -> int:
    return int(size[0] if isinstance(size, list) else size)


def _patches(tower: Config) -> int:
    return (_side(tower["image_size"]) // _side(tower["patch_size"])) ** 2


def _encoder(tower: Config, layers: int, bias: bool = True) -> Parts:
    """Blocks of attention and two feed-forward matrices with their norms. ``bias``: of attention."""
    width, inner = int(tower["hidden_size"]), int(tower["intermediate_size"])
    yield from sees(width, width, 4 * layers, bias)
    yield from sees(inner, width, layers)
    yield from sees(width, inner, layers)
    yield from _other(width, count=4 * layers)


def _siglip(tower: Config) -> Parts:
    width, patch = int(tower["hidden_size"]), _side(tower["patch_size"])
    yield from _other(width, tower.get("num_channels", 3) * patch * patch + 1)
    yield from _other(_patches(tower), width)
    yield from _encoder(tower, tower["num_hidden_layers"])
    yield from _other(width, count=2)


def _gemma3(tower: Config, config: Config, hidden: int) -> Parts:
    yield from _siglip(tower)
    yield from _other(tower["hidden_size"], hidden + 1)  # the projection, which is no linear layer, and its norm


def _paligemma(tower: Config, config: Config, hidden: int) -> Parts:
    yield from _siglip(tower)
    yield from sees(int(config.get("projection_dim") or PALIGEMMA_WIDTH), tower["hidden_size"])


def _idefics3(tower: Config, config: Config, hidden: int) -> Parts:
    yield from _siglip(tower)
    yield from sees(hidden, tower["hidden_size"] * int(config.get("scale_factor") or 2) ** 2, bias=False)


def _qwen_merger(merged: int, hidden: int, count: int = 1) -> Parts:
    yield from sees(merged, merged, count)
    yield from sees(hidden, merged, count)


def _qwen2_vl(tower: Config, config: Config, hidden: int) -> Parts:
    width, depth = int(tower["embed_dim"]), int(tower["depth"])
    inner, merged = int(width * tower["mlp_ratio"]), width * tower["spatial_merge_size"] ** 2
    yield from _qwen_patches(tower, width)
    yield from sees(3 * width, width, depth)
    yield from sees(width, width, depth)
    yield from sees(inner, width, depth)
    yield from sees(width, inner, depth)
    yield from _other(width, count=4 * depth + 2)
    yield from _qwen_merger(merged, int(tower["hidden_size"]))


def _qwen2_5_vl(tower: Config, config: Config, hidden: int) -> Parts:
    width, depth, inner = int(tower["hidden_size"]), int(tower["depth"]), int(tower["intermediate_size"])
    yield from _qwen_patches(tower, width)
    yield from sees(3 * width, width, depth)
    yield from sees(width, width, depth)
    yield from sees(inner, width, 2 * depth)
    yield from sees(width, inner, depth)
    yield from _other(width, count=2 * depth + 1)
    yield from _qwen_merger(width * tower["spatial_merge_size"] ** 2, int(tower["out_hidden_size"]))


def _qwen3_vl(tower: Config, config: Config, hidden: int) -> Parts:
    width, depth, inner = int(tower["hidden_size"]), int(tower["depth"]), int(tower["intermediate_size"])
    merged, deep = width * tower["spatial_merge_size"] ** 2, len(tower.get("deepstack_visual_indexes") or ())
    yield from _qwen_patches(tower, width)
    yield from _other(width)  # the patches' bias
    yield from _other(tower["num_position_embeddings"], width)
    yield from sees(3 * width, width, depth)
    yield from sees(width, width, depth)
    yield from sees(inner, width, depth)
    yield from sees(width, inner, depth)
    yield from _other(width, count=4 * depth + 2)
    yield from _other(merged, count=2 * deep)
    yield from _qwen_merger(merged, int(tower["out_hidden_size"]), 1 + deep)


def _qwen_patches(tower: Config, width: int) -> Parts:
    channels = int(tower.get("in_channels") or tower.get("in_chans") or 3)
    yield from _other(width, channels, tower["temporal_patch_size"], tower["patch_size"], tower["patch_size"])


def _pixtral(tower: Config) -> Parts:
    width, inner, layers = (int(tower[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    yield from _other(width, tower.get("num_channels", 3), tower["patch_size"], tower["patch_size"])
    yield from sees(width, width, 4 * layers, bias=False)
    yield from sees(inner, width, 2 * layers, bias=False)
    yield from sees(width, inner, layers, bias=False)
    yield from _other(width, count=2 * layers + 1)


def _clip(tower: Config) -> Parts:
    width, patch = int(tower["hidden_size"]), _side(tower["patch_size"])
    yield from _other(width, tower.get("num_channels", 3) * patch * patch)
    yield from _other(_patches(tower) + 1, width)
    yield from _other(width, count=5)  # the class token and two norms
    yield from _encoder(tower, tower["num_hidden_layers"])


def _llava(tower: Config, config: Config, hidden: int) -> Parts:
    layers = config.get("vision_feature_layer")
    features, bias = len(layers) if isinstance(layers, list) else 1, config.get("multimodal_projector_bias", True)
    yield from (_pixtral if tower.get("model_type") == "pixtral" else _clip)(tower)
    yield from sees(hidden, tower["hidden_size"] * features, bias=bias)
    yield from sees(hidden, hidden, bias=bias)


def _llava_next(tower: Config, config: Config, hidden: int) -> Parts:
    yield from _llava(tower, config, hidden)
    yield from _other(hidden)  # the end of a row of patches


def _mistral3(tower: Config, config: Config, hidden: int) -> Parts:
    width, bias = int(tower["hidden_size"]), config.get("multimodal_projector_bias", False)
    yield from _pixtral(tower)
    yield from _other(width)
    yield from sees(width, width * int(config.get("spatial_merge_size") or 2) ** 2, bias=False)
    yield from sees(hidden, width, bias=bias)
    yield from sees(hidden, hidden, bias=bias)


def _internvl(tower: Config, config: Config, hidden: int) -> Parts:
    width, layers, patch = int(tower["hidden_size"]), int(tower["num_hidden_layers"]), _side(tower["patch_size"])
    joined = width * int(1 / (config.get("downsample_ratio") or 0.5)) ** 2
    norms = 4 if tower["norm_type"] == "layer_norm" else 2  # RMS norms have no bias
    yield from _other(width, tower.get("num_channels", 3) * patch * patch + 1)
    yield from _other(width)  # the class token
    if tower.get("use_absolute_position_embeddings", True):
        yield from _other(_patches(tower) + 1, width)
    yield from sees(width, width, 3 * layers, tower["attention_bias"])
    yield from sees(width, width, layers)
    yield from sees(int(tower["intermediate_size"]), width, layers)
    yield from sees(width, int(tower["intermediate_size"]), layers)
    yield from _other(width, count=(norms + 2 + 2 * bool(tower["use_qk_norm"])) * layers)  # and two scales
    yield from _other(joined, count=2)
    yield from sees(hidden, joined)
    yield from sees(hidden, hidden)


def _mllama(tower: Config, config: Config, hidden: int) -> Parts:
    """Two encoders over tiles; positions within a tile and of the tile for each of the picture's proportions."""
    width, tiles, patch = int(tower["hidden_size"]), int(tower["max_num_tiles"]), _side(tower["patch_size"])
    layers, later = int(tower["num_hidden_layers"]), int(tower["num_global_layers"])
    ratios, places = len(tower.get("supported_aspect_ratios") or MLLAMA_RATIOS) + 1, _patches(tower) + 1
    yield from _other(width, tower.get("num_channels", 3) * patch * patch)
    yield from _other(width, count=5)  # the class token and two norms
    yield from _other(places, width)
    yield from _other(ratios, tiles * places * width)
    yield from _other(ratios, tiles * width, count=2)
    yield from _other(3 + 2 * later)  # gates
    yield from _encoder(tower, layers, bias=False)
    yield from _encoder(tower, later, bias=False)
    yield from sees(hidden, tower["vision_output_dim"])


PALIGEMMA_WIDTH = 2048  # of what it projects to, unless stated
MLLAMA_RATIOS = range(8)  # proportions of up to four tiles
TOWERS: dict[str, Callable[[Config, Config, int], Parts]] = {
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
    "qwen3_5": _qwen3_vl,
    "qwen3_5_moe": _qwen3_vl,
    "llava": _llava,
    "llava_next": _llava_next,
    "mistral3": _mistral3,
    "internvl": _internvl,
    "mllama": _mllama,
}
