"""Small random models that see, one of each family, with samples as their processors would lay them out.

Projections and gates that initialise to zero are filled, so that every path carries gradient.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from bitwright.data.samples import Sample
from tests.conftest import byte_tokenizer, roughen

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


TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def idefics_with_processor(out: Path) -> Path:
    """A random Idefics3 with a tokenizer and its processor, which takes an image whole."""
    tokenizer = byte_tokenizer()
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(["\n\n"])  # llama.cpp looks it up
    tokenizer.chat_template = TEMPLATE
    image = tf.Idefics3ImageProcessorPil(
        size={"longest_edge": 64},
        max_image_size={"longest_edge": 64},
        do_image_splitting=False,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.3, 0.4, 0.5],
    )
    tf.Idefics3Processor(image, tokenizer, image_seq_len=4).save_pretrained(out)
    config = tf.Idefics3Config(
        text_config=text(model_type="llama", vocab_size=len(tokenizer) + 4, rms_norm_eps=1e-5),
        vision_config=tower(image_size=64, patch_size=16, intermediate_size=256),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    torch.manual_seed(1)
    model = tf.Idefics3ForConditionalGeneration(config)
    roughen(model)
    model.bfloat16().save_pretrained(out)
    return out


def gemma_with_processor(out: Path) -> Path:
    """A random Gemma 3 with a tokenizer and its processor: an image's tokens attend to each other in both directions."""
    plain = byte_tokenizer()
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=marks,
        chat_template=TEMPLATE.replace("<image>", "<start_of_image>"),
    )
    side = {"height": 128, "width": 128}
    image = tf.Gemma3ImageProcessorPil(size=side, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.4, 0.5])
    tf.Gemma3Processor(image, tokenizer, image_seq_length=16).save_pretrained(out)
    config = tf.Gemma3Config(
        text_config=text(
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=256,
            layer_types=LAYERS * ["sliding_attention"],
            vocab_size=len(tokenizer) + 4,
        ),
        vision_config=tower(model_type="siglip_vision_model", image_size=128, patch_size=16, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        mm_tokens_per_image=16,
    )
    return _saved(tf.Gemma3ForConditionalGeneration, config, out)


def internvl_with_processor(out: Path) -> Path:
    """A random InternVL with a tokenizer and its processor: a class token, and scales of what each half of a block adds."""
    plain = byte_tokenizer()
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=marks,
        chat_template=TEMPLATE.replace("<image>", "<IMG_CONTEXT>"),
    )
    side = {"height": 64, "width": 64}
    image = tf.GotOcr2ImageProcessorPil(size=side, crop_to_patches=False, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.4, 0.5])
    image.save_pretrained(out)
    tokenizer.save_pretrained(out)
    processor = {"image_seq_length": 4, "processor_class": "InternVLProcessor"}
    (out / "processor_config.json").write_text(json.dumps(processor))
    config = tf.InternVLConfig(
        text_config=text(model_type="qwen2", vocab_size=len(tokenizer) + 4),
        vision_config=tower(image_size=[64, 64], patch_size=[16, 16]),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return _saved(tf.InternVLForConditionalGeneration, config, out)


QWEN_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TOWERS: dict[str, dict[str, Any]] = {
    "Qwen2VL": {"embed_dim": WIDTH, "mlp_ratio": 2, "patch_size": 14},
    "Qwen2_5_VL": {
        "out_hidden_size": WIDTH,
        "intermediate_size": 128,
        "patch_size": 14,
        "fullatt_block_indexes": [1, 3],
        "window_size": 112,
    },
    "Qwen3VL": {
        "out_hidden_size": WIDTH,
        "intermediate_size": 128,
        "patch_size": 16,
        "deepstack_visual_indexes": [0, 2],
        "num_position_embeddings": 64,
    },
}


def qwen_with_processor(kind: str, out: Path) -> Path:
    """A random Qwen-VL of ``kind`` with a tokenizer and its processor, which takes images of about 16 by 12 patches."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_MARKS})
    tokenizer.chat_template = TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    start, end, image, video = tokenizer.convert_tokens_to_ids(QWEN_MARKS)
    seeing = {"num_heads": 4, "spatial_merge_size": 2, "hidden_size": WIDTH, "depth": 4, **QWEN_TOWERS[kind]}
    rotary = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    more = {"head_dim": 16} if kind == "Qwen3VL" else {}
    config = getattr(tf, f"{kind}Config")(
        text_config=text(vocab_size=len(tokenizer) + 4, rope_parameters=rotary, **more),
        vision_config=seeing,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    pixels = 16 * 12 * seeing["patch_size"] ** 2
    own = tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": pixels, "longest_edge": pixels},
        patch_size=seeing["patch_size"],
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.3, 0.4, 0.5],
    )
    own.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return _saved(getattr(tf, f"{kind}ForConditionalGeneration"), config, out)


def _saved(kind: Any, config: Any, out: Path) -> Path:
    torch.manual_seed(1)
    model = kind(config)
    for path, parameter in model.named_parameters():
        if path.endswith(ZERO_AT_START):
            torch.nn.init.normal_(parameter, std=0.3)
    roughen(model)
    model.bfloat16().save_pretrained(out)
    return out


def llava_with_processor(out: Path) -> Path:
    """A random LLaVA with a tokenizer and its processor: a model that can be shown pictures."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = TEMPLATE
    side = {"height": 56, "width": 56}
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(out)
    config = tf.LlavaConfig(
        text_config=text(model_type="llama", vocab_size=len(tokenizer) + 7),
        vision_config=CLIP,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(1)
    model = tf.LlavaForConditionalGeneration(config)
    roughen(model)
    model.bfloat16().save_pretrained(out)
    return out
