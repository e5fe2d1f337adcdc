"""The second file of a model that sees: vision tower and projector, as llama.cpp's multimodal library reads them.

Source: conversion scripts and clip-impl.h of llama.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from transformers import AutoConfig

from bitwright.containers.gguf.families import Seeing
from bitwright.containers.gguf.metadata import QUANTIZATION_VERSION
from bitwright.errors import fail
from bitwright.host.texts import UnreadableError, read_object
from bitwright.models.source import Source

ARCH = "clip"
LAYER_NORM_EPS = 1e-5  # where a config says nothing, as the converter has it


def vision_writer(source: Source, seeing: Seeing, name: str, file_type: int) -> gguf.GGUFWriter:
    """A file that says all of the tower but its tensors. Raises BitwrightError where the processor's settings are missing."""
    directory = source.checkpoint.directory
    config: Any = AutoConfig.from_pretrained(directory)
    tower, image = config.vision_config, image_settings(directory)
    writer = gguf.GGUFWriter(path=None, arch=ARCH)
    writer.add_type("mmproj")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(seeing.projector)
    writer.add_vision_projection_dim(source.config.hidden_size)
    writer.add_vision_image_size(tower.image_size)
    writer.add_vision_patch_size(tower.patch_size)
    writer.add_vision_embedding_length(tower.hidden_size)
    writer.add_vision_feed_forward_length(tower.intermediate_size)
    writer.add_vision_block_count(tower.num_hidden_layers)
    writer.add_vision_head_count(tower.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(float(getattr(tower, "layer_norm_eps", LAYER_NORM_EPS)))
    writer.add_vision_image_mean([float(value) for value in image["image_mean"]])
    writer.add_vision_image_std([float(value) for value in image["image_std"]])
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(config.scale_factor)
    writer.add_vision_preproc_image_size(int(image.get("size", {}).get("longest_edge", tower.image_size)))
    return writer


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
