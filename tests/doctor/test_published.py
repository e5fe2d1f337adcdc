"""Models as vendors publish them are sound, whatever else they would be a mistake in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitwright.doctor.conversation import QUESTION, Rendered, render
from bitwright.doctor.doctor import examine
from bitwright.doctor.fix import corrections
from bitwright.doctor.model import Model
from tests.doctor.broken import ATTENTION, TEMPLATE, TOKENIZER, WEIGHTS, Break, both, change, packed, sound, template, weights
from tests.doctor.test_checks import found


def made(directory: Path) -> Path:
    directory.mkdir()
    return sound(directory)


SEVERAL = "{% for m in messages %}<|turn|>{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
PUBLISHED: dict[str, Break] = {  # as vendors publish them
    "layers whose heads are wider": both(
        change("config.json", global_head_dim=8),
        weights(WEIGHTS | {f"{ATTENTION}.k_proj.weight": torch.zeros(8, 8).bfloat16()}),
    ),
    "a tower that hears": weights(WEIGHTS | {"audio_tower.layers.0.self_attn.k_proj.weight": torch.zeros(24, 8).bfloat16()}),
    "skips by patterns": change(
        "config.json", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    ),
    "a vendor's own copy": lambda d: save_file(WEIGHTS, d / "consolidated.safetensors"),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_what_is_published_so_is_no_mistake(tmp_path: Path, case: str) -> None:
    before = found(made(tmp_path / "before"))
    PUBLISHED[case](made(tmp_path / "after"))
    assert set(found(tmp_path / "after")) <= set(before)
    assert not any(name.endswith(".safetensors") for name in corrections(tmp_path / "after"))


def test_weights_that_mlx_packed(tmp_path: Path) -> None:
    packed()(sound(tmp_path))
    change("config.json", quantization_config=None, quantization={"bits": 4, "group_size": 64})(tmp_path)
    assert "quantization/no-config" not in found(tmp_path)


def test_a_token_without_a_row_that_no_text_produces_is_a_note(tmp_path: Path) -> None:
    for special, severity in ((True, "note"), (False, "error")):
        path = made(tmp_path / str(special))
        change("tokenizer.json", added_tokens=[*TOKENIZER["added_tokens"], {"id": 16, "content": "<i>", "special": special}])(
            path
        )
        assert [(f.rule, f.severity) for f in examine(path)] == [("vocabulary/tokenizer", severity)]


def test_a_template_that_goes_over_parts(tmp_path: Path) -> None:
    template(SEVERAL)(sound(tmp_path))
    model = Model(tmp_path)
    rendered = render(model)
    assert isinstance(rendered, Rendered)
    assert QUESTION in rendered.asked
    template("{{ bos_token }}<|turn|>")(tmp_path)
    assert render(Model(tmp_path)) == "it leaves out what is said"


def test_a_template_in_a_file_of_processors(tmp_path: Path) -> None:
    change("tokenizer_config.json", chat_template=None)(sound(tmp_path))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert Model(tmp_path).template == TEMPLATE
