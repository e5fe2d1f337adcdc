"""The second file of a model that sees: vision tower and projector, as llama.cpp's multimodal library reads them.

Source: conversion scripts and clip-impl.h of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf import VisionProjectorType
from torch import Tensor
from transformers import AutoConfig

from bitwright.containers.gguf.families import LLAVA, Seeing
from bitwright.containers.gguf.layout import TAPS
from bitwright.containers.gguf.metadata import QUANTIZATION_VERSION
from bitwright.containers.gguf.rotary import Heads
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import fail
from bitwright.host.texts import UnreadableError, read_object
from bitwright.models.source import Source

ARCH, VISION = "clip", "clip.vision"
PROJECTOR = gguf.Keys.Clip.PROJECTOR_TYPE
LAYER_NORM_EPS = 1e-5  # where a config says nothing, as the converter has it
QWEN_IMAGE, QWEN_EPS = 560, 1e-6  # a size to begin with, and of the class
EMBEDDING = "embed_tokens.weight"
FEATURE_LAYER = f"{VISION}.feature_layer"
GELU, QUICK_GELU = "gelu", "quick_gelu"  # the second is what llama.cpp takes where nothing is said
ACTS = {
    GELU: gguf.GGUFWriter.add_vision_use_gelu,
    "gelu_pytorch_tanh": gguf.GGUFWriter.add_vision_use_gelu,
    "silu": gguf.GGUFWriter.add_vision_use_silu,
}
Write = Callable[[gguf.GGUFWriter, Any, dict[str, Any]], None]  # (writer, configuration, settings of the image processor)


def vision_writer(source: Source, seeing: Seeing, name: str, file_type: int) -> gguf.GGUFWriter:
    """A file that says all of the tower but its tensors. Raises BitwrightError where the processor's settings are missing."""
    config = config_of(source)
    tower, image = config.vision_config, image_settings(source.checkpoint.directory)
    writer = gguf.GGUFWriter(path=None, arch=ARCH)
    writer.add_type("mmproj")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(seeing.projector)
    writer.add_vision_projection_dim(source.config.hidden_size)
    writer.add_vision_patch_size(_side(tower.patch_size))
    writer.add_vision_block_count(tower.num_hidden_layers)
    writer.add_vision_head_count(tower.num_attention_heads)
    writer.add_vision_image_mean([float(value) for value in image["image_mean"]])
    writer.add_vision_image_std([float(value) for value in image["image_std"]])
    SETTINGS[seeing.projector](writer, config, image)
    return writer


def _squares(writer: gguf.GGUFWriter, tower: Any, act: str = GELU) -> None:
    """A tower that takes squares of one size."""
    writer.add_vision_image_size(_side(tower.image_size))
    writer.add_vision_embedding_length(tower.hidden_size)
    writer.add_vision_feed_forward_length(tower.intermediate_size)
    writer.add_vision_attention_layernorm_eps(float(getattr(tower, "layer_norm_eps", LAYER_NORM_EPS)))
    if act in ACTS:
        ACTS[act](writer, True)


def _side(stated: Any) -> int:
    return int(stated if isinstance(stated, int) else stated[0])


def _idefics(writer: gguf.GGUFWriter, config: Any, image: dict[str, Any]) -> None:
    _squares(writer, config.vision_config)
    writer.add_vision_projector_scale_factor(config.scale_factor)
    writer.add_vision_preproc_image_size(int(image.get("size", {}).get("longest_edge", config.vision_config.image_size)))


def _gemma(writer: gguf.GGUFWriter, config: Any, image: dict[str, Any]) -> None:
    tower = config.vision_config
    _squares(writer, tower)
    writer.add_vision_projector_scale_factor(tower.image_size // tower.patch_size // int(config.mm_tokens_per_image**0.5))


def _qwen(writer: gguf.GGUFWriter, config: Any, image: dict[str, Any]) -> None:
    """Images of any size, cut into patches that are merged; what Qwen2-VL calls hidden_size is the text's."""
    tower = config.vision_config
    width = getattr(tower, "embed_dim", tower.hidden_size)
    windowed = getattr(tower, "fullatt_block_indexes", None)
    writer.add_vision_image_size(QWEN_IMAGE)
    writer.add_vision_embedding_length(width)
    writer.add_vision_feed_forward_length(int(getattr(tower, "intermediate_size", 0) or width * tower.mlp_ratio))
    writer.add_vision_attention_layernorm_eps(QWEN_EPS)
    if windowed:
        writer.add_vision_use_silu(True)
        writer.add_vision_n_wa_pattern(windowed[0] + 1)


def _qwen3(writer: gguf.GGUFWriter, config: Any, image: dict[str, Any]) -> None:
    """A table of positions for any size; some blocks hand what they see to the first blocks of the text."""
    tower = config.vision_config
    writer.add_vision_image_size(int(tower.num_position_embeddings**0.5) * tower.patch_size)
    writer.add_vision_embedding_length(tower.hidden_size)
    writer.add_vision_feed_forward_length(tower.intermediate_size)
    writer.add_vision_attention_layernorm_eps(QWEN_EPS)
    writer.add_vision_use_gelu(True)
    writer.add_vision_spatial_merge_size(tower.spatial_merge_size)
    writer.add_vision_is_deepstack_layers([i in tower.deepstack_visual_indexes for i in range(tower.depth)])


def _llava(writer: gguf.GGUFWriter, config: Any, image: dict[str, Any]) -> None:
    """The projector reads one block's output, counted from 0, the tower's input."""
    tower = config.vision_config
    _squares(writer, tower, tower.hidden_act)
    writer.add_bool(gguf.Keys.Clip.HAS_LLAVA_PROJECTOR, True)
    at = config.vision_feature_layer
    writer.add_array(FEATURE_LAYER, [at if at >= 0 else tower.num_hidden_layers + 1 + at])


def _pixtral(writer: gguf.GGUFWriter, config: Any, image: dict[str, Any]) -> None:
    """Images of any size."""
    _squares(writer, config.vision_config, config.vision_config.hidden_act)
    writer.add_vision_spatial_merge_size(getattr(config, "spatial_merge_size", 1))


def write_of_text(writer: gguf.GGUFWriter, source: Source) -> None:
    """Add to the text's file what it must know of the tower."""
    if taps := source.checkpoint.config.get("vision_config", {}).get(TAPS):
        writer.add_num_deepstack_layers(len(taps))


def taps_of(metadata: Mapping[str, Any]) -> list[int]:
    """The blocks of a second file that hand what they see to the text."""
    return [i for i, taps in enumerate(metadata.get(gguf.Keys.ClipVision.IS_DEEPSTACK_LAYERS, ())) if taps]


def _intern(writer: gguf.GGUFWriter, config: Any, image: dict[str, Any]) -> None:
    """As `_squares`, of sizes that are stated for both sides."""
    _squares(writer, config.vision_config)
    writer.add_vision_projector_scale_factor(int(1 / config.downsample_ratio))


SETTINGS: dict[str, Write] = {
    VisionProjectorType.IDEFICS3: _idefics,
    VisionProjectorType.GEMMA3: _gemma,
    VisionProjectorType.INTERNVL: _intern,
    VisionProjectorType.QWEN2VL: _qwen,
    VisionProjectorType.QWEN25VL: _qwen,
    VisionProjectorType.QWEN3VL: _qwen3,
    LLAVA: _llava,
    VisionProjectorType.PIXTRAL: _pixtral,
}


def tower_heads(source: Source) -> Heads:
    """The heads of the tower."""
    n = int(config_of(source).vision_config.num_attention_heads)
    return Heads(n, n)


def row_end(source: Source, token: str) -> Tensor:
    """float32 [width]: the embedding of ``token``, which llama.cpp puts between two rows of an image."""
    at = tokenizer_of(source.checkpoint.directory).get_vocab()[token]
    embedding = next(name for name in source.tensor_of if name.endswith(EMBEDDING))
    return source.read(embedding)[at].float()


def config_of(source: Source) -> Any:
    """The configuration of the whole model."""
    return AutoConfig.from_pretrained(source.checkpoint.directory)


def image_settings(directory: Path) -> dict[str, Any]:
    """Mean, deviation and sizes of the processor in ``directory``, from whichever of its files has them."""
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        try:
            found = read_object(directory / name)
            settings = found if key is None else found.get(key, {})
            if settings.get("image_mean") and settings.get("image_std"):
                return dict(settings)
        except (UnreadableError, OSError, AttributeError):
            continue
    raise fail(
        "gguf/processor",
        directory,
        saw="no image_mean and image_std",
        wanted="the settings of the image processor, which go into the file",
        help="copy preprocessor_config.json beside the weights",
    )
