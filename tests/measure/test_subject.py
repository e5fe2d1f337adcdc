"""What is known before anything slow begins: notes come first, and nothing depends on what happens to be free."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import bitwright
from bitwright import Settings
from bitwright.data.calibration import INSTALLED, MIXED, calibration_of, sequences_of
from bitwright.host import device
from bitwright.host.device import Precision, precision_of
from bitwright.host.progress import Reporter
from bitwright.host.schedule import ROUND
from bitwright.measure.memory import LIBRARIES_BYTES, fit, peak
from bitwright.measure.subject import Subject
from bitwright.settings import Effort
from tests.conftest import Build
from tests.processors import llava_with_processor

PRECISION = Precision(torch.float32, torch.float32)
SMALL = Settings(sequences=8, length=32, held_out_sequences=4, held_out_length=48, dtype="float32", compare=False)


class Diary(Reporter):
    """Notes what is said and what takes time, in order."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.events: list[str] = []

    def say(self, text: str) -> None:
        self.events.append(text)

    def track(self, items: Iterable[Any], stage: str, total: int, done: int = 0) -> Iterator[Any]:
        self.events.append(stage)
        yield from items


def test_the_doctor_speaks_before_anything_slow(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(build("llama"), source)
    config = json.loads((source / "config.json").read_text()) | {"dtype": "float32"}  # the weights are in bfloat16
    (source / "config.json").write_text(json.dumps(config))
    diary = Diary()
    bitwright.quantize(source, tmp_path / "out", "+40%", settings=SMALL, reporter=diary)
    assert diary.events[0].startswith("note: config.json")
    assert "config/dtype" in diary.events[0]
    assert ROUND in diary.events[1:]


def test_the_batch_follows_from_model_and_ceiling_alone(build: Build) -> None:
    subject = Subject.open(build("llama"), SMALL)
    spec, method = subject.source.spec, subject.method
    wide = Settings(sequences=64, length=64)

    def needed(batch_tokens: int) -> int:
        return LIBRARIES_BYTES + peak(spec, replace(method, batch_tokens=batch_tokens), wide, PRECISION).nbytes

    ceiling = replace(wide, max_memory=needed(512))
    first = fit(spec, method, ceiling, PRECISION).batch_tokens
    ballast = torch.ones(100 * 2**20)  # 400 MB more in this process
    assert fit(spec, method, ceiling, PRECISION).batch_tokens == first == 512
    del ballast
    assert fit(spec, method, replace(wide, max_memory=needed(512) - 1), PRECISION).batch_tokens == 256


def test_patches_count_where_a_tower_takes_more_than_the_text(tmp_path: Path) -> None:
    subject = Subject.open(llava_with_processor(tmp_path / "llava"), SMALL)
    spec, method = subject.source.spec, subject.method
    assert subject.viewer is not None
    assert subject.viewer.patches() == 4 * 4
    few, many = (peak(spec, method, SMALL, PRECISION, patches).nbytes for patches in (16, 4000))
    boundaries = 2 * SMALL.sequences * 4000 * 64 * PRECISION.kept.itemsize
    assert many - few > boundaries
    assert peak(spec, method, SMALL, PRECISION).nbytes <= few


def test_the_default_calibration_follows_from_machine_and_model(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject.open(build("llama"), SMALL)
    for total, available, expected in ((10**12, 0, MIXED), (10**12, 10**12, MIXED), (10**5, 10**12, INSTALLED)):
        memory = SimpleNamespace(total=total, available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert calibration_of(SMALL, subject.skeleton)[0] == expected


def test_effort_and_width_decide_how_much_text_is_read(build: Build) -> None:
    spec = Subject.open(build("llama"), SMALL).source.spec
    widest = max(weight.n_cols for weight in spec.weights)
    efforts = [sequences_of(Settings(effort=effort), spec) for effort in Effort]
    assert efforts == [32, 128, 384]
    assert sequences_of(Settings(length=1), spec) == max(128, 3 * widest)
    assert Subject.open(build("llama"), Settings(effort=Effort.QUICK, dtype="float32")).settings.sequences == 32
    assert Subject.open(build("llama"), SMALL).settings.sequences == 8, "stated"


@pytest.mark.parametrize(("tiles", "work"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_type_at_work_follows_from_the_processor(monkeypatch: pytest.MonkeyPatch, tiles: bool, work: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    device._is_quick_at_16_bit.cache_clear()
    cpu = torch.device("cpu")
    assert precision_of("auto", cpu) == Precision(work, torch.bfloat16)
    assert precision_of("float32", cpu) == Precision(torch.float32, torch.float32)
    assert precision_of("auto", torch.device("cuda")) == Precision(torch.bfloat16, torch.bfloat16)
    device._is_quick_at_16_bit.cache_clear()


@pytest.mark.parametrize("slower", [torch.float32, torch.bfloat16])
def test_a_processor_whose_flags_do_not_tell_is_tried(monkeypatch: pytest.MonkeyPatch, slower: torch.dtype) -> None:
    product = torch.mm

    def slowed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02 if a.dtype is slower else 0)
        return product(a[:8], b)

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "mm", slowed)
    device._is_quick_at_16_bit.cache_clear()
    assert device.quick_dtype(torch.device("cpu")) is (torch.bfloat16 if slower is torch.float32 else torch.float32)
    device._is_quick_at_16_bit.cache_clear()


def test_a_model_with_code_of_its_own_writes_its_calibration_text(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(build("llama"), source)
    (source / "modeling_mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    names = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": names}
    (source / "config.json").write_text(json.dumps(config))
    settings = Settings(sequences=8, length=32, dtype="float32", calibration="self", trust_remote_code=True)
    table = bitwright.measure(source, tmp_path / "s.json", settings=settings, reporter=Reporter(quiet=True))
    assert table.provenance["calibration"] == "text that the model wrote itself"
    assert all(row.damage_nats > 0 for weight in table.weights for row in weight.rows if row.format != "16bit")
