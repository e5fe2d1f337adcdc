"""The demo model that sees: the demo's text model, and a vision tower and connector that this project trained and carries.

The class is Idefics3. ``benchmarks/small_vlm.py`` trains what ``eyes.safetensors`` holds: tower, connector, and a change of low
rank for the text's query and value projections.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from bitwright.checkpoint.cached import kept_folder, sha256
from bitwright.host.packages import require_package

EYES = Path(__file__).with_name("eyes.safetensors")
LAYOUT = 1  # of what is put together: another number makes kept ones unknown
SIDE, PATCH = 128, 16  # pixels
TOWER = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
MERGE = 2  # patches high and wide that become one token
RENAMED = {  # tokens of notebooks, which the text model hardly met
    "<jupyter_code>": "<global-img>",
    "<jupyter_output>": "<fake_token_around_image>",
    "<jupyter_script>": "<end_of_utterance>",
    "<empty_output>": "<image>",
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def demo_vision(text: Path, cache: Path) -> Path:
    """Directory in ``cache`` with the demo model that sees; ``text`` is the demo model's.

    Raises BitwrightError without Pillow.
    """
    require_package("images/package", "demo-vision", "PIL", "it opens and draws pictures")
    target = cache / "demo-vision" / f"{text.name}-{sha256(EYES)[:16]}-{LAYOUT}"
    return kept_folder(target, partial(_assemble, text))


def untrained(text: Path, out: Path) -> Path:
    """The same model with random eyes, written to ``out``: where training begins."""
    out.mkdir(parents=True)
    _write(text, {}, out)
    return out


def _assemble(text: Path, out: Path) -> None:
    from safetensors.torch import load_file

    _write(text, load_file(EYES), out)


def _write(text: Path, eyes: dict[str, Any], out: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    for name in ("tokenizer.json", "tokenizer_config.json"):
        words = (text / name).read_text()
        for old, new in RENAMED.items():
            words = words.replace(json.dumps(old), json.dumps(new))
        (out / name).write_text(words)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.chat_template = TEMPLATE
    image = Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = Idefics3Processor(image, tokenizer, image_seq_len=(SIDE // PATCH // MERGE) ** 2, chat_template=TEMPLATE)
    processor.save_pretrained(out)
    config = Idefics3Config(
        text_config=AutoConfig.from_pretrained(text).to_dict() | {"model_type": "llama"},
        vision_config=TOWER,
        image_token_id=int(tokenizer("<image>", add_special_tokens=False).input_ids[0]),
        scale_factor=MERGE,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config).bfloat16()
    own = {
        name.replace("model.", "model.text_model.", 1): tensor for name, tensor in load_file(text / "model.safetensors").items()
    }
    for name in [name for name in eyes if name.endswith(".down")]:
        up, down = eyes.pop(name.replace(".down", ".up")), eyes.pop(name)
        at = name.removesuffix(".down").replace("model.", "model.text_model.", 1) + ".weight"
        own[at] = (own[at].float() + up.float() @ down.float()).bfloat16()
    _, unexpected = model.load_state_dict(own | eyes, strict=False)
    assert not unexpected
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
