"""Processors that take torchvision, without it."""

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from transformers.utils.import_utils import is_torchvision_available

from bitwright.data.pictures import drawn
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer
from bitwright.errors import BitwrightError
from tests.conftest import byte_tokenizer
from tests.processors import pixtral_with_processor
from tests.vision import FAMILIES

TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<s>{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
)


def test_qwen_is_shown_pictures_without_torchvision(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    config = FAMILIES["qwen2_vl"].model().config
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config.image_token_id, config.text_config.vocab_size = image, len(tokenizer)
    config.save_pretrained(tmp_path)
    tf.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = tf.AutoModelForImageTextToText.from_config(config).eval()
    for sample in Viewer.of(tmp_path, tokenizer_of(tmp_path)).told(drawn(2, 0)):
        patches = int(sample.media["image_grid_thw"].prod())
        assert int((sample.ids == image).sum()) == patches // 4
        assert set(sample.inputs) == {"input_ids", "mm_token_type_ids"}
        inputs = {name: tensor[None] for name, tensor in sample.inputs.items()} | sample.media
        assert bool(torch.isfinite(model(**inputs).logits).all())


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_a_processor_that_needs_torchvision_says_so(tmp_path: Path) -> None:
    directory = pixtral_with_processor(tmp_path / "pixtral")
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": "PixtralProcessor"}))
    with pytest.raises(BitwrightError, match="pip install torchvision"):
        Viewer.of(directory, tokenizer_of(directory))
