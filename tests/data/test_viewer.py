"""Processors that take torchvision, without it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from transformers.utils.import_utils import is_torchvision_available

import bitwright
from bitwright.data.pictures import drawn
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer
from bitwright.errors import BitwrightError
from bitwright.host.progress import QUIET
from tests.conftest import TINY, byte_tokenizer
from tests.processors import idefics_with_processor, pixtral_with_processor
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


@pytest.mark.parametrize("answer", ["", "Red."])
def test_a_processor_that_disagrees_with_the_model_says_so(tmp_path: Path, answer: str) -> None:
    """Where the model answers, and where it is given the answers and only measured."""
    directory = idefics_with_processor(tmp_path / "model")
    settings = json.loads((directory / "processor_config.json").read_text())
    (directory / "processor_config.json").write_text(json.dumps(settings | {"image_seq_len": 7}))
    drawn(1, 0)[0].image.save(tmp_path / "a.png")
    row = json.dumps({"image": "a.png", "question": "What?", "answer": answer})
    (tmp_path / "rows.jsonl").write_text("\n".join([row] * 12))
    shown = replace(TINY, calibration=str(tmp_path / "rows.jsonl"), sequences=12)
    with pytest.raises(BitwrightError, match="images/processor") as caught:
        bitwright.measure(directory, tmp_path / "table.json", settings=shown, reporter=QUIET)
    assert "tokens: 7, features: 4" in caught.value.finding.saw
