"""Towers that float16 cannot hold are told."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.host.progress import Reporter
from tests.processors import llava_with_processor


def test_a_tower_beyond_float16_is_named(tmp_path: Path) -> None:
    settings = bitwright.Settings(sequences=6, length=32, dtype="float32", calibration="pictures", formats=("nf4-b64",))
    source = llava_with_processor(tmp_path / "source")
    found = _notes(source, tmp_path, settings)
    assert not [note for note in found if "float16" in note]
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.layers.1.mlp.fc2.weight"))
    weights[name] *= 1e6
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    (note,) = [note for note in _notes(source, tmp_path, settings) if "float16" in note]
    assert "model.vision_tower.encoder.layers.1.mlp.fc2 (" in note
    assert "bfloat16" in note


def _notes(source: Path, folder: Path, settings: bitwright.Settings) -> tuple[str, ...]:
    from bitwright.measure.measure import measure
    from bitwright.measure.subject import Subject

    torch.manual_seed(0)
    return measure(Subject.open(source, settings), folder / "work", Reporter(quiet=True)).notes
