"""Adapters that become part of a quantized file: what survives, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

import bitwright
from bitwright import Settings
from bitwright.checkpoint.output import beside
from bitwright.checkpoint.result import plan_of
from bitwright.errors import BitwrightError
from bitwright.finetune.finetune import finetune
from bitwright.finetune.finished import Finished
from bitwright.finetune.merge import merge
from bitwright.finetune.survival import changes_in, survived
from tests.conftest import Build
from tests.finetune.conftest import MODEL, QUIET, TRAINING

TO_MERGE = Settings(
    sequences=12, length=32, held_out_sequences=2, held_out_length=32, dtype="float32", device="cpu", compare=False
)


@pytest.mark.parametrize(("container", "budget"), [("bitsandbytes", ""), ("gguf", "+40%")])
def test_merged_into_a_quantized_file_the_gain_survives(
    container: str, budget: str, build: Build, data: str, tmp_path: Path
) -> None:
    source, suffix = build("llama", **MODEL), ".gguf" if container == "gguf" else ""
    out, whole = tmp_path / f"merged{suffix}", tmp_path / "whole"
    training = replace(TRAINING, max_steps=30, rank=8)
    trained = finetune(source, data, tmp_path / "adapter", training=training, reporter=QUIET)
    settings = replace(TO_MERGE, container=container)
    said = Mock(wraps=QUIET)
    found = merge(tmp_path / "adapter", source, data, out, budget, whole=whole, settings=settings, reporter=said)
    anew = any("formats are chosen anew" in call.args[0] for call in said.say.call_args_list)
    assert anew == (not budget), "trained beside 16 bit there are none to keep"
    assert found.adapter == trained.after
    assert found.kept >= 0.9
    assert 0.8 < found.survived < 1.2
    assert math.isnan(found.moved)  # it was trained beside 16 bit
    card = beside(out, "README.md").read_text()
    assert "sums.csv" in card
    assert "with the adapter" in card
    again = bitwright.repair(  # the merged 16-bit model is what the file is held against
        out, str(whole), steps=1, settings=replace(TO_MERGE, calibration="documentation", sequences=6), reporter=QUIET
    )
    assert again.before.kl < 1.0
    if container == "bitsandbytes":
        assert json.loads((out / "config.json").read_text())["quantization_config"]["load_in_4bit"]
        with pytest.raises(BitwrightError) as caught:
            merge(out, source, data, tmp_path / "again", reporter=QUIET)
        assert caught.value.finding.rule == "finetune/adapter"


def test_a_merge_keeps_the_formats_that_it_was_trained_beside(build: Build, quantized: Path, data: str, tmp_path: Path) -> None:
    training = replace(TRAINING, max_steps=30, rank=8)
    finetune(quantized, data, tmp_path / "adapter", training=training, reporter=QUIET)
    source = build("llama", **MODEL)
    found = merge(tmp_path / "adapter", source, data, tmp_path / "merged", settings=TO_MERGE, reporter=QUIET)
    old, new = (plan_of(path) for path in (quantized, tmp_path / "merged"))
    assert [(c.weight, c.format) for c in old.choices] == [(c.weight, c.format) for c in new.choices]
    assert 0.0 < found.moved < 1.0
    assert found.survived > 0.7
    with pytest.raises(BitwrightError) as caught:
        merge(tmp_path / "adapter", source, data, tmp_path / "again", "+9%", plan=quantized, reporter=QUIET)
    assert caught.value.finding.rule == "finetune/unused"
    (tmp_path / "other.csv").write_text(Path(data).read_text() + "\nWhat is 9 + 9?,It is 18.")
    with pytest.raises(BitwrightError) as caught:
        merge(tmp_path / "adapter", source, str(tmp_path / "other.csv"), tmp_path / "again", reporter=QUIET)
    assert caught.value.finding.rule == "finetune/other-data"


def test_a_change_that_rounding_erases_has_not_survived(build: Build, quantized: Path, data: str, tmp_path: Path) -> None:
    finetune(quantized, data, tmp_path / "adapter", training=TRAINING, reporter=QUIET)
    changes = changes_in(tmp_path / "adapter")
    finished = Finished.open(quantized, str(build("llama", **MODEL)), TO_MERGE)
    assert len(changes) == 14
    assert abs(survived(changes, finished, finished.subject.source)) < 0.3  # the codes of before: nothing of it is there


def test_a_merge_that_loses_the_gain_is_refused(build: Build, data: str, tmp_path: Path) -> None:
    source = build("llama", **MODEL)
    finetune(source, data, tmp_path / "adapter", training=TRAINING, reporter=QUIET)
    told = json.loads((tmp_path / "adapter" / "bitwright.json").read_text())
    told["outcome"]["after"]["loss"] = told["outcome"]["before"]["loss"] - 100.0  # no file can keep that
    (tmp_path / "adapter" / "bitwright.json").write_text(json.dumps(told))
    settings = Settings(
        sequences=12, length=32, held_out_sequences=2, held_out_length=32, dtype="float32", device="cpu", compare=False
    )
    with pytest.raises(BitwrightError) as caught:
        merge(tmp_path / "adapter", source, data, tmp_path / "tuned", "+40%", settings=settings, reporter=QUIET)
    assert caught.value.finding.rule == "finetune/merge-loses"
    assert not (tmp_path / "tuned").exists()
    assert not (tmp_path / ".tuned.merge").exists()


def test_an_adapter_that_gained_nothing_is_not_merged(build: Build, data: str, tmp_path: Path) -> None:
    source = build("llama", **MODEL)
    finetune(source, data, tmp_path / "adapter", training=replace(TRAINING, max_steps=1, learning_rate=0.0), reporter=QUIET)
    with pytest.raises(BitwrightError) as caught:
        merge(tmp_path / "adapter", source, data, tmp_path / "out", reporter=QUIET)
    assert caught.value.finding.rule == "finetune/no-gain"
