"""Small random models that see, written with a tokenizer and a processor: they can be shown pictures, as people's are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from tests.conftest import byte_tokenizer, roughen
from tests.vision import CLIP, LAYERS, WIDTH, ZERO_AT_START, text, tower

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
    return _saved(tf.Idefics3ForConditionalGeneration, config, out)


def gemma_with_processor(out: Path) -> Path:
    """A random Gemma 3 with a tokenizer and its processor: an image's tokens attend to each other in both directions."""
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _marked(marks, "<start_of_image>")
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
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _marked(marks, "<IMG_CONTEXT>")
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


def pixtral_with_processor(out: Path) -> Path:
    """A random Pixtral, which is a LLaVA whose tower takes images of any size, with a token where a row of one ends."""
    tokenizer = _of_rows(out)
    config = tf.LlavaConfig(
        text_config=text(
            model_type="mistral", vocab_size=len(tokenizer) + 4, head_dim=16, sliding_window=None, rms_norm_eps=1e-5
        ),
        vision_config=PIXTRAL_TOWER | {"hidden_act": "silu"},
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return _saved(tf.LlavaForConditionalGeneration, config, out)


def mistral3_with_processor(out: Path) -> Path:
    """A random Mistral 3: Pixtral's tower, whose patches are merged four to one."""
    tokenizer = _of_rows(out)
    config = tf.Mistral3Config(
        text_config=text(
            model_type="mistral", vocab_size=len(tokenizer) + 4, head_dim=16, sliding_window=None, rms_norm_eps=1e-5
        ),
        vision_config=PIXTRAL_TOWER,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )
    return _saved(tf.Mistral3ForConditionalGeneration, config, out)


ROW_MARKS = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
PIXTRAL_TOWER = tower(model_type="pixtral", head_dim=16, image_size=256, patch_size=16)


def _of_rows(out: Path) -> Any:
    """Tokenizer and image processor of a tower that takes images of any size."""
    tokenizer = _marked(ROW_MARKS, "[IMG]")
    size, mean = {"longest_edge": 96}, [0.4, 0.5, 0.6]
    tf.PixtralImageProcessorPil(size=size, image_mean=mean, image_std=[0.3, 0.4, 0.5]).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return tokenizer


class RowProcessor:
    """What PixtralProcessor makes of images, which cannot be imported without torchvision."""

    def __init__(self, directory: Path, tokenizer: Any, merged: int) -> None:
        self.side, self.tokenizer = 16 * merged, tokenizer
        self.image_processor = tf.PixtralImageProcessorPil.from_pretrained(directory)

    def __call__(self, images: list[Any], text: list[str], return_tensors: str, add_special_tokens: bool) -> dict[str, Any]:
        seen = self.image_processor(images, patch_size=self.side, return_tensors=return_tensors)
        parts = text[0].split("[IMG]")
        for i, (high, wide) in enumerate(seen["image_sizes"]):
            row = "[IMG]" * (int(wide) // self.side)
            parts[i] += "[IMG_BREAK]".join([row] * (int(high) // self.side)) + "[IMG_END]"
        ids = self.tokenizer("".join(parts), add_special_tokens=add_special_tokens, return_tensors=return_tensors)
        return {"input_ids": ids["input_ids"], **seen}


def _marked(marks: dict[str, str], place: str) -> Any:
    """A tokenizer that knows ``marks`` by name, and a template with ``place`` where an image is."""
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=marks,
        chat_template=TEMPLATE.replace("<image>", place),
    )


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
    image = {"image_processor": tf.CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE), "num_additional_image_tokens": 1}
    return _llava(out, "default", CLIP, **image)


def llava_of_siglip(out: Path) -> Path:
    """The same with a tower that has no class token, and a text of another family."""
    image = tf.SiglipImageProcessorPil(size=SQUARE, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.4, 0.5])
    seeing = tower(model_type="siglip_vision_model", image_size=56, patch_size=14, vision_use_head=False)
    return _llava(out, "full", seeing, "qwen2", image_processor=image, num_additional_image_tokens=0)


SQUARE = {"height": 56, "width": 56}


def _llava(out: Path, handed_on: str, seeing: dict[str, Any], of_text: str = "llama", **processor: Any) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = TEMPLATE
    stated = {"patch_size": 14, "vision_feature_select_strategy": handed_on, "image_token": "<image>"}
    tf.LlavaProcessor(tokenizer=tokenizer, **stated, **processor).save_pretrained(out)
    config = tf.LlavaConfig(
        text_config=text(model_type=of_text, vocab_size=len(tokenizer) + 7),
        vision_config=seeing,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy=handed_on,
    )
    return _saved(tf.LlavaForConditionalGeneration, config, out)
