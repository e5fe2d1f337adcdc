"""Small random models that see, one of each family, with samples as their processors would lay them out.

Projections and gates that initialise to zero are filled, so that every path carries gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from bitwright.data.samples import Sample

IMAGE, VOCAB, WIDTH, LAYERS = 5, 128, 64, 3
START, END = 7, 8
ZERO_AT_START = ("gate", "gate_attn", "gate_ffn", "mm_input_projection_weight")


Sizes = list[tuple[int, int]]
Media = Callable[[Sizes, torch.Generator], tuple[list[int], dict[str, Tensor]]]  # -> tokens of each image, and the pixels


@dataclass(frozen=True)
class Family:
    """One family: its class with a configuration, and what it is given for images of so many patches a side."""

    model: Callable[[], Any]
    media: Media
    per_token: tuple[str, ...] = ()  # inputs that say of each token whether it is an image's
    fixed: tuple[int, int] | None = None  # the only size of image that the tower takes
    n_images: int = 2

    def sample(self, sizes: Sizes, seed: int, length: int = 20) -> Sample:
        """A sample with images of ``sizes`` (patches high, patches wide), whose last seven tokens count."""
        chance = torch.Generator().manual_seed(seed)
        ids = torch.randint(10, VOCAB, (length,), generator=chance)
        counts, media = self.media(sizes, chance) if sizes else ([], {})
        images = [torch.tensor([START, *[IMAGE] * count, END]) for count in counts]
        ids = torch.cat([ids[:3], *images, ids[3:]])
        is_image = (ids == IMAGE).long()
        inputs = {"input_ids": ids} | (dict.fromkeys(self.per_token, is_image) if sizes else {})
        if "cross_attention_mask" in media:
            media["cross_attention_mask"] = media["cross_attention_mask"].expand(1, len(ids), -1, -1).clone()
        scored = torch.zeros(len(ids), dtype=torch.bool)
        scored[-7:] = True
        return Sample(inputs, scored, media)


def text(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


def tower(**more: Any) -> dict[str, Any]:
    return {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4, **more}


def qwen(kind: str, config: type, patch: int, vision: dict[str, Any], **rope: Any) -> Family:
    def model() -> Any:
        rotary = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4, **rope}
        more = {"head_dim": 16} if kind == "Qwen3VL" else {}
        tokens = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": START, "vision_end_token_id": END}
        built = config(text_config=text(rope_parameters=rotary, **more), vision_config=vision, **tokens)
        return getattr(tf, f"{kind}ForConditionalGeneration")(built)

    def media(sizes: Sizes, chance: torch.Generator) -> tuple[list[int], dict[str, Tensor]]:
        grid = torch.tensor([[1, *size] for size in sizes])
        n = int(grid.prod(1).sum())
        pixels = torch.randn(n, 3 * 2 * patch * patch, generator=chance)
        return [h * w // 4 for h, w in sizes], {"pixel_values": pixels, "image_grid_thw": grid}

    return Family(model, media, ("mm_token_type_ids",))


COMMON_QWEN = {"num_heads": 4, "spatial_merge_size": 2, "hidden_size": WIDTH}


def squares(side: int, tokens: int, *, nested: bool = False, mask: bool = False) -> Media:
    """Media of a tower that takes squares of ``side`` pixels, each of which becomes ``tokens``."""

    def media(sizes: Sizes, chance: torch.Generator) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(len(sizes), 3, side, side, generator=chance)
        found = {"pixel_values": pixels[None] if nested else pixels}
        if mask:
            found["pixel_attention_mask"] = torch.ones(1, len(sizes), side, side, dtype=torch.bool)
        return [tokens] * len(sizes), found

    return media


def mllama() -> Any:
    ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    rotary = {"rope_type": "default", "rope_theta": 1e4}
    seeing = {
        "hidden_size": WIDTH,
        "attention_heads": 4,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_global_layers": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 3 * WIDTH,
        "intermediate_layers_indices": [0, 1],
        "max_num_tiles": 4,
        "supported_aspect_ratios": ratios,
    }
    config = tf.MllamaConfig(
        text_config=text(cross_attention_layers=[1], rope_parameters=rotary), vision_config=seeing, image_token_index=IMAGE
    )
    return tf.MllamaForConditionalGeneration(config)


def mllama_media(sizes: Sizes, chance: torch.Generator) -> tuple[list[int], dict[str, Tensor]]:
    tiles = sizes[0][0] * sizes[0][1] // 8
    shown = (torch.arange(4) < tiles).long()
    return [1], {
        "pixel_values": torch.randn(1, 1, 4, 3, 28, 28, generator=chance),
        "aspect_ratio_ids": torch.tensor([[tiles]]),
        "aspect_ratio_mask": shown[None, None],
        "cross_attention_mask": shown[None, None, None],
    }


def llava(vision: dict[str, Any], tokens: int, **more: Any) -> Any:
    kind = "mistral" if vision["model_type"] == "pixtral" else "llama"
    given = text(model_type=kind, **({"head_dim": 16, "sliding_window": None} if kind == "mistral" else {}))
    config = tf.LlavaConfig(text_config=given, vision_config=vision, image_token_id=IMAGE, image_seq_length=tokens, **more)
    return tf.LlavaForConditionalGeneration(config)


def pixtral_tower() -> dict[str, Any]:
    return tower(model_type="pixtral", head_dim=16, image_size=128, patch_size=16)


def pixtral_media(merge: int) -> Media:
    def media(sizes: Sizes, chance: torch.Generator) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.tensor(sizes) * 16
        high, wide = pixels.max(0).values.tolist()
        return [h * w // merge**2 for h, w in sizes], {
            "pixel_values": torch.randn(len(sizes), 3, high, wide, generator=chance),
            "image_sizes": pixels,
        }

    return media


def mistral3() -> Any:
    given = text(model_type="mistral", head_dim=16, sliding_window=None)
    config = tf.Mistral3Config(
        text_config=given, vision_config=pixtral_tower(), image_token_index=IMAGE, vision_feature_layer=-1, spatial_merge_size=2
    )
    return tf.Mistral3ForConditionalGeneration(config)


def gemma3(head: bool) -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = tf.Gemma3Config(
        text_config=text(head_dim=16, sliding_window=8, layer_types=kinds),
        vision_config=tower(model_type="siglip_vision_model", image_size=56, patch_size=14, vision_use_head=head),
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=4,
    )
    return tf.Gemma3ForConditionalGeneration(config)


def paligemma() -> Any:
    config = tf.PaliGemmaConfig(
        text_config=text(model_type="gemma", head_dim=16),
        vision_config=tower(
            model_type="siglip_vision_model", image_size=56, patch_size=14, projection_dim=WIDTH, vision_use_head=False
        ),
        image_token_index=IMAGE,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return tf.PaliGemmaForConditionalGeneration(config)


def idefics(kind: str) -> Any:
    config = getattr(tf, f"{kind}Config")(
        text_config=text(model_type="llama"),
        vision_config=tower(image_size=56, patch_size=14),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return getattr(tf, f"{kind}ForConditionalGeneration")(config)


def internvl() -> Any:
    config = tf.InternVLConfig(
        text_config=text(model_type="qwen2"),
        vision_config=tower(image_size=[56, 56], patch_size=[14, 14]),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return tf.InternVLForConditionalGeneration(config)


CLIP = tower(model_type="clip_vision_model", image_size=56, patch_size=14, projection_dim=WIDTH)
FAMILIES: dict[str, Family] = {
    "qwen2_vl": qwen(
        "Qwen2VL", tf.Qwen2VLConfig, 14, {**COMMON_QWEN, "depth": 3, "embed_dim": WIDTH, "mlp_ratio": 2, "patch_size": 14}
    ),
    "qwen2_5_vl": qwen(
        "Qwen2_5_VL",
        tf.Qwen2_5_VLConfig,
        14,
        {
            **COMMON_QWEN,
            "depth": 3,
            "out_hidden_size": WIDTH,
            "intermediate_size": 128,
            "patch_size": 14,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
    ),
    "qwen3_vl": qwen(
        "Qwen3VL",
        tf.Qwen3VLConfig,
        16,
        {
            **COMMON_QWEN,
            "depth": 4,
            "out_hidden_size": WIDTH,
            "intermediate_size": 128,
            "patch_size": 16,
            "deepstack_visual_indexes": [0, 2],
            "num_position_embeddings": 16,
        },
        mrope_interleaved=True,
    ),
    "mllama": Family(mllama, mllama_media, n_images=1),
    "llava_clip": Family(
        lambda: llava(CLIP, 16, vision_feature_layer=-2, vision_feature_select_strategy="default"),
        squares(56, 16),
        fixed=(4, 4),
    ),
    "llava_pixtral": Family(
        lambda: llava(pixtral_tower(), 1, vision_feature_layer=-1, vision_feature_select_strategy="full"), pixtral_media(1)
    ),
    "mistral3": Family(mistral3, pixtral_media(2)),
    "gemma3": Family(lambda: gemma3(head=False), squares(56, 4), ("token_type_ids",), (4, 4)),
    "gemma3_with_head": Family(lambda: gemma3(head=True), squares(56, 4), ("token_type_ids",), (4, 4)),
    "paligemma": Family(paligemma, squares(56, 16), ("token_type_ids",), (4, 4)),
    "idefics3": Family(lambda: idefics("Idefics3"), squares(56, 4, nested=True, mask=True), fixed=(4, 4)),
    "smolvlm": Family(lambda: idefics("SmolVLM"), squares(56, 4, nested=True, mask=True), fixed=(4, 4)),
    "internvl": Family(internvl, squares(56, 4), fixed=(4, 4)),
}


def built(name: str) -> Any:
    """A model of the family, in evaluation, with something in the place of every zero."""
    torch.manual_seed(1)
    model = FAMILIES[name].model().eval().requires_grad_(False)
    for path, parameter in model.named_parameters():
        if path.endswith(ZERO_AT_START):
            torch.nn.init.normal_(parameter, std=0.3)
    return model
