"""What an earlier run kept is used where everything that it depends on is the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import bitwright
from bitwright.allocate.allocate import least_nbytes
from bitwright.errors import BitwrightError
from bitwright.host.progress import QUIET
from bitwright.measure.measure import _folds
from bitwright.measure.subject import Subject
from tests.conftest import TINY, Build
from tests.processors import llava_with_processor


def key_of(source: Path, settings: Any, work: Path) -> str:
    return _folds(Subject.open(source, settings), work, QUIET)[0].key


def test_a_repaired_template_is_asked_through_anew(build: Build, tmp_path: Path) -> None:
    source, settings = tmp_path / "model", replace(TINY, calibration="self", length=64)
    shutil.copytree(build("llama"), source)
    before = key_of(source, settings, tmp_path / "work")
    assert key_of(source, settings, tmp_path / "work") == before
    template = "{% for m in messages %}<s>Q: {{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>A: {% endif %}"
    stated = json.loads((source / "tokenizer_config.json").read_text())
    (source / "chat_template.jinja").unlink(missing_ok=True)
    (source / "tokenizer_config.json").write_text(json.dumps(stated | {"chat_template": template}))
    after = key_of(source, settings, tmp_path / "work")
    assert after == key_of(source, settings, tmp_path / "fresh") != before


def test_pictures_that_changed_are_shown_anew(tmp_path: Path) -> None:
    source, folder, work = llava_with_processor(tmp_path / "llava"), tmp_path / "pictures", tmp_path / "work"
    settings = replace(TINY, calibration=str(folder))
    folder.mkdir()

    def add(count: int, words: str) -> None:
        for i in range(count):
            Image.new("RGB", (64, 64), (20 * i, 9, 9)).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"{words} {i}", encoding="utf-8")

    add(4, "red")
    with pytest.raises(BitwrightError, match="4 images"):
        key_of(source, settings, work)
    add(10, "red")
    red = key_of(source, settings, work)
    add(10, "something else")
    assert key_of(source, settings, work) == key_of(source, settings, tmp_path / "fresh") != red


def test_a_table_of_another_model_or_container_is_no_forecast(build: Build, tmp_path: Path) -> None:
    small, large, work = build("llama"), build("llama", hidden_size=128), tmp_path / "work"
    table = bitwright.measure(small, tmp_path / "table.json", workdir=work, settings=TINY, reporter=QUIET)
    assert bitwright.forecast(small, tmp_path / "out", workdir=work, settings=TINY).damage_nats is not None
    for source, settings, out in ((large, TINY, "out"), (small, replace(TINY, container="gguf"), "out.gguf")):
        alone = bitwright.forecast(source, tmp_path / out, settings=settings)
        assert bitwright.forecast(source, tmp_path / out, workdir=work, settings=settings).nbytes == alone.nbytes
    assert table.provenance["fingerprint"]


def test_what_no_picture_passes_is_known_before_and_left_out_of_the_importance_matrix(tmp_path: Path) -> None:
    """Towers of a model that is calibrated on text: they stay in 16 bit, so no budget counts on them."""
    source = llava_with_processor(tmp_path / "llava")
    texts, pictures = (
        least_nbytes(Subject.open(source, replace(TINY, calibration=kind)).blank_table())
        for kind in ("documentation", "pictures")
    )
    assert texts > pictures
    matrix = tmp_path / "matrix.gguf"
    found = bitwright.measure(source, tmp_path / "table.json", imatrix_output=matrix, settings=TINY, reporter=QUIET)
    assert matrix.exists()
    towers = [w for w in found.weights if w.group.startswith("vision")]
    assert towers
    assert all(len(w.rows) == 1 for w in towers)


def test_states_that_are_not_one_row_a_token_are_refused_by_name(build: Build, tmp_path: Path) -> None:
    shape = {"laurel_rank": 16, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 512, "sliding_window": 24}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0}
    source = build("gemma3n_text", head_dim=32, activation_sparsity_pattern=[0.0, 0.0], **shape, **layers)
    with pytest.raises(BitwrightError, match="one row of states for each token"):
        bitwright.measure(source, tmp_path / "table.json", settings=TINY, reporter=QUIET)
